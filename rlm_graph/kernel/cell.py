"""A cell that runs, as the background loop sees it: its calls, its clock, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from ..state import Call, Done, Reply
from .inbox import Inbox
from .inside.frames import Malformed
from .intake import weigh

TIMEOUT = "Timeout:"
"""How the error of a cell begins that computed too long."""

_MOST_CALLS = 200_000
_MOST_CALL_BYTES = 2_000_000_000


class RunningCell:
    """One run of one cell. All but `inbox` belongs to the background loop.

    Args:
        index: The cell's number.
        seconds: Computing time that it may use; the clock stops while a call of its is unanswered.
        expire: Called when that is used up.
    """

    def __init__(self, index: int, seconds: float, expire: Callable[[RunningCell], None]) -> None:
        self.index = index
        self.inbox = Inbox()
        self.message = ""
        self.done: Done | None = None
        self.replied = False
        self.expired = False
        self._seconds = seconds
        self._expire = expire
        self._outstanding: dict[int, int] = {}
        self._coming: list[tuple[Call, int]] = []
        """Calls, with their weights, that others still belong to: a batch may be too large for one message."""
        self._weight = 0
        self._computed = 0.0
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, calls: Sequence[Call], *, more: bool = False) -> list[Call]:
        """Takes calls in, and makes known those that are all there, which stops the clock.

        Args:
            calls: What has come.
            more: Whether others follow that were made together with these: they stand or fall together.

        Returns:
            Those that are all there.

        Raises:
            Malformed: more than a host can be asked to hold.
        """
        for call in calls:
            weight = weigh(call)
            self._coming.append((call, weight))
            self._weight += weight
        if len(self._outstanding) + len(self._coming) > _MOST_CALLS or self._weight > _MOST_CALL_BYTES:
            raise Malformed(f"more than {_MOST_CALLS:,} calls or {_MOST_CALL_BYTES:,} bytes of them at once")
        if more:
            return []
        self._outstanding.update((call.number, weight) for call, weight in self._coming)
        there, self._coming = [call for call, _ in self._coming], []
        if there and not self.expired:
            self.stop_clock()
            self.inbox.put(there)
        return there

    def remove(self, answers: Mapping[int, Reply]) -> dict[int, Reply]:
        """Gives those answers that something waits for; with the last of them the clock goes on."""
        known = {number: reply for number, reply in answers.items() if number in self._outstanding}
        for number in known:
            self._weight -= self._outstanding.pop(number)
        if not self._outstanding:
            self.start_clock()
        return known

    def end(self) -> None:
        """Makes the end known to those who wait."""
        self.stop_clock()
        self._outstanding.clear()
        self._coming.clear()
        done = self.done
        if done is not None and self.expired:
            text = f"{TIMEOUT} the cell computed for more than {self._seconds:g} s and was stopped."
            error = f"{text}\n{done.error}" if done.error else text
            done = Done(done.stdout, error, done.answer, done.report)
        if done is not None:
            self.inbox.end(done)

    def start_clock(self) -> None:
        if self._since is None and not self.expired and not self.inbox.ended:
            self._since = time.monotonic()
            left = max(0.0, self._seconds - self._computed)
            self._timer = asyncio.get_running_loop().call_later(left, self._out_of_time)

    def stop_clock(self) -> None:
        if self._since is not None and self._timer is not None:
            self._computed += time.monotonic() - self._since
            self._timer.cancel()
            self._since = self._timer = None

    def _out_of_time(self) -> None:
        self._since = self._timer = None
        if not self.inbox.ended:
            self.expired = True
            self._expire(self)
