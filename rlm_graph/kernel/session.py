"""One kernel, as the rest of the package sees it: run a cell, get its calls, give answers, get its end."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ContextError, KernelError
from ..state import Done, Reply, Waiting
from .background import Background, background
from .bridge import Bridge
from .cell import RunningCell
from .gateway import Gateway, place
from .gateway_kernel import GatewayKernel, start_on_gateway
from .inbox import Failure
from .inside.bound import clean
from .inside.frames import TooLarge, row
from .intake import read_calls, read_report
from .isolation import CAGES, Isolation
from .live import LiveKernel
from .local import start_local

_START_SECONDS = 60.0
_BIND_SECONDS = 300.0
_GRACE_SECONDS = 5.0
_INTERRUPTS = 10
# A busy machine takes its time to tell of an end; a process that lives on has closed its bridge on purpose.
_EXIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """Bounds of one kernel.

    Attributes:
        cell_seconds: Computing time of one cell; the clock stops while the cell waits for answers.
        cell_output: Characters of output kept.
        kernel_memory: Bytes; 0 for no bound.
        isolation: What keeps its code from the rest of the machine.
    """

    cell_seconds: float = 120.0
    cell_output: int = 10_000
    kernel_memory: int = 4_000_000_000
    isolation: Isolation | Gateway = "auto"


async def start_session(options: KernelOptions, *, name: str) -> Session:
    """Starts a kernel.

    Raises:
        KernelError: it did not start.
        ValueError: `isolation` is none.
    """
    place(options.isolation)  # what is wrong with it is said before there is a session
    session = Session(options, name=name)
    starting = session._background.submit(session._start())
    try:
        await starting
    except BaseException:
        session.close_soon()
        raise
    return session


class Session:
    """A live kernel. Every method may be called from any thread and any event loop."""

    def __init__(self, options: KernelOptions, *, name: str) -> None:
        self.name = name
        self.options = options
        self.pid = 0
        self.uncaged_afar = False
        """Whether it runs on another machine, and in no cage there."""
        self._background: Background = background()
        self._loop = self._background.loop
        self._starting: asyncio.Task[LiveKernel] | None = None
        self._live: LiveKernel | None = None
        self._bridge = Bridge(self._receive, self._bridge_lost)
        self._cell: RunningCell | None = None
        self._giving = threading.Lock()
        self._given: list[tuple[RunningCell, int, Reply]] = []
        self._failure: Failure | None = None
        self._failed = asyncio.Event()
        self._doomed = asyncio.Event()
        """Set once an end is sure: it has failed, or its process has ended and the reason is on its way."""
        self._ready: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: asyncio.Task[None] | None = None
        _sessions.add(self)

    def __repr__(self) -> str:
        return f"Session({self.name!r}, pid={self.pid}, alive={self.alive})"

    @property
    def alive(self) -> bool:
        """True while the kernel can take a cell, or runs one."""
        return self._failure is None and self._live is not None and self._background.pid == os.getpid()

    async def bind(self, name: str, binding: dict[str, Any]) -> None:
        """Makes a variable from files; it is bound anew before every cell.

        Raises:
            ContextError: it cannot be made, with the reason.
            KernelError: the kernel is gone.
        """
        self._check()
        reason = await self._background.submit(self._bind(name, binding))
        if reason is not None:
            raise ContextError(f"`{name}` could not be loaded: {reason}")

    async def run(self, index: int, code: str, *, facts: dict[str, Any]) -> Waiting | Done:
        """Starts a cell, then waits as `wait` does.

        Args:
            index: The cell's number, under which tracebacks name it.
            code: Python, as IPython takes it.
            facts: `{"window": int | None, "reset_answer": bool, "tools": list, "dialect": bool}`, the last two where
                they are not as in `Work`.

        Raises:
            KernelError: the kernel is gone.
            RuntimeError: a cell still runs.
        """
        self._check()
        if self._cell is not None and not self._cell.inbox.ended:
            raise RuntimeError("a cell of this session still runs")
        cell = self._cell = RunningCell(index, self.options.cell_seconds, self._expired)
        self._loop.call_soon_threadsafe(lambda: self._task(self._run(cell, code, facts)))
        return await cell.inbox.wait(gather=True)

    async def wait(self, *, gather: bool = True) -> Waiting | Done:
        """Waits for what is new: calls not reported before, or the cell's end (which stays until the next `run`).

        A waiter that is cancelled loses nothing.

        Args:
            gather: Collect calls that arrive close together, for 40 ms at most; else return with the first.

        Raises:
            KernelError: the kernel is gone.
            RuntimeError: no cell was run.
        """
        if self._cell is None or self._background.pid != os.getpid():
            self._check()
            raise RuntimeError("no cell was run in this session")
        return await self._cell.inbox.wait(gather=gather)

    def give(self, answers: Mapping[int, Reply]) -> None:
        """Hands over answers by `Call.number`. Never blocks; numbers that nobody waits for are ignored."""
        cell = self._cell
        if cell is not None and self._failure is None and self._background.pid == os.getpid():
            with self._giving:
                first = not self._given
                self._given.extend((cell, number, reply) for number, reply in answers.items())
            if first:
                self._loop.call_soon_threadsafe(self._give_all)

    async def close(self) -> None:
        """Ends the kernel and removes everything that it had. Idempotent."""
        if self._background.pid == os.getpid():
            await self._background.submit(self._end(_CLOSED))

    def close_soon(self) -> None:
        """As `close`, not waited for."""
        if self._background.pid == os.getpid():
            self._close_future()

    def _close_future(self) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(self._end(_CLOSED), self._loop)

    def _check(self) -> None:
        if self._background.pid != os.getpid():
            raise KernelError("the session belongs to the process that this one was forked from", cause="closed")
        if self._failure is not None:
            raise KernelError(self._failure.message, cause=self._failure.cause)

    # Everything below runs on the background loop.

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self) -> None:
        self._ready = self._loop.create_future()
        starting = self._starting = self._loop.create_task(self._start_kernel())
        try:
            live = await asyncio.shield(starting)
            self._check()  # closed meanwhile: `_release` waits for the kernel, to end it
            self._live, self.pid = live, live.pid
            await live.connect(self._bridge, self._exited)
            self.uncaged_afar = isinstance(live, GatewayKernel) and live.means not in CAGES
            await asyncio.wait_for(asyncio.shield(self._ready), _START_SECONDS)
        except TimeoutError:
            await self._end(Failure(f"the kernel did not start within {_START_SECONDS:.0f} s", "start"))
        except KernelError as error:
            await self._end(Failure(str(error), error.cause))
        self._check()
        self._task(self._pump(live))

    async def _start_kernel(self) -> LiveKernel:
        isolation, memory = place(self.options.isolation), self.options.kernel_memory
        if isinstance(isolation, Gateway):
            return await start_on_gateway(isolation, memory)
        return await start_local(self._background, memory, isolation)

    async def _pump(self, live: LiveKernel) -> None:
        """Takes replies off the shell channel; what is not the reply to the running cell is dropped."""
        while True:
            message = await live.replied()
            cell = self._cell
            if cell is not None and message and message == cell.message:
                cell.replied = True
                self._settle(cell)

    def _receive(self, op: str, arg: Any) -> None:
        cell = self._cell
        if op == "hello":
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        elif op in ("calls", "some_calls") and cell is not None and cell.message and cell.done is None:
            # Before its code has gone out, a cell has no calls: these come from a thread of the last one's.
            self._calls(cell, arg, more=op == "some_calls")
        elif op == "report" and cell is not None and cell.done is None and _is_of(cell, arg):
            cell.done = read_report(arg, self.options.cell_output)
            self._settle(cell)

    def _calls(self, cell: RunningCell, arg: Any, *, more: bool) -> None:
        calls = cell.add(read_calls(arg), more=more)
        if cell.expired:
            self._give(cell, {call.number: _TOO_LATE for call in calls})

    def _give_all(self) -> None:
        """Hands over what was given since the last wake-up of the loop, as one frame and one write."""
        with self._giving:
            given, self._given = self._given, []
        if self._cell is not None:
            self._give(self._cell, {number: reply for cell, number, reply in given if cell is self._cell})

    def _give(self, cell: RunningCell, answers: dict[int, Reply]) -> None:
        if cell is self._cell and cell.done is None:
            known = cell.remove(answers)
            self._bridge.send_rows("answers", (_row(number, reply) for number, reply in known.items()))

    async def _bind(self, name: str, binding: dict[str, Any]) -> str | None:
        try:
            if self._live is None:
                raise ConnectionError("the kernel is gone")
            told = await self._live.deliver(binding)
            return await asyncio.wait_for(self._bridge.ask("bind", {"name": name, "binding": told}), _BIND_SECONDS)
        except ConnectionError:
            await self._after_bridge(None)
            await self._failed.wait()
        except TimeoutError:
            await self._end(Failure(f"loading `{name}` took more than {_BIND_SECONDS:.0f} s", "hang"))
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        self._check()
        return None

    async def _run(self, cell: RunningCell, code: str, facts: dict[str, Any]) -> None:
        if self._failure is not None or self._live is None:
            cell.inbox.end(self._failure or _CLOSED)
            return
        cell.start_clock()
        arg = {"index": cell.index, "facts": facts, "output": self.options.cell_output}
        with contextlib.suppress(ConnectionError):  # the end is told by those who watch for it
            await self._bridge.ask("cell", arg)
            content = {
                # In a string literal, the only place where a lone surrogate means something, its escape means the same.
                "code": clean(code),
                "silent": False,
                "store_history": False,
                "allow_stdin": False,
                "stop_on_error": False,
                "user_expressions": {},
            }
            cell.message = self._live.execute(content)

    def _settle(self, cell: RunningCell) -> None:
        """Ends the cell once both its report and its reply have come; the one must follow the other soon."""
        if cell.done is not None and cell.replied:
            cell.end()
        else:
            self._task(self._expect_rest(cell))

    async def _expect_rest(self, cell: RunningCell) -> None:
        received = -1
        while received != self._bridge.received and not cell.inbox.ended:
            received = self._bridge.received
            await asyncio.sleep(_GRACE_SECONDS)
        if not cell.inbox.ended:
            await self._end(Failure("the cell ended, but broke what reports its end", "hang"))

    def _expired(self, cell: RunningCell) -> None:
        self._task(self._interrupt(cell))

    async def _interrupt(self, cell: RunningCell) -> None:
        """Interrupts a cell that computed too long, and kills a kernel that does not heed it."""
        for _ in range(_INTERRUPTS):
            self._bridge.send("interrupt", None)
            await asyncio.sleep(_GRACE_SECONDS / _INTERRUPTS)
            if cell.inbox.ended:
                return
        seconds = self.options.cell_seconds
        await self._end(Failure(f"the cell computed for more than {seconds:g} s and could not be stopped", "hang"))

    def _bridge_lost(self, reason: str | None) -> None:
        if self._failure is None:
            self._task(self._after_bridge(reason))

    async def _after_bridge(self, reason: str | None) -> None:
        if reason is None:
            # As a rule the process is about to end, and its own end says why.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doomed.wait(), _EXIT_SECONDS)
            if self._doomed.is_set():
                return
            reason = "the kernel closed its bridge"
        await self._end(Failure(reason, "closed"))

    def _exited(self) -> None:
        self._doomed.set()
        if self._failure is None:
            self._task(self._after_exit())

    async def _after_exit(self) -> None:
        if self._live is None:
            return
        self._live.kill()
        error = await self._live.obituary(started=self._ready is not None and self._ready.done())
        await self._end(Failure(str(error), error.cause))

    async def _end(self, failure: Failure) -> None:
        """Ends the session, once; whoever comes later waits for the same end."""
        if self._failure is None:
            self._failure = failure
            self._failed.set()
            self._doomed.set()
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        if self._cell is not None and (failure is _CLOSED or not self._cell.inbox.ended):
            self._cell.inbox.end(self._failure if failure is not _CLOSED else failure)
        if self._ending is None:
            self._ending = self._loop.create_task(self._release())
        await asyncio.shield(self._ending)

    async def _release(self) -> None:
        """Ends the kernel and gives everything back that it had."""
        live = None
        if self._starting is not None:
            with contextlib.suppress(KernelError):
                live = await self._starting
        self._bridge.close()
        for task in self._tasks:
            task.cancel()
        if live is not None:
            await live.release()
        _sessions.discard(self)


_CLOSED = Failure("the session is closed", "closed")
_TOO_LATE = Reply(error="SubCallError", message="the cell ran out of time")
# A plain set: it is copied in one step, whatever other threads take out meanwhile. Whoever is in it is to be ended.
_sessions: set[Session] = set()


def _is_of(cell: RunningCell, report: Any) -> bool:
    return isinstance(report, dict) and report.get("index") == cell.index


def _row(number: int, reply: Reply) -> str:
    try:
        return row([number, reply.text, reply.error, reply.message])
    except TooLarge as error:
        return row([number, None, "SubCallError", str(error)])


def close_all() -> None:
    """Ends every session of this process, within a few seconds."""
    futures = [each._close_future() for each in list(_sessions) if each._background.pid == os.getpid()]
    concurrent.futures.wait(futures, timeout=5)


atexit.register(close_all)
