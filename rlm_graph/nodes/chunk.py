"""`chunk` cuts into `chunks` and asks about them. The root reads their number, their sizes, and which do not fit."""

from __future__ import annotations

from rlm_graph.nodes.cell import Node, cell_node
from rlm_graph.settings import Settings


def chunk(settings: Settings, depth: int) -> Node:
    """The node `chunk` of an RLM at `depth`."""
    return cell_node(settings, depth, "chunk", "chunks")
