"""From a journal to a kernel: a live one that has run exactly this journal, else a new one that runs it again.

The journal is the truth and the kernel a cache of it: any kernel may be ended at any time, and is. Kernels are keyed by
run id, never by a checkpoint's namespace.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from langgraph.errors import GraphBubbleUp

from rlm_graph.errors import KernelError
from rlm_graph.kernel.background import background
from rlm_graph.kernel.kernel import Kernel, Replies, Work
from rlm_graph.kernel.session import KernelOptions, Session, start_session

MOST = 32
"""Kernels that live at once in this process, before the one that was idle longest makes room."""

IDLE_SECONDS = 600.0
"""How long the kernel of an interrupted run is kept."""

ORPHAN_SECONDS = 15.0
"""How long a kernel is kept that no node holds, of a run that has no thread and so cannot be resumed."""


@dataclass(frozen=True, slots=True)
class _Starting:
    """A session that was asked for before it is needed."""

    session: concurrent.futures.Future[Session]
    since: float
    parent: str | None
    """The run whose end makes it needless, beside its own."""

    def give_up(self) -> None:
        """Ends the session as soon as it has started: nobody wants it any more."""
        self.session.add_done_callback(_end_quietly)


def _end_quietly(started: concurrent.futures.Future[Session]) -> None:
    if not started.cancelled() and started.exception() is None:
        started.result().close_soon()


_PLACE_SECONDS = 0.05

_kernels: dict[str, Kernel] = {}
_places: set[object] = set()
"""Kernels that are being started, each with its place among the `MOST`."""
_starting: dict[str, _Starting] = {}
_held: Counter[str] = Counter()
_deaths: Counter[tuple[str, int]] = Counter()
_given_up: set[tuple[str, int, str | None]] = set()
"""Cells, by run, number and code, that are not to run again."""
_lock = threading.Lock()
_sweeping: asyncio.TimerHandle | None = None


class Holding:
    """A node's hold on a run, and on the kernel that it works with."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.kernel: Kernel | None = None

    def take(self, kernel: Kernel | None) -> None:
        """Holds this kernel from now on, and lets go of another."""
        with _lock:
            if self.kernel is not None:
                self.kernel.holders -= 1
                self.kernel.touched = time.monotonic()
            self.kernel = kernel
            if kernel is not None:
                kernel.holders += 1

    def drop(self) -> None:
        """Ends what the run has here: the kernel that is held, else those that nobody holds."""
        with _lock:
            mine = [k for k in _kernels.values() if k.run == self.run and not k.holders]
            starting = _no_longer_wanted(self.run)
        for kernel in [self.kernel] if self.kernel is not None else mine:
            drop_kernel(kernel)
        for each in starting:
            each.give_up()


@asynccontextmanager
async def holding(run: str) -> AsyncIterator[Holding]:
    """Keeps a run's kernel from being taken for idle; ends it when what is inside fails or is cancelled.

    An interrupt is no failure: it leaves the kernel for the resume.
    """
    hold = Holding(run)
    with _lock:
        _held[run] += 1
    try:
        yield hold
    except GraphBubbleUp:
        raise
    except BaseException:
        hold.drop()
        raise
    finally:
        hold.take(None)
        with _lock:
            _held[run] -= 1
            if not _held[run]:
                del _held[run]


def prepare(run: str, options: KernelOptions, *, parent: str | None = None) -> None:
    """Starts a session for a run that will need one soon, so that its first cell need not wait for it.

    Args:
        run: The run, which nobody else will get the session of.
        options: Its kernel's bounds.
        parent: The run whose end makes the session needless, if it has not been taken by then.
    """
    with _lock:
        if run in _starting or _living() >= MOST:
            return
        future = asyncio.run_coroutine_threadsafe(start_session(options, name=run[:12]), background().loop)
        _starting[run] = _Starting(future, time.monotonic(), parent)
    background().loop.call_soon_threadsafe(_sweep_later)


def _no_longer_wanted(run: str) -> list[_Starting]:
    """Takes out what was started for a run or for those below it; under the lock."""
    return [_starting.pop(key) for key, each in list(_starting.items()) if run in (key, each.parent)]


def _living() -> int:
    """Kernels that live, or are being started; under the lock."""
    return sum(kernel.session.alive for kernel in _kernels.values()) + len(_places) + len(_starting)


async def _session(run: str, options: KernelOptions, place: object) -> Session:
    """The session that was started for this run, else a new one, as soon as one more may live."""
    starting = await _take_place(place, run)
    if starting is None:
        return await start_session(options, name=run[:12])
    try:
        return await asyncio.wrap_future(starting.session)
    except asyncio.CancelledError:
        starting.give_up()
        raise


def live_kernel(key: str) -> Kernel | None:
    """The kernel of this key, if it lives in this process."""
    kernel = _kernels.get(key)
    return kernel if kernel is not None and kernel.session.alive else None


