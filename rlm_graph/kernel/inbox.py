"""What a running cell has to say, on its way from the background loop to whoever waits, on whichever loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from ..errors import KernelError
from ..state import Call, Done, Waiting

_QUIET_SECONDS = 0.004
_GATHER_SECONDS = 0.040


@dataclass(frozen=True, slots=True)
class Failure:
    """The kernel is gone, and why."""

    message: str
    cause: str


class Inbox:
    """Calls not reported yet, and the end. Thread-safe.

    What is taken is taken in the waiter's own coroutine with no await behind it, so a waiter that is cancelled
    has taken nothing.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls: list[Call] = []
        self._arrived = 0
        self._end: Done | Failure | None = None
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = set()

    def put(self, calls: Sequence[Call]) -> None:
        """Adds calls; ignored after the end."""
        with self._lock:
            if self._end is not None:
                return
            self._calls.extend(calls)
            self._arrived += len(calls)
        self._wake()

    def end(self, end: Done | Failure) -> None:
        """Ends the cell. A failure replaces any end, nothing replaces a failure."""
        with self._lock:
            if isinstance(self._end, Failure) or (self._end is not None and isinstance(end, Done)):
                return
            self._end = end
            self._calls.clear()
        self._wake()

    @property
    def ended(self) -> bool:
        return self._end is not None

    async def wait(self, *, gather: bool) -> Waiting | Done:
        """Waits for calls or the end; see `Session.wait`."""
        while True:
            await self._news()
            if gather:
                await self._quiet()
            found = self._take()
            if found is not None:
                return found

    def _take(self) -> Waiting | Done | None:
        with self._lock:
            if isinstance(self._end, Failure):
                raise KernelError(self._end.message, cause=self._end.cause)
            if self._end is not None:
                return self._end
            if not self._calls:
                return None  # another waiter was faster
            calls, self._calls = tuple(self._calls), []
            return Waiting(calls)

    async def _quiet(self) -> None:
        """Waits until calls stop arriving close together."""
        until = time.monotonic() + _GATHER_SECONDS
        while not self.ended and time.monotonic() < until:
            seen = self._arrived
            await asyncio.sleep(_QUIET_SECONDS)
            if self._arrived == seen:
                return

    async def _news(self) -> None:
        loop = asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._calls or self._end is not None:
                return
            waiter = (loop, news)
            self._waiters.add(waiter)
        try:
            await news
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _wake(self) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, set()
        for loop, news in waiters:
            # A loop that was closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, news)


def _settle(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)
