"""Calls for answers, from any thread or event loop, all in flight together."""

from __future__ import annotations

import _thread
import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from .frames import row
from .wire import Wire


class SubCallError(RuntimeError):
    """A call got no answer.

    Attributes:
        results: What did arrive, in order; None where a call failed.
        errors: (position, message) of each that failed.
    """

    def __init__(
        self,
        message: str = "",
        results: Sequence[Any] = (None,),
        errors: Sequence[tuple[int, str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.results = list(results)
        self.errors = [(0, message)] if errors is None else list(errors)


class BudgetExceeded(SubCallError):
    """The run's limits do not allow the call."""


class PromptTooLong(SubCallError):
    """The prompt does not fit the model."""


class ToolError(SubCallError):
    """A tool failed."""


REFUSED = "Refused"
"""The error of a call that the model refused: a cell has it as any other failure, but its text was read."""

_ERRORS = (SubCallError, BudgetExceeded, PromptTooLong, ToolError)

for _class in _ERRORS:
    _class.__module__ = "builtins"  # so that tracebacks and reprs show the bare name

_TYPES = {each.__name__: each for each in _ERRORS}


@dataclass(frozen=True, slots=True)
class Request:
    """One call, checked and ready to be sent. `place`: where what it is about stands, where that is known."""

    kind: str
    prompt: str
    context: Any
    model: str | None
    place: list[Any] | None = None


class Batch:
    """Calls that were made together, and what has arrived for them.

    `wake` is called when the last is settled; maybe twice, as two threads may settle at once.
    """

    __slots__ = ("_settled", "failures", "results", "wake")

    def __init__(self, size: int, wake: Callable[[], None]) -> None:
        self.results: list[str | None] = [None] * size
        self.failures: dict[int, tuple[str, str]] = {}
        self.wake = wake
        self._settled: list[int] = []

    def settle(self, position: int, text: str | None, error: str | None, message: str) -> None:
        if error is None and text is not None:
            self.results[position] = text
        else:
            self.failures[position] = (error or "SubCallError", message or "no answer came")
        # Appending is atomic where counting down is not.
        self._settled.append(position)
        if len(self._settled) >= len(self.results):
            self.wake()

    def outcome(self) -> list[str]:
        """Gives the answers in order.

        Raises:
            SubCallError: one or more of the calls failed; the type says how.
        """
        if not self.failures:
            return self.results  # type: ignore[return-value]
        positions = sorted(self.failures)
        errors = [(position, self.failures[position][1]) for position in positions]
        kinds = {self.failures[position][0] for position in positions}
        name = "BudgetExceeded" if "BudgetExceeded" in kinds else kinds.pop() if len(kinds) == 1 else ""
        message = errors[0][1]
        if len(self.results) > 1:
            arrived = len(self.results) - len(errors)
            message = (
                f"{len(errors)} of {len(self.results)} calls failed; the first: {message}; "
                f"err.results holds the {arrived} answers (None where failed)"
            )
        raise _TYPES.get(name, SubCallError)(message, self.results, errors) from None


class Calls:
    """The calls in flight. Lock-free: an interrupt may strike a caller anywhere and must block nobody else."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self._numbers = count(1)
        self._groups = count(1)
        self._pending: dict[int, tuple[Batch, int, Request]] = {}
        self._open = False
        self.heard: Callable[[Request, bool], None] = _unheard
        """Told of each request that has ended, before its answer is handed over, and whether a model had got it."""

    def open(self) -> None:
        """Lets calls go: a cell starts."""
        self._open = True

    def shut(self) -> None:
        """Fails what is in flight and all that follows, as no cell runs any more."""
        self._open = False
        self._fail(list(self._pending))

    def settle(self, rows: Sequence[Sequence[Any]]) -> None:
        """Hands answers to those who wait for them."""
        for number, text, error, message in rows:
            waiting = self._pending.pop(number, None)
            if waiting is not None:
                batch, position, request = waiting
                self.heard(request, error == REFUSED or (error is None and text is not None))
                batch.settle(position, text, error, message)

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """Sends calls and blocks until all are answered."""
        if not requests:
            return []
        # A bare lock: waiting for one can be interrupted, and to release it never blocks the reader.
        gate = _thread.allocate_lock()
        gate.acquire()
        batch = self._send(requests, lambda: _release(gate))
        gate.acquire()
        return batch.outcome()

    async def ask_async(self, requests: Sequence[Request]) -> list[str]:
        """As `ask`, but awaits the answers on the running loop, whichever that is."""
        if not requests:
            return []
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def wake() -> None:
            with suppress(RuntimeError):  # its loop was closed: nobody waits
                loop.call_soon_threadsafe(_finish, done)

        batch = self._send(requests, wake)
        await done
        return batch.outcome()

    def _send(self, requests: Sequence[Request], wake: Callable[[], None]) -> Batch:
        wire = self.wire
        if wire is None or not wire.usable:
            raise RuntimeError("calls work in threads and in tasks, not in child processes")
        batch = Batch(len(requests), wake)
        group = next(self._groups)
        numbers = [next(self._numbers) for _ in requests]
        rows = [
            row([number, each.kind, each.prompt, each.context, each.model, group, each.place])
            for number, each in zip(numbers, requests, strict=True)
        ]
        for position, number in enumerate(numbers):
            self._pending[number] = (batch, position, requests[position])
        if self._open:
            wire.send_calls(rows)
        if not self._open:  # also where the cell has ended meanwhile
            self._fail(numbers)
        return batch

    def _fail(self, numbers: Sequence[int]) -> None:
        self.settle([(n, None, "SubCallError", "the cell ended before the answer came") for n in numbers])


def _unheard(request: Request, got: bool) -> None: ...


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _release(gate: _thread.LockType) -> None:
    with suppress(RuntimeError):  # released already
        gate.release()
