"""The node `rlm` of `sub_call`: a whole RLM answers a call, one level deeper here, or on a LangGraph server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel.remote import RemoteGraph

from rlm_graph import models, paid, prompts, remote, stopping
from rlm_graph.errors import RLMError
from rlm_graph.kernel import pool
from rlm_graph.kernel.kernel import Kernel
from rlm_graph.ledger import NOTHING, Limit
from rlm_graph.nodes.cell import Node, among_siblings, asked_by, working_on
from rlm_graph.nodes.dispatch import over_budget
from rlm_graph.settings import Settings
from rlm_graph.state import Asked, NestedCall, NestedInput, Reply, SubCall, Usage
from rlm_graph.trace.watched import show
from rlm_graph.tree import Tree
from rlm_graph.trees import at_work, tree_of

_LOOK_SECONDS = 0.1
"""How often a nested run looks whether the cell still wants its answer."""

_GRACE_SECONDS = 2.0
"""How long after the end of `max_seconds` a nested RLM may still compose from what it has."""

Output = dict[str, Any]
Answer = Callable[[NestedCall, str], Coroutine[Any, Any, Output]]
"""Answers a call of the tree with this id."""
Replied = tuple[Reply, Usage | None]
"""A reply, and what the run that made it came to."""


def nested(settings: Settings, depth: int, child: CompiledStateGraph[Any, Any, Any, Any]) -> RunnableLambda[Any, Any]:
    """The node `rlm` that runs the graph `child` here, in the tree of the call that it answers."""

    def step(state: SubCall, config: RunnableConfig) -> dict[str, Any]:
        async def answer(call: NestedCall, tree: str) -> Output:
            def run() -> Output:
                try:
                    return child.invoke(_input(call, tree), _shown(config, call, depth))
                finally:
                    stopping.end(call["id"])

            stopping.begin(call["id"])
            try:
                return await asyncio.to_thread(run)
            except asyncio.CancelledError:
                stopping.stop(call["id"])
                raise

        with at_work():
            return models.in_step(lambda: _settled(settings, depth, state, config, answer))

    async def astep(state: SubCall, config: RunnableConfig) -> dict[str, Any]:
        async def answer(call: NestedCall, tree: str) -> Output:
            return await child.ainvoke(_input(call, tree), _shown(config, call, depth))

        with at_work():
            return await _settled(settings, depth, state, config, answer)

    return RunnableLambda(step, astep, name="rlm")


def remote_rlm(settings: Settings, depth: int, graph: RemoteGraph) -> Node:
    """The node `rlm` that has `graph` answer, which has a tree of its own, on its server."""

    async def act(state: SubCall, config: RunnableConfig) -> dict[str, Any]:
        async def answer(call: NestedCall, tree: str) -> Output:
            context = {"type": "rlm_context", "id": call["source"]["id"]}
            given: remote.Asked = {"question": call["question"], "context": context, "budget": call["share"]}
            return await remote.answer(graph, call["id"], given, config)

        return await _settled(settings, depth, state, config, answer)

    return Node(act, "rlm")


async def _settled(
    settings: Settings, depth: int, state: SubCall, config: RunnableConfig, answer: Answer
) -> dict[str, Any]:
    """Has a call answered, unless its answer is on record, and keeps it under the call's id."""
    async with working_on(state["run"]) as hold:
        hold.take(kernel := pool.live_kernel(state["kernel"]))
        with among_siblings(kernel):
            tree = await tree_of(state["tree"], settings.limits, settings.store, config)
            call: NestedCall = await tree.get(state["nested"])
            id = call["id"]
            tree.ledger.note_reserved([id])
            known = await tree.replies([id])
            if id not in known:
                asked: Asked = {
                    "id": id,
                    "kind": "rlm",
                    "prompt": call["question"],
                    "context": None,
                    "nth": 0,
                    "place": call["place"],
                }
                tree.log.asks(asked_by(state, depth), {id: asked})
                known[id], usage = await _within_limits(settings, depth, kernel, tree, call, answer)
                if call["share"] is None or usage is None:
                    keep = tree.record(id, known[id])
                else:
                    keep = tree.record_remote(id, known[id], usage, depth + 1)
                if said := await keep:
                    show(said)
            if kernel is not None:
                kernel.deliver(known)
    return {}


async def _within_limits(
    settings: Settings, depth: int, kernel: Kernel | None, tree: Tree, call: NestedCall, answer: Answer
) -> Replied:
    """Has a call answered where there is room for it: here for its first turn at least, elsewhere for its share."""
    need, share = NOTHING, call["share"]
    if share is not None:
        tree.ledger.lend(call["id"], share=cast(dict[str, float], share))
        empty: tuple[Limit, ...] = ("max_tokens", "max_cost", "max_seconds")
        limit = next((name for name in empty if share.get(name, 1) <= 0), None)
    else:
        system = prompts.system_for(settings.limits, depth + 1, None)
        need = paid.need_of(tree, settings, depth + 1, [system], turn=True)
        limit = tree.ledger.left(held=False).lacking(0, need)
    if limit:
        tree.ledger.ran_into(limit)
        return over_budget(tree, 1, need, limit), None
    return await while_wanted(kernel, tree, _reply(answer(call, tree.id)))


def _input(call: NestedCall, tree: str) -> NestedInput:
    return {"question": call["question"], "sources": [call["source"]], "run": call["id"], "tree": tree}


def _shown(config: RunnableConfig, call: NestedCall, depth: int) -> RunnableConfig:
    """What a trace shows of a nested run, and of all in it.

    Where its text stands has other names than for a call: all in it inherit them, and have places in that text.
    """
    place = call["place"]
    names = ("rlm_within_source", "rlm_within_start", "rlm_within_end")
    within = dict(zip(names, place, strict=True)) if place else {}
    return models.noted(config, rlm_run=call["id"], rlm_depth=depth + 1, **within)


async def while_wanted(kernel: Kernel | None, tree: Tree, answered: Coroutine[Any, Any, Replied]) -> Replied:
    """Goes on with a nested RLM as long as there is time, and the cell that asked has not ended without it."""
    task = asyncio.ensure_future(answered)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_SECONDS)
            if kernel is not None and kernel.outcome is not None:
                return Reply(error="SubCallError", message=prompts.NESTED_UNWANTED), None
            seconds = tree.ledger.left().seconds
            if seconds is not None and seconds < -_GRACE_SECONDS:
                return Reply(error="SubCallError", message=prompts.CUT_OFF), None
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _reply(answered: Coroutine[Any, Any, Output]) -> Replied:
    try:
        out = await answered
    except RLMError as error:
        return Reply(error="SubCallError", message=prompts.NESTED_FAILED.format(error=error)), None
    text = out["answer"] if isinstance(out.get("answer"), str) else str(out.get("answer") or "")
    if not text.strip():
        return Reply(error="SubCallError", message=prompts.NESTED_SILENT.format(reason=out.get("stop_reason"))), out[
            "usage"
        ]
    return Reply(text=text), out["usage"]
