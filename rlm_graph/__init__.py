"""Recursive Language Models on LangGraph: ask questions of inputs a thousand times a model's window."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlm_graph.approval import Approval
from rlm_graph.context import hold
from rlm_graph.graph import build_rlm, create_rlm
from rlm_graph.kernel.gateway import Gateway
from rlm_graph.ledger import Limits
from rlm_graph.trace.recording import tracing
from rlm_graph.trace.trajectory import read_trace, write_trace

if TYPE_CHECKING:
    from rlm_graph.integrations.chat_model import RLMChatModel
    from rlm_graph.integrations.middleware import RLMMiddleware
    from rlm_graph.integrations.python_tool import create_python_tool
    from rlm_graph.integrations.tool import create_rlm_tool
    from rlm_graph.trace.replay import assert_replays

_ON_DEMAND = {
    "RLMChatModel": "rlm_graph.integrations.chat_model",
    "RLMMiddleware": "rlm_graph.integrations.middleware",
    "create_python_tool": "rlm_graph.integrations.python_tool",
    "assert_replays": "rlm_graph.trace.replay",
    "create_rlm_tool": "rlm_graph.integrations.tool",
}
"""Names that are imported when they are first used: who needs only the graph waits for nothing else."""

__all__ = [
    "Approval",
    "Gateway",
    "Limits",
    "RLMChatModel",
    "RLMMiddleware",
    "assert_replays",
    "build_rlm",
    "create_python_tool",
    "create_rlm",
    "create_rlm_tool",
    "hold",
    "read_trace",
    "tracing",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_DEMAND[name]), name)


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext rlm_graph`: a notebook then shows results with their citations, coverage and cost."""
    import_module("rlm_graph.trace.notebook").register(ipython)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