async def kernel_for(
    hold: Holding, work: Work, options: KernelOptions, store: Any, replies: Replies, *, lasting: bool
) -> Kernel:
    """The kernel for this work, held: a live one that serves, else a new one with the journal replayed.

    Branches of one thread may run at the same time: each has a kernel of its own.

    Raises:
        KernelError: It did not start, or died.
        ContextError: The context has changed since it was taken in.
    """
    with _lock:
        serving = (k for k in _kernels.values() if k.run == work.run and not k.holders and k.serves(work))
        kernel = next(serving, None)
        if kernel is not None:
            kernel.holders += 1  # nobody may take it between here and `take`
    if kernel is not None:
        hold.take(kernel)
        with _lock:
            kernel.holders -= 1
        return kernel
    place = object()
    try:
        kernel = Kernel(work.run, await _session(work.run, options, place), lasting=lasting)
        with _lock:
            _places.discard(place)
            _kernels[kernel.key] = kernel
    finally:
        with _lock:
            _places.discard(place)
    hold.take(kernel)
    background().loop.call_soon_threadsafe(_sweep_later)
    await kernel.replay(work, store, replies)
    return kernel


async def kernel_that(
    has_worked: Callable[[Kernel], Awaitable[None]],
    hold: Holding,
    work: Work,
    options: KernelOptions,
    store: Any,
    replies: Replies,
    *,
    lasting: bool,
) -> Kernel:
    """The kernel for this work, held, once `has_worked` has brought its cell to where it is wanted.

    One that was killed from outside, or made room for others, is rebuilt and the cell begun again; a cell under which
    it is killed a second time is taken for the cause.

    Raises:
        KernelError: It did not start (cause `start`), or the cell ended it.
    """
    while True:
        try:
            kernel = await kernel_for(hold, work, options, store, replies, lasting=lasting)
            await has_worked(kernel)
            return kernel
        except KernelError as error:
            made_room = hold.kernel is not None and hold.kernel.made_room
            hold.drop()
            hold.take(None)
            from_outside = error.cause in {"signal", "start"} and died(work.run, work.index) < 2
            if not made_room and not from_outside:
                raise


async def close_run(run: str) -> None:
    """Ends the run's kernels, also one that is only starting, and waits until they are gone."""
    with _lock:
        starting = _no_longer_wanted(run)
        mine = [k for k in _kernels.values() if k.run == run and not k.holders]
        for kernel in mine:
            del _kernels[kernel.key]
        for key in [k for k in _deaths if k[0] == run]:
            del _deaths[key]
        _given_up.difference_update([cell for cell in _given_up if cell[0] == run])
    for each in starting:
        each.give_up()
        with suppress(KernelError):
            await (await asyncio.wrap_future(each.session)).close()
    for kernel in mine:
        await kernel.session.close()


def drop_kernel(kernel: Kernel, *, to_make_room: bool = False) -> None:
    """Ends a kernel without waiting: of a run that was cancelled or failed, or one that makes room for others."""
    kernel.made_room = kernel.made_room or to_make_room
    with _lock:
        _kernels.pop(kernel.key, None)
    kernel.session.close_soon()


def give_up(kernel: Kernel) -> None:
    """Ends the cell that a kernel runs, for good, and the kernel with it."""
    if kernel.work is not None:
        with _lock:
            _given_up.add((kernel.run, kernel.work.index, kernel.work.cell))
    drop_kernel(kernel)


def is_given_up(work: Work) -> bool:
    """Whether the cell that is to run was ended for good."""
    return (work.run, work.index, work.cell) in _given_up


def died(run: str, cell: int) -> int:
    """Notes that a kernel died under a cell, and says how often now."""
    with _lock:
        _deaths[run, cell] += 1
        return _deaths[run, cell]


async def _take_place(place: object, run: str) -> _Starting | None:
    """Waits until one more kernel may live, and gives what was started for this run.

    Room is made by the one that was idle longest, else by one that is only being started, else by one that only waits.
    """
    while True:
        with _lock:
            # The run's own was counted when it was started.
            if run in _starting or _living() < MOST:
                _places.add(place)
                return _starting.pop(run, None)
            idle = [k for k in _kernels.values() if not k.holders]
            early = None if idle or not _starting else _starting.popitem()[1]
            idle = idle or [k for k in _kernels.values() if k.waiting]
            oldest = min(idle, key=lambda k: k.touched, default=None)
        if early is not None:
            early.give_up()
        elif oldest is not None:
            drop_kernel(oldest, to_make_room=True)
        else:
            await asyncio.sleep(_PLACE_SECONDS)


def _sweep_later() -> None:
    global _sweeping
    if _sweeping is None:
        _sweeping = background().loop.call_later(ORPHAN_SECONDS / 3, _sweep)


def _sweep() -> None:
    """Ends kernels that nobody has held for too long. Runs on the kernels' own loop while there are any."""
    global _sweeping
    _sweeping = None
    now = time.monotonic()
    with _lock:
        idle = [
            kernel
            for kernel in _kernels.values()
            if not kernel.holders and now - kernel.touched > (IDLE_SECONDS if kernel.lasting else ORPHAN_SECONDS)
        ]
        late = [run for run, s in _starting.items() if not _held[run] and now - s.since > ORPHAN_SECONDS]
        unwanted = [_starting.pop(run) for run in late]
    for kernel in idle:
        drop_kernel(kernel, to_make_room=True)
    for starting in unwanted:
        starting.give_up()
    if _kernels or _starting:
        _sweep_later()


def _forget_parent() -> None:
    """A forked child has none of its parent's kernels, and nobody who would release the lock."""
    global _lock, _sweeping
    _lock, _sweeping = threading.Lock(), None
    for each in (_kernels, _places, _starting, _held):
        each.clear()


os.register_at_fork(after_in_child=_forget_parent)
