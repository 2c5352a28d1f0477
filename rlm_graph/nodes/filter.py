"""`filter` keeps in `candidates` what may matter. The root reads how much that is, in items and in share."""

from __future__ import annotations

from rlm_graph.nodes.cell import Node, cell_node
from rlm_graph.settings import Settings


def filter(settings: Settings, depth: int) -> Node:
    """The node `filter` of an RLM at `depth`."""
    return cell_node(settings, depth, "filter", "candidates")
