"""`probe` looks at the context: its size, its structure, samples. The root reads what the cell printed."""

from __future__ import annotations

from rlm_graph.nodes.cell import Node, cell_node
from rlm_graph.settings import Settings


def probe(settings: Settings, depth: int) -> Node:
    """The node `probe` of an RLM at `depth`."""
    return cell_node(settings, depth, "probe")
