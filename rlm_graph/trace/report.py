"""A run as one page that opens from a disk: nothing is loaded, and whatever came from a model or an input stays text."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from rlm_graph.trace.view import view

_PAGE = Path(__file__).parent / "page"


def page(entries: Sequence[Mapping[str, Any]]) -> str:
    """The HTML page of a trajectory.

    Args:
        entries: The trajectory's entries, in order; one that a killed run left will do.
    """
    shown = view(entries, lambda citation: ("", ""))
    style, script = (_part(name) for name in ("page.css", "page.js"))
    title = html.escape(f"{shown['question'][:80]} — rlm-graph")
    return Template(_part("page.html")).substitute(title=title, style=style, script=script, data=_inert(shown))


def _part(name: str) -> str:
    return (_PAGE / name).read_text("utf-8")


def _inert(data: Any) -> str:
    """JSON in which no character can end the element that it stands in, or be taken for mark-up."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
