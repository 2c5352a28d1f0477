"""`sub_call` is a graph of its own: `ask`, a batch of calls, or `rlm`, a whole RLM one level deeper.

A reply is kept, and given to the waiting cell, the moment that it arrives: no call waits for another of its wave.
One task of a wave is its *pump*: it also takes up the plain calls that the cell makes meanwhile, within what
`dispatch` allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphInterrupt
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from rlm_graph import models, prompts
from rlm_graph.approval import Approval
from rlm_graph.errors import KernelError
from rlm_graph.kernel import pool
from rlm_graph.kernel.kernel import Kernel
from rlm_graph.ledger import NOTHING, Spent
from rlm_graph.nodes.cell import Node, among_siblings, asked_by, working_on
from rlm_graph.nodes.checked_call import checked_call
from rlm_graph.nodes.dispatch import asked_of, cost_of, decide, groups, refuse, reserve, without_room
from rlm_graph.nodes.nested import nested, remote_rlm
from rlm_graph.nodes.plain_call import Answer, plain_call
from rlm_graph.nodes.tool_call import tool_call
from rlm_graph.settings import Settings
from rlm_graph.state import Asked, Reply, SubCall, SubCallOutput
from rlm_graph.trace.watched import show_progress
from rlm_graph.tree import NoRoom, Tree
from rlm_graph.trees import tree_of

_LOOK_SECONDS = 0.1
"""How often a pump that hears nothing looks whether its siblings still run."""
_IDLE_LOOKS = 3


def sub_call(settings: Settings, depth: int, child: CompiledStateGraph[Any, Any, Any, Any] | None) -> Any:
    """The compiled graph `sub_call` of an RLM at `depth`.

    Args:
        settings: The RLM's parameters.
        depth: Depth of the RLM whose cells call.
        child: The RLM one level deeper; None where the depth ends.
    """
    graph = StateGraph(SubCall, input_schema=SubCall, output_schema=SubCallOutput)
    graph.add_node("ask", ask(settings, depth))
    graph.add_edge("ask", END)
    ways = ["ask"]
    if child is not None:
        there = settings.sub_graph
        rlm = nested(settings, depth, child) if there is None else remote_rlm(settings, depth, there)
        graph.add_node("rlm", rlm)
        graph.add_edge("rlm", END)
        ways.append("rlm")
    graph.add_conditional_edges(START, which, ways)
    return graph.compile(name="sub_call")


def which(state: SubCall) -> str:
    """Whether a task is a batch of plain calls or a nested RLM."""
    return "rlm" if "nested" in state else "ask"


def ask(settings: Settings, depth: int) -> Node:
    """The node `ask`: plain model calls, each kept and delivered as soon as it is answered."""

    async def act(state: SubCall, config: RunnableConfig) -> dict[str, Any]:
        async with working_on(state["run"]) as hold:
            hold.take(pool.live_kernel(state["kernel"]))
            tree = await tree_of(state["tree"], settings.limits, settings.store, config)
            shown = models.noted(config, rlm_run=state["run"], rlm_cell=state["cell"], rlm_depth=depth + 1)
            asking = _Asking(state, settings, depth, tree, shown, hold.kernel)
            try:
                with among_siblings(None if "allowance" in state else hold.kernel):
                    if batch := state.get("batch"):
                        asking.start(await asking.not_on_record(await tree.get(batch)))
                    await (asking.pump(state["allowance"]) if "allowance" in state else asking.finish())
            finally:
                asking.cancel()
        asking.show_progress(at_once=True)
        return {}

    return Node(act, "ask")


Batch = dict[str, Asked]
"""Calls of an `ask` task, by call id."""


class _Asking:
    """The calls that one `ask` task has in flight."""

    def __init__(
        self,
        state: SubCall,
        settings: Settings,
        depth: int,
        tree: Tree,
        config: RunnableConfig,
        kernel: Kernel | None,
    ) -> None:
        self.settings, self.depth, self.kernel = settings, depth, kernel
        self.tree = tree
        self.model = settings.model(depth + 1)
        self.alone = "alone" in state
        self.answered_by: dict[str, Answer] = {
            "llm": plain_call(settings, depth, tree, config),
            "sub": checked_call(settings, depth, tree, config),
            "tool": tool_call(settings, tree, config),
        }
        self.unchecked: dict[str, str] = {}
        """Structured asks of this task that have no reply yet: call id by the attempt's."""
        self.to_check: set[str] = set()
        self.in_flight: set[asyncio.Task[None]] = set()
        self.state = state

    async def not_on_record(self, batch: Batch) -> Batch:
        """What is still to be asked; the rest is delivered from the record."""
        known = await self.tree.replies(list(batch))
        self.tree.ledger.note_reserved(batch)
        self._deliver(known)
        self.unchecked = {id: asked["context"]["call"] for id, asked in batch.items() if asked["kind"] == "sub"}
        self._leave_to_verify(known)
        return {id: asked for id, asked in batch.items() if id not in known}

    def start(self, batch: Batch) -> None:
        self.tree.log.asks(asked_by(self.state, self.depth), batch)
        self.in_flight |= {asyncio.create_task(self._one(id, asked)) for id, asked in batch.items()}

    async def finish(self) -> None:
        while self.in_flight:
            self._drop_done((await asyncio.wait(self.in_flight, return_when=asyncio.FIRST_COMPLETED))[0])

    def _drop_done(self, done: set[asyncio.Task[Any]]) -> None:
        """Forgets ended calls; one that failed otherwise than by a typed error fails the task."""
        self.in_flight -= done
        for task in done:
            task.result()

    async def pump(self, allowance: int) -> None:
        """Answers, and takes up what the cell asks meanwhile, until the cell ends or needs a new `dispatch`."""
        kernel = self.kernel
        if kernel is not None and kernel.work is not None:
            news = asyncio.ensure_future(kernel.advance(kernel.work, gather=False))
            idle = 0
            try:
                while kernel.outcome is None and not self._wants_dispatch(kernel, idle):
                    done, _ = await asyncio.wait(
                        {news, *self.in_flight}, return_when=asyncio.FIRST_COMPLETED, timeout=_LOOK_SECONDS
                    )
                    idle = 0 if done else idle + 1
                    self._drop_done(done - {news})
                    if news in done:
                        allowance -= await self._take_up(kernel, news.result(), allowance)
                        news = asyncio.ensure_future(kernel.advance(kernel.work, gather=False))
            except KernelError:
                pass  # the cell's own node will see to it; what is in flight is paid for, and kept
            finally:
                news.cancel()
                await asyncio.gather(news, return_exceptions=True)
        await self.finish()

    def _wants_dispatch(self, kernel: Kernel, idle: int) -> bool:
        """Whether the cell waits for what no task of this wave will give it.

        Tasks that have not begun may be waiting for this one to end (LangGraph's `max_concurrency`): so when nothing
        has moved for a while, and no sibling runs, it ends.
        """
        if self.in_flight or not kernel.waiting:
            return False
        siblings = kernel.siblings
        return siblings.all_ended or (not siblings.running and idle >= _IDLE_LOOKS)

    async def _take_up(self, kernel: Kernel, ids: list[str], allowance: int) -> int:
        """Starts those new calls that are plain and fit; the others wait for the next `dispatch`."""
        calls = {id: kernel.waiting[id] for id in ids if id in kernel.waiting}
        known = await self.tree.replies(list(calls))
        kernel.deliver(known)
        calls = {id: call for id, call in calls.items() if id not in known}
        self.tree.log.asks(asked_by(self.state, self.depth), calls)
        decided = decide(
            calls, self.depth, self.settings.limits, [models.name_of(self.model)], models.window_of(self.model)
        )
        await refuse(kernel, self.tree, decided.refused)
        checked = {id for id in decided.plain if calls[id].kind == "sub"}
        kernel.deferred.update(decided.nested, checked)
        taken: list[str] = []
        for group in groups(calls, [id for id in decided.plain if id not in checked]):
            if await self._fits(kernel, group, allowance - len(taken)):
                taken += group
        self.start({id: asked_of(kernel, id) for id in taken})
        return len(taken)

    async def _fits(self, kernel: Kernel, group: list[str], allowance: int) -> bool:
        """Reserves calls that were made together, or refuses them, or leaves them to the next `dispatch`."""
        # While a deferred call waits only for this wave to end, nothing may keep the wave going.
        draining = bool(kernel.deferred) and kernel.siblings.all_ended
        step = self.settings.approve_above
        approved = await self.tree.approved(step) if step is not None else Approval()
        if not draining and len(group) <= allowance and self._affordable(kernel, group, approved):
            verdict = reserve(kernel, group, self.tree, self.settings, self.depth, approved.calls)
            if verdict == "reserved":
                return True
            if isinstance(verdict, Reply):
                await refuse(kernel, self.tree, dict.fromkeys(group, verdict))
                return False
        kernel.deferred.update(group)
        return False

    def _affordable(self, kernel: Kernel, group: list[str], approved: Approval) -> bool:
        """Whether calls come to no more than a human has approved, as far as is known while others are in flight."""
        if approved.cost is None:
            return True
        cost = cost_of(kernel, group, self.settings, self.depth) or 0.0
        return self.tree.ledger.cost_so_far() + cost <= approved.cost

    async def _one(self, id: str, asked: Asked) -> None:
        try:
            reply, spent = await self._answer(asked)
            await self.tree.record(id, reply, spent)
        except GraphInterrupt:
            if self.alone:
                raise
            await self._ask_alone(id)
            return
        finally:
            self.tree.ledger.release(id)
        self._deliver({id: reply})
        self._leave_to_verify([id])
        self.show_progress()

    async def _ask_alone(self, id: str) -> None:
        """Leaves a tool that asks a human to a task of its own.

        LangGraph matches answers to the interrupts of one task by their order, which calls in parallel do not have.
        """
        await self.tree.note_asked(id)
        if self.kernel is not None:
            self.kernel.deferred.add(id)

    async def _answer(self, asked: Asked) -> tuple[Reply, Spent | None]:
        """Lets those answer whom a call of this kind goes to."""
        answer = self.answered_by.get(asked["kind"])
        if answer is None:
            told = prompts.NOBODY_ANSWERS.format(kind=asked["kind"])
            return Reply(error="SubCallError", message=told), None
        try:
            return await self.tree.in_time(answer(asked)) if asked["kind"] == "tool" else await answer(asked)
        except NoRoom as no_room:
            return without_room(no_room, self.tree, NOTHING), None

    def _leave_to_verify(self, ids: Iterable[str]) -> None:
        """Notes answered attempts. The cell gets them from `verify`: the last one ends the wave."""
        self.to_check.update(self.unchecked.pop(id) for id in ids if id in self.unchecked)
        if self.kernel is not None and not self.unchecked:
            self.kernel.deferred.update(self.to_check)

    def _deliver(self, replies: dict[str, Reply]) -> None:
        if self.kernel is not None:
            self.kernel.deliver(replies)

    def show_progress(self, *, at_once: bool = False) -> None:
        show_progress(self.tree, self.state["run"], self.depth, at_once=at_once)

    def cancel(self) -> None:
        for task in self.in_flight:
            task.cancel()
