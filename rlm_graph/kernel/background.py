"""One event loop per process, in one daemon thread, on which all kernel I/O lives.

Callers come from any thread and any loop; what is theirs stays there, and only frames and sockets are here.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from .memory import Watch

T = TypeVar("T")


class Worker:
    """A daemon thread that runs blocking functions one after another, and never ends.

    Linux kills a child that asked for it when the *thread* that forked it ends, so kernels are started here. And
    unlike an executor it still works while the interpreter shuts down.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._jobs.get()()

    def do(self, job: Callable[[], None]) -> None:
        """Runs a function that never fails on the thread."""
        self._jobs.put(job)

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function on the thread and awaits its result."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            loop.call_soon_threadsafe(settle, result, error)

        self.do(job)
        return await done


@dataclass(frozen=True)
class Background:
    """The loop and the threads of this process, all there from the start: at its exit no thread can be started."""

    pid: int
    loop: asyncio.AbstractEventLoop
    spawner: Worker
    sweeper: Worker
    watcher: Worker

    @cached_property
    def memory(self) -> Watch:
        return Watch(self.watcher.do)

    @cached_property
    def sockets(self) -> zmq.asyncio.Context:
        context = zmq.asyncio.Context()
        context.setsockopt(zmq.LINGER, 0)
        return context

    def submit(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Starts work here; gives a future of the *caller's* loop. Cancelling that future does not stop the work."""
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))
        future.add_done_callback(_look_at)
        return asyncio.shield(future)


def _look_at(future: asyncio.Future[Any]) -> None:
    """Takes notice of an error: who was cancelled asks for none, and asyncio would print what nobody asked for."""
    if not future.cancelled():
        future.exception()


_lock = threading.Lock()
_current: Background | None = None


def background() -> Background:
    """Gives this process' background, starting it at the first need; a forked child gets its own."""
    global _current
    with _lock:
        if _current is None or _current.pid != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(loop,), name="rlm-kernels", daemon=True).start()
            workers = [Worker(f"rlm-kernel-{name}") for name in ("spawner", "sweeper", "watcher")]
            _current = Background(os.getpid(), loop, *workers)
        return _current


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _unlock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)
