"""Ending what a synchronous run has begun below it: that runs in threads, which nobody can cancel from outside.

An asynchronous run needs none of this: there, cancelling reaches all that it awaits.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType


@dataclass(slots=True)
class _Run:
    tasks: set[asyncio.Task[object]] = field(default_factory=set)
    stopped: bool = False


_runs: dict[str, _Run] = {}
_of_main: set[str] = set()
"""Those of them that the main thread waits for."""
_lock = threading.RLock()  # a signal's handler may come while it is held


def begin(run: str) -> None:
    """Lets `stop` reach the nodes of a run, until its `end`."""
    with _lock:
        _runs[run] = _Run()


def end(run: str) -> None:
    """Forgets a run that has come to its end."""
    with _lock:
        _runs.pop(run, None)


@contextmanager
def heeding(run: str) -> Iterator[None]:
    """What a node of a run does may be stopped.

    Raises:
        CancelledError: The run has been stopped.
    """
    task = asyncio.current_task()
    with _lock:
        known = _runs.get(run)
        if known is not None and known.stopped:
            raise asyncio.CancelledError
        if known is not None and task is not None:
            known.tasks.add(task)
    try:
        yield
    finally:
        with _lock:
            if known is not None and task is not None:
                known.tasks.discard(task)


def stop(run: str) -> None:
    """Cancels what the nodes of a run do, and has it begin no other."""
    with _lock:
        known = _runs.get(run)
        if known is None:
            return
        known.stopped = True
        tasks = list(known.tasks)
    for task in tasks:
        with suppress(RuntimeError):  # its loop has just ended
            task.get_loop().call_soon_threadsafe(task.cancel)


def heed_ctrl_c(run: str) -> None:
    """Has Ctrl-C stop a run whose nodes are about to work in threads of LangGraph's: that waits for them to end.

    Only in the main thread, where Ctrl-C comes, and only where nobody else sees to it.
    """
    if _in_main_thread() and _raises(signal.getsignal(signal.SIGINT)):
        begin(run)
        _of_main.add(run)
        signal.signal(signal.SIGINT, _stop_first)


def need_not_heed(run: str) -> None:
    """The threads have ended: what `heed_ctrl_c` did is undone."""
    if run in _of_main and _in_main_thread():
        end(run)
        _of_main.discard(run)
        if not _of_main and signal.getsignal(signal.SIGINT) is _stop_first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop_first(number: int, frame: FrameType | None) -> None:
    for run in list(_of_main):
        stop(run)
    signal.default_int_handler(number, frame)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _raises(handler: object) -> bool:
    """Whether a handler does what Python's own does: that of `asyncio.Runner` is there while a loop runs."""
    of_asyncio = isinstance(getattr(getattr(handler, "func", None), "__self__", None), asyncio.Runner)
    return of_asyncio or handler in (signal.default_int_handler, _stop_first)
