"""A node of the graph, watched: what it does is said once, to the log and to the stream.

The nodes themselves say nothing. What there is to say follows from the state that a node was given and the update that
it returned, which is what the checkpoint will hold.
"""

from __future__ import annotations

import time
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config, get_stream_writer

from rlm_graph.nodes.cell import Node
from rlm_graph.settings import Settings
from rlm_graph.trace import events, said
from rlm_graph.tree import Tree
from rlm_graph.trees import tree_of

PROGRESS_EVERY = 0.25
"""Seconds between two progress events of a tree."""


def watched(node: Node, settings: Settings, depth: int) -> Node:
    """The same node, which also says what it does.

    Args:
        node: The node.
        settings: The RLM's parameters.
        depth: Depth of this RLM.
    """
    name = node.get_name()

    async def act(state: Any, config: RunnableConfig) -> dict[str, Any]:
        async def tree(id: str) -> Tree:
            return await tree_of(id, settings.limits, settings.store, config)

        # An ended tree is let go of, so it is looked up first.
        known = None if name == "load" else await tree(state["tree"])
        if known is not None:
            for entry in said.begun(name, state, depth, settings.limits):
                await say(known, entry)
        update = await node.act(state, config)
        ended = known or await tree(update["tree"])
        for entry in said.followed(name, state, update, settings, depth):
            await say(ended, entry)
        return update

    return Node(act, name)


async def say(tree: Tree, entry: events.Entry) -> None:
    """Says it to the log and to whoever streams `custom`."""
    await tree.log.note(entry)
    show(entry)


def show(entry: events.Entry) -> None:
    """Says it to whoever streams `custom` alone, since the log has it."""
    get_stream_writer()(events.event_of(entry, _namespace()))


def show_progress(tree: Tree, run: str, depth: int, *, at_once: bool = False) -> None:
    """Says how far the calls of the whole tree are, a few times a second at most."""
    now = time.monotonic()
    if not at_once and now - tree.log.progress_told < PROGRESS_EVERY:
        return
    tree.log.progress_told = now
    calls, usage, limits = tree.ledger.progress(), tree.ledger.usage(), tree.ledger.limits
    event: events.Progress = {
        "event": "progress",
        "at": time.time(),
        "run": run,
        "depth": depth,
        "namespace": _namespace(),
        "asked": calls["asked"],
        "done": calls["done"],
        "failed": calls["failed"],
        "of": limits.max_calls,
        "of_tokens": limits.max_tokens,
        "of_cost": limits.max_cost,
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        "cost": usage["cost"],
    }
    get_stream_writer()(event)


def _namespace() -> str:
    """LangGraph's namespace of the graph whose node is running."""
    own: str = get_config().get("configurable", {}).get("checkpoint_ns", "")
    return own.rpartition("|")[0]
