"""From a journal to a kernel: a live one that has run exactly this journal, else a new one that runs it again.

The journal is the truth and the kernel a cache of it. Kernels are keyed by run id, never by a checkpoint's namespace,
and each knows the digest of what it has run. While a cell runs the digest is void, and only the same cell may go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlm_graph import context
from rlm_graph.errors import KernelError
from rlm_graph.identity import NOTHING, call_id, content_hash, digest, extended
from rlm_graph.kernel.session import KernelOptions, Session, start_session
from rlm_graph.state import Call, Cell, Done, Phase, Reply, Source, Waiting

Replies = Callable[[Sequence[str]], Awaitable[dict[str, Reply]]]
"""Looks up the replies on record of some call ids."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel is needed for: a run, its journal, and the cell that is to run next.

    Attributes:
        run: Run id.
        journal: The cells that have ended.
        sources: The contexts of the thread, by the cells' `context`; the last is the present one.
        cell: Code of the cell that is running or next; None when none is.
        phase: Its phase.
        question: Which of the thread's questions it works for.
        model: Hash of the model that answers its calls, and its window in tokens where known.
        window: Tokens that model can be given.
    """

    run: str
    journal: Sequence[Cell]
    sources: Sequence[Source]
    cell: str | None
    phase: Phase
    question: int
    model: str
    window: int | None

    @property
    def index(self) -> int:
        return len(self.journal)

    @property
    def digest(self) -> str:
        return digest(self.journal, self.sources)


class Kernel:
    """A live session and what it has run."""

    def __init__(self, run: str, session: Session) -> None:
        self.run = run
        self.session = session
        self.waiting: dict[str, Call] = {}
        """Calls of the running cell that have no reply yet, by call id."""
        self.asked: list[str] = []
        """Call ids of the running cell, in the order in which they came."""
        self.failed: set[str] = set()
        self.refused: set[str] = set()
        self.deferred: set[str] = set()
        """Those of them that only another `dispatch` can let go."""
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
        fits = self._digest == work.digest and self._running in (None, work.cell)
        return fits and self.session.alive

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
        self.waiting, self.asked, self.outcome = {}, [], None
        self.failed, self.refused, self.deferred = set(), set(), set()
        self._payloads.clear()
        facts = {"phase": work.phase, "window": work.window, "reset_answer": fresh}
        self._take(await self.session.run(work.index, work.cell, facts=facts), work)

    async def advance(self, work: Work, *, gather: bool = True) -> list[str]:
        """Waits for what is new: returns the ids of calls not seen before, or sets `outcome`."""
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
            if reply.error == "BudgetExceeded":
                self.refused.add(id)
            elif reply.error is not None:
                self.failed.add(id)
        if numbered:
            self.session.give(numbered)

    def take_outcome(self, work: Work) -> Done:
        """The ended cell's outcome; the kernel has now run the journal with this cell added."""
        assert self.outcome is not None and work.cell is not None
        outcome, self.outcome, self._running = self.outcome, None, None
        self._digest = extended(self._digest, work.cell, work.sources[-1]["id"])
        return outcome

    def _take(self, event: Waiting | Done, work: Work) -> list[str]:
        if isinstance(event, Done):
            self.outcome = event
            self.waiting.clear()
            return []
        return [self._identify(call, work) for call in event.calls]

    def _identify(self, call: Call, work: Work) -> str:
        payload = content_hash([call.kind, call.prompt, call.context, call.model, work.model])
        id = call_id(self.run, work.index, payload, self._payloads[payload])
        self._payloads[payload] += 1
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

    async def replay(self, work: Work, store: Any, replies: Replies) -> None:
        """Runs the journal again, its calls answered from the record.

        Raises:
            KernelError: With cause `diverged`, where a cell asks for what is not on record.
        """
        for position, cell in enumerate(work.journal):
            if cell["lost"]:
                continue
            past = _as_it_was(work, position)
            await self.begin(past, store)
            while self.outcome is None:
                new = list(self.waiting) or await self.advance(past)
                found = await replies(new)
                if len(found) < len(new):
                    raise KernelError(
                        f"cell {cell['index']} asked for {len(new) - len(found)} calls that are not on record when it "
                        "was run again",
                        cause="diverged",
                    )
                self.deliver(found)
            self.take_outcome(past)


_kernels: dict[str, Kernel] = {}


def live_kernel(run: str) -> Kernel | None:
    """The live kernel of a run, if this process has one."""
    kernel = _kernels.get(run)
    return kernel if kernel is not None and kernel.session.alive else None


async def kernel_for(work: Work, options: KernelOptions, store: Any, replies: Replies) -> Kernel:
    """The kernel for this work: the live one where it serves, else a new one with the journal replayed.

    Raises:
        KernelError: It did not start, died, or the replay asked for what is not on record.
        ContextError: The context has changed since it was taken in.
    """
    kernel = _kernels.get(work.run)
    if kernel is not None and kernel.serves(work):
        return kernel
    await close_kernel(work.run)
    kernel = Kernel(work.run, await start_session(options, name=work.run[:12]))
    _kernels[work.run] = kernel
    try:
        await kernel.replay(work, store, replies)
    except BaseException:
        drop_kernel(work.run)
        raise
    return kernel


async def close_kernel(run: str) -> None:
    """Ends the run's kernel, if it has one, and waits until it is gone."""
    if kernel := _kernels.pop(run, None):
        await kernel.session.close()


def drop_kernel(run: str) -> None:
    """Ends the run's kernel without waiting: for a run that was cancelled or failed."""
    if kernel := _kernels.pop(run, None):
        kernel.session.close_soon()


def _as_it_was(work: Work, position: int) -> Work:
    cell = work.journal[position]
    return Work(
        run=work.run,
        journal=work.journal[:position],
        sources=work.sources[: cell["context"] + 1],
        cell=cell["code"],
        phase=cell["phase"],
        question=cell["question"],
        model=work.model,
        window=work.window,
    )
