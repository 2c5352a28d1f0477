"""A live session, what it has run, and the calls that its running cell waits for."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlm_graph import checks, context
from rlm_graph.identity import NOTHING, call_id, content_hash, digest, extended
from rlm_graph.kernel.session import Session
from rlm_graph.state import Call, Cell, Done, Phase, Reply, Source, Waiting

Replies = Callable[[Sequence[str]], Awaitable[dict[str, Reply]]]
"""Looks up the replies on record of some call ids."""

_NOT_ON_RECORD = Reply(error="SubCallError", message="this call is not on record, and a replay asks nothing anew")


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel is needed for: a run, its journal, and the cell that is to run next.

    Attributes:
        run: Run id.
        depth: Depth of the RLM.
        index: Number of the cell that is running or next.
        journal: The cells that have ended.
        sources: The contexts of the thread, by the cells' `context`; the last is the present one.
        cell: Code of the cell that is running or next; None when none is.
        phase: Its phase.
        question: Which of the thread's questions it works for.
        model: Hash of the model that answers its calls.
        window: Tokens that model can be given, where known.
        retry: Hash of the model that is asked again where an answer is in doubt; None: the same.
        tools: What its code is told of the tools that it may call.
        dialect: Whether it finds the RLM's own names: those that ask models, and the answer.
    """

    run: str
    depth: int
    index: int
    journal: Sequence[Cell]
    sources: Sequence[Source]
    cell: str | None
    phase: Phase
    question: int
    model: str
    window: int | None
    tools: Sequence[Mapping[str, Any]] = ()
    dialect: bool = True
    retry: str | None = None

    @property
    def digest(self) -> str:
        return digest(self.journal, self.sources)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The next attempt at a structured ask that the running cell waits for.

    Attributes:
        id: Its own durable name, under which its reply is kept.
        number: How many there were before.
        again: Whether something was wrong with those: they were no mere first opinion.
        prompt: The task.
        context: What is asked about, and what was wrong before.
        so_far: What the cell would get if there were no further attempt.
    """

    id: str
    number: int
    again: bool
    prompt: str
    context: dict[str, Any]
    so_far: str


@dataclass(frozen=True, slots=True)
class Rerun:
    """A cell of the journal that ran again: how many calls it made, how many not on record, and what came of it."""

    index: int
    asked: int
    unknown: int
    done: Done


@dataclass(slots=True)
class Siblings:
    """The tasks of a wave beside its pump, as far as this process has seen them."""

    expected: int = 0
    started: int = 0
    ended: int = 0

    @property
    def running(self) -> int:
        return self.started - self.ended

    @property
    def all_ended(self) -> bool:
        return self.ended >= self.expected


_numbers = itertools.count()


class Kernel:
    """A live session and what it has run."""

    def __init__(self, run: str, session: Session, *, lasting: bool) -> None:
        self.run = run
        self.key = f"{run}/{next(_numbers)}"
        """Its name in this process: a run may have several, where branches of its thread run at the same time."""
        self.session = session
        self.holders = 0
        """Nodes that work with it now."""
        self.siblings = Siblings()
        self.lasting = lasting
        """Whether the run may go on after an interrupt or in another process: it has a thread."""
        self.made_room = False
        """Whether it was ended for another kernel's sake, or for idleness: no fault of its cell."""
        self.touched = time.monotonic()
        self.told: list[str] = []
        """Where a replay did not go as the journal says; taken by the node that tells the root."""
        self.waiting: dict[str, Call] = {}
        """Calls of the running cell that have no reply yet, by call id."""
        self.nth: dict[str, int] = {}
        """How many equal calls came before a waiting one in its cell."""
        self.asked: list[str] = []
        """Call ids of the running cell, in the order in which they came."""
        self.failed: set[str] = set()
        self.refused: set[str] = set()
        self.turned_away: Counter[int | str] = Counter()
        """Calls of the running cell that could not be made at all: how many, by group or call id."""
        self.deferred: set[str] = set()
        """Those of them that only another `dispatch` can let go."""
        self.attempts: dict[str, Attempt] = {}
        """What is to be asked next for each structured ask that waits, by call id."""
        self.checked: Counter[str] = Counter()
        """How many results of structured asks the running cell has got, and how they stood the check."""
        self.outcome: Done | None = None
        self.work: Work | None = None
        """What the running cell was begun for."""
        self._digest = NOTHING
        self._running: str | None = None
        """Code of the cell that has begun and whose outcome has not been taken."""
        self._payloads: Counter[str] = Counter()
        self._bound: dict[str, str] = {}
        self._question = -1

    def serves(self, work: Work) -> bool:
        """Whether this kernel has run exactly this journal, and may run or go on with the cell."""
        begun = self.work if self.busy else None
        same = begun is None or (begun.cell, begun.index) == (work.cell, work.index)
        return same and self._digest == work.digest and self.session.alive

    @property
    def busy(self) -> bool:
        """Whether a cell has begun and its outcome has not been taken."""
        return self._running is not None

    async def begin(self, work: Work, store: Any) -> None:
        """Starts the cell; from here on only the same cell may go on."""
        assert work.cell is not None
        await self._bind(work.sources, store)
        fresh = work.question != self._question
        self.work, self._running, self._question = work, work.cell, work.question
        self.waiting, self.nth, self.asked, self.outcome = {}, {}, [], None
        self.failed, self.refused, self.deferred = set(), set(), set()
        self.attempts, self.checked, self.turned_away = {}, Counter(), Counter()
        self._payloads.clear()
        facts: dict[str, Any] = {"window": work.window, "reset_answer": fresh}
        facts |= {"tools": list(work.tools), "dialect": work.dialect}
        self._take(await self.session.run(work.index, work.cell, facts=facts), work)

    async def advance(self, work: Work, *, gather: bool = True) -> list[str]:
        """Waits for what is new: returns the ids of calls not seen before, or sets `outcome`."""
        self.touched = time.monotonic()
        if self.outcome is not None:
            return []
        return self._take(await self.session.wait(gather=gather), work)

    def deliver(self, replies: Mapping[str, Reply]) -> None:
        """Gives replies to the cell, each to its own call."""
        numbered: dict[int, Reply] = {}
        for id, reply in replies.items():
            call = self.waiting.pop(id, None)
            if call is None:
                continue
            numbered[call.number] = reply
            self.deferred.discard(id)
            self.attempts.pop(id, None)
            failed = reply.error is not None
            if call.kind == "sub" and reply.text is not None:
                counted = checks.counts(reply.text)
                self.checked.update(counted)
                failed = checks.has_none(counted)
            if reply.error == "BudgetExceeded":
                self.refused.add(id)
            elif failed:
                self.failed.add(id)
        if numbered:
            self.session.give(numbered)

    def take_outcome(self, work: Work) -> Done:
        """The ended cell's outcome; the kernel has now run the journal with this cell added."""
        assert self.outcome is not None and work.cell is not None
        outcome, self.outcome, self._running = self.outcome, None, None
        self._digest = extended(self._digest, work.cell, work.sources[-1]["id"] if work.sources else NOTHING)
        return outcome

    def _take(self, event: Waiting | Done, work: Work) -> list[str]:
        if isinstance(event, Done):
            self.outcome = event
            self.waiting.clear()
            return []
        return [self._identify(call, work) for call in event.calls]

    def _identify(self, call: Call, work: Work) -> str:
        payload = payload_of(call, work.model, work.retry)
        nth = self._payloads[payload]
        id = call_id(self.run, work.index, payload, nth)
        self._payloads[payload] += 1
        self.nth[id] = nth
        self.waiting[id] = call
        self.asked.append(id)
        return id

    async def _bind(self, sources: Sequence[Source], store: Any) -> None:
        for number, source in enumerate(sources, start=1 - len(sources)):
            name = f"context_{number + len(sources) - 1}" if number else "context"
            if self._bound.get(name) != source["id"]:
                binding = await asyncio.to_thread(context.binding, source, store)
                await self.session.bind(name, binding)
                self._bound[name] = source["id"]

    async def replay(self, work: Work, store: Any, replies: Replies) -> list[Rerun]:
        """Runs the journal again, its calls answered from the record, and notes in `told` where it went another way."""
        reruns: list[Rerun] = []
        for position, cell in enumerate(work.journal):
            if not cell["lost"]:
                rerun = await self._again(_as_it_was(work, position), cell, store, replies)
                reruns.append(rerun)
                self.told += filter(None, [difference(cell, rerun)])
        return reruns

    async def _again(self, past: Work, cell: Cell, store: Any, replies: Replies) -> Rerun:
        await self.begin(past, store)
        unknown = 0
        while self.outcome is None:
            new = list(self.waiting) or await self.advance(past)
            found = await replies(new)
            unknown += len(new) - len(found)
            self.deliver({id: found.get(id, _NOT_ON_RECORD) for id in new})
        asked = len(self.asked)
        return Rerun(cell["index"], asked, unknown, self.take_outcome(past))


