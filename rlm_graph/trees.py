"""The trees that this process works for: each is had once, and rebuilt from the record where it is not here yet."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from langchain_core.runnables import RunnableConfig
from langchain_core.stores import BaseStore, InMemoryByteStore

from rlm_graph.ledger import Limits
from rlm_graph.tree import Tree

CHECKPOINTER = "__pregel_checkpointer"
"""Where LangGraph's configuration carries the checkpointer, a parent's or a server's as well; it has no public name."""

_trees: OrderedDict[str, Tree] = OrderedDict()
_trees_lock = threading.Lock()
_TREES_KEPT = 200


async def tree_of(id: str, limits: Limits, store: BaseStore[str, bytes], config: RunnableConfig) -> Tree:
    """The tree of this id: the one that this process has, else one rebuilt from the record.

    Without a checkpointer nothing can outlive the process, so its replies stay in memory.
    """
    with _trees_lock:
        tree = _trees.get(id)
        if tree is not None:
            _trees.move_to_end(id)
    if tree is not None:
        _work_for(tree)
        await tree.log.open()
        return tree
    lasting = config.get("configurable", {}).get(CHECKPOINTER) is not None
    most = min(limits.max_concurrency, config.get("max_concurrency") or limits.max_concurrency)
    tree = Tree(id, limits, store if lasting else InMemoryByteStore(), most, lasting=lasting)
    if lasting:
        await tree.rebuild()
    tree = _keep(tree)
    _work_for(tree)
    await tree.log.open()
    return tree


_works_for: ContextVar[set[Tree] | None] = ContextVar("works_for", default=None)
"""The trees that the present node works for."""


@contextmanager
def at_work() -> Iterator[None]:
    """A node works: the clocks of the trees that it asks for go until it ends, however it ends."""
    trees: set[Tree] = set()
    token = _works_for.set(trees)
    try:
        yield
    finally:
        _works_for.reset(token)
        for tree in trees:
            tree.end()


def _work_for(tree: Tree) -> None:
    trees = _works_for.get()
    if trees is not None and tree not in trees:
        trees.add(tree)
        tree.begin()


def forget_tree(id: str) -> None:
    """Lets go of a tree whose question has ended; the record stays."""
    with _trees_lock:
        tree = _trees.pop(id, None)
    if tree is not None:
        tree.close()


def forget_failed(run: str) -> None:
    """Lets go of the trees of a run that failed; of one that can be resumed only the threads, which come anew."""
    with _trees_lock:
        failed = [tree for tree in _trees.values() if tree.run == run]
    for tree in failed:
        if tree.lasting:
            tree.close()
        else:
            forget_tree(tree.id)


def _keep(tree: Tree) -> Tree:
    with _trees_lock:
        kept = _trees.setdefault(tree.id, tree)
        dropped = [_trees.popitem(last=False)[1] for _ in range(len(_trees) - _TREES_KEPT)]
    for old in dropped:
        old.close()
    return kept
