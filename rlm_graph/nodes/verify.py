"""`verify` joins the answers of a wave: every call has an answer or a typed error, else it is asked again.

Evidence and schemas will be checked here; plain calls have nothing to check, so their replies reached the cell already.
"""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig

from rlm_graph.flow import missing
from rlm_graph.nodes.cell import Node
from rlm_graph.state import State


def verify() -> Node:
    """The node `verify`."""

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        wave = state["wave"]
        assert wave is not None
        return {"wave": {**wave, "tries": wave["tries"] + 1 if missing(state) else 0}}

    return Node(act, "verify")