def payload_of(call: Call, model: str, retry: str | None) -> str:
    """Hash of what a call asks, the models that answer it included (see `Work`); a tool asks no model."""
    asked: Any = None if call.kind == "tool" else model
    if call.kind == "sub" and retry is not None:
        asked = [model, retry]
    return content_hash([call.kind, call.prompt, call.context, call.model, asked])


def difference(cell: Cell, rerun: Rerun) -> str | None:
    """In what way a cell went another way than the journal says, if it did."""
    if rerun.unknown:
        return f"cell {cell['index']} made {rerun.unknown} calls that it had not made before; they failed"
    if rerun.asked != cell["asked"]:
        return f"cell {cell['index']} made {rerun.asked} calls, and {cell['asked']} before"
    if (rerun.done.stdout, rerun.done.error) != (cell["stdout"], cell["error"]):
        return f"cell {cell['index']} printed something else than before"
    return None


def _as_it_was(work: Work, position: int) -> Work:
    """The work that the kernel was needed for when this cell of the journal ran."""
    cell = work.journal[position]
    return replace(
        work,
        index=cell["index"],
        journal=work.journal[:position],
        sources=work.sources[: cell["context"] + 1],
        cell=cell["code"],
        phase=cell["phase"],
        question=cell["question"],
    )
