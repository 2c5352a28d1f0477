"""Recursive Language Models on LangGraph: ask questions of inputs a thousand times a model's window."""

from rlm_graph.context import hold
from rlm_graph.graph import build_rlm, create_rlm
from rlm_graph.ledger import Limits

__all__ = ["Limits", "build_rlm", "create_rlm", "hold"]
