"""The JSON Schema of a line of a trajectory file, made from the types.

`python -m rlm_graph.trace.schema` publishes it anew, when the types have changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlm_graph.trace.events import form
from rlm_graph.trace.recording import VERSION

PUBLISHED = Path(__file__).with_name("trace.schema.json")
"""Where it is published."""


def schema() -> dict[str, Any]:
    """The schema, of one line."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A line of a trajectory file of rlm-graph, version {VERSION}",
        **form().json_schema(),
    }


if __name__ == "__main__":
    PUBLISHED.write_text(json.dumps(schema(), indent=2) + "\n")
