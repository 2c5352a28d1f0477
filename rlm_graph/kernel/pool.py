"""From a journal to a kernel: a live one that has run exactly this journal, else a new one that runs it again.

The journal is the truth and the kernel a cache of it: any kernel may be ended at any time, and is. Kernels are keyed by
run id, never by a checkpoint's namespace.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
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

    def give_up(self) -> None:
        """Ends the session as soon as it has started: nobody wants it any more."""
        self.session.add_done_callback(_end_quietly)


def _end_quietly(started: concurrent.futures.Future[Session]) -> None:
    if not started.cancelled() and started.exception() is None:
        started.result().close_soon()


_kernels: dict[str, Kernel] = {}
_starting: dict[str, _Starting] = {}
_held: Counter[str] = Counter()
_deaths: Counter[tuple[str, int]] = Counter()
_lock = threading.Lock()
_sweeping: asyncio.TimerHandle | None = None


@asynccontextmanager
async def holding(run: str) -> AsyncIterator[None]:
    """Keeps the run's kernel from being taken for idle; ends it when what is inside fails or is cancelled.

    An interrupt is no failure: it leaves the kernel for the resume.
    """
    with _lock:
        _held[run] += 1
    try:
        yield
    except GraphBubbleUp:
        raise
    except BaseException:
        drop_kernel(run)
        raise
    finally:
        with _lock:
            _held[run] -= 1
            if not _held[run]:
                del _held[run]
            if kernel := _kernels.get(run):
                kernel.touched = time.monotonic()


def prepare(run: str, options: KernelOptions) -> None:
    """Starts a session for a run that will need one soon, so that its first cell need not wait for it."""
    future = asyncio.run_coroutine_threadsafe(start_session(options, name=run[:12]), background().loop)
    with _lock:
        _starting[run] = _Starting(future, time.monotonic())
    background().loop.call_soon_threadsafe(_sweep_later)


async def _session(run: str, options: KernelOptions) -> Session:
    with _lock:
        starting = _starting.pop(run, None)
    if starting is None:
        return await start_session(options, name=run[:12])
    try:
        return await asyncio.wrap_future(starting.session)
    except asyncio.CancelledError:
        starting.give_up()
        raise


def live_kernel(run: str) -> Kernel | None:
    """The live kernel of a run, if this process has one."""
    kernel = _kernels.get(run)
    return kernel if kernel is not None and kernel.session.alive else None


async def kernel_for(work: Work, options: KernelOptions, store: Any, replies: Replies, *, lasting: bool) -> Kernel:
    """The kernel for this work: the live one where it serves, else a new one with the journal replayed.

    Raises:
        KernelError: It did not start, or died.
        ContextError: The context has changed since it was taken in.
    """
    kernel = _kernels.get(work.run)
    if kernel is not None and kernel.serves(work):
        return kernel
    await _close(work.run)
    _make_room()
    kernel = Kernel(work.run, await _session(work.run, options), lasting=lasting)
    with _lock:
        _kernels[work.run] = kernel
    background().loop.call_soon_threadsafe(_sweep_later)
    try:
        await kernel.replay(work, store, replies)
    except BaseException:
        drop_kernel(work.run)
        raise
    return kernel


async def close_kernel(run: str) -> None:
    """Ends the run's kernel, also one that is only starting, and waits until it is gone."""
    with _lock:
        starting = _starting.pop(run, None)
    if starting is not None:
        starting.give_up()
        with suppress(KernelError):
            await (await asyncio.wrap_future(starting.session)).close()
    await _close(run)


async def _close(run: str) -> None:
    with _lock:
        kernel = _kernels.pop(run, None)
    if kernel is not None:
        await kernel.session.close()


def drop_kernel(run: str) -> None:
    """Ends the run's kernel without waiting: for a run that was cancelled or failed, or a kernel that makes room."""
    with _lock:
        kernel = _kernels.pop(run, None)
        starting = _starting.pop(run, None)
    if kernel is not None:
        kernel.session.close_soon()
    if starting is not None:
        starting.give_up()


def died(run: str, cell: int) -> int:
    """Notes that a kernel died under a cell, and says how often now."""
    with _lock:
        _deaths[run, cell] += 1
        return _deaths[run, cell]


def forget_deaths(run: str) -> None:
    """Forgets what was noted of an ended run."""
    with _lock:
        for key in [k for k in _deaths if k[0] == run]:
            del _deaths[key]


def _make_room() -> None:
    """Ends the kernel that was idle longest where too many live; one that only waits for answers may go as well."""
    with _lock:
        if len(_kernels) < MOST:
            return
        idle = [k for k in _kernels.values() if not _held[k.run]] or [k for k in _kernels.values() if k.waiting]
        oldest = min(idle, key=lambda k: k.touched, default=None)
    if oldest is not None:
        oldest.made_room = True
        drop_kernel(oldest.run)


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
            for run, kernel in _kernels.items()
            if not _held[run] and now - kernel.touched > (IDLE_SECONDS if kernel.lasting else ORPHAN_SECONDS)
        ]
        unwanted = [run for run, s in _starting.items() if not _held[run] and now - s.since > ORPHAN_SECONDS]
    for kernel in idle:
        kernel.made_room = True
        drop_kernel(kernel.run)
    for run in unwanted:
        drop_kernel(run)
    if _kernels or _starting:
        _sweep_later()
