"""A stream that its reader leaves between two nodes: nobody else would end its kernel at once.

LangGraph tells a graph's own callbacks, and nobody else, of such an end.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langgraph.errors import GraphBubbleUp

from rlm_graph import stopping
from rlm_graph.kernel import pool

_invocation: ContextVar[UUID | None] = ContextVar("rlm_graph_invocation", default=None)
_working: dict[UUID, set[str]] = {}
"""The runs that an invocation of a graph has worked on."""


class Leaving(BaseCallbackHandler):
    """Ends the kernels of an invocation that is left or fails. An interrupt keeps them for the resume."""

    run_inline = True

    def on_chain_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        _working[run_id] = set()
        _invocation.set(run_id)

    def on_chain_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        _working.pop(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        runs = _working.pop(run_id, set())
        for run in runs:
            stopping.need_not_heed(run)
            if not isinstance(error, GraphBubbleUp):
                pool.Holding(run).drop()


def heard() -> CallbackManager:
    """The callbacks of a compiled RLM: they hear of itself, not of what it calls."""
    return CallbackManager(handlers=[Leaving()], inheritable_handlers=[])


def works_on(run: str) -> None:
    """Notes that the invocation which this node belongs to works on a run."""
    invocation = _invocation.get()
    if invocation in _working:
        _working[invocation].add(run)
