"""One thread's Python: its kernel, the cells that ran there, and the replies that its tools gave.

The journal and the replies are the truth here too: a kernel that has died, or made room for others, is made again from
them, and no tool runs twice for it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphInterrupt
from langgraph.types import interrupt

from rlm_graph import prompts
from rlm_graph.errors import KernelError
from rlm_graph.identity import new_run
from rlm_graph.kernel import pool
from rlm_graph.kernel.isolation import UNCAGED_AFAR
from rlm_graph.kernel.kernel import Kernel, Work
from rlm_graph.kernel.session import KernelOptions
from rlm_graph.state import Cell, Done, Reply, Source
from rlm_graph.tools import UserTool, call_tool

AT_ONCE = 16
"""Tools of one run of code that are called at once."""


@dataclass(frozen=True, slots=True)
class PythonSettings:
    """What one tool that runs Python was asked for.

    Attributes:
        tools: What the code may call, by name.
        sources: The context, if there is one.
        store: Where it is kept.
        options: Bounds of a kernel.
        max_calls: Calls of tools that one run of code may make.
        threads: Where the tools of synchronous callers run.
    """

    tools: Mapping[str, UserTool]
    sources: Sequence[Source]
    store: Any
    options: KernelOptions
    max_calls: int
    threads: Executor


@dataclass(slots=True)
class Begun:
    """A cell that has begun and not ended: it computes, or a tool of its asks a human."""

    number: int
    asking: str | None = None
    """Call id of the tool whose question is out."""
    questions: Counter[str] = field(default_factory=Counter)
    """How many questions each call has put that is not on record yet."""
    answered: int = 0
    """Questions that calls on record had put: a resumed task gets its answers by order, so these come first."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a run of code, in words."""

    text: str
    failed: bool


class PythonThread:
    """The Python of one thread. Runs of code come one after another."""

    def __init__(self, settings: PythonSettings) -> None:
        self.run = new_run()
        self._settings = settings
        self._journal: list[Cell] = []
        self._replies: dict[str, Reply] = {}
        self._numbers = itertools.count()
        self._begun: dict[tuple[str, str], Begun] = {}
        """By LangGraph task and code: a task that is resumed after a question runs its code again."""
        self._last: concurrent.futures.Future[None] | None = None
        self._lock = threading.Lock()

    async def execute(self, code: str, config: RunnableConfig) -> Ran:
        """Runs code, once the runs before it have ended.

        Args:
            code: Python.
            config: The caller's configuration, for the tools that the code calls.

        Raises:
            KernelError: No kernel could be started.
            GraphInterrupt: A tool asks a human; called again with the same code, the run goes on.
        """
        key = str(config.get("configurable", {}).get("checkpoint_ns", "")), code
        async with self._turn():
            begun = self._begun.pop(key, None) or Begun(next(self._numbers))
            try:
                return await self._execute(code, begun, config)
            except GraphInterrupt:
                self._begun[key] = begun
                raise

    async def close(self) -> None:
        """Ends the kernel and forgets what it has run."""
        async with self._turn():
            self._journal, self._replies, self._begun = [], {}, {}
            await pool.close_run(self.run)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One at a time, in the order in which they came, from whichever thread or event loop."""
        mine: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            before, self._last = self._last, mine
        try:
            if before is not None:
                await asyncio.shield(asyncio.wrap_future(before))
            yield
        finally:
            if before is None or before.done():
                mine.set_result(None)
            else:
                before.add_done_callback(lambda _: mine.set_result(None))

    async def _execute(self, code: str, begun: Begun, config: RunnableConfig) -> Ran:
        work = self._work(code, begun)
        settings = self._settings

        async def to_its_end(kernel: Kernel) -> None:
            if not kernel.busy:
                await kernel.begin(work, settings.store)
            await _Calling(self, kernel, work, begun, config).to_the_end()

        async with pool.holding(self.run) as hold:
            try:
                kernel = await pool.kernel_that(
                    to_its_end, hold, work, settings.options, settings.store, self.replies, lasting=True
                )
            except KernelError as error:
                if error.cause == "start":
                    raise
                told = prompts.lost(error, self._journal)
                self._note(code, begun.number, Done("", told, None, {}), asked=0, lost=True)
                return Ran(told, failed=True)
            if kernel.session.uncaged_afar:
                warnings.warn(UNCAGED_AFAR, stacklevel=1)
            news, kernel.told = kernel.told, []
            asked = len(kernel.asked)
            done = kernel.take_outcome(work)
        self._note(code, begun.number, done, asked=asked, lost=False)
        return Ran(_shown(done, news, first=begun.number == 0), failed=done.error is not None)

    def _work(self, code: str, begun: Begun) -> Work:
        return Work(
            run=self.run,
            depth=0,
            index=begun.number,
            journal=list(self._journal),
            sources=self._settings.sources,
            cell=code,
            phase="probe",
            question=0,
            model="",
            window=None,
            tools=[tool.spec for tool in self._settings.tools.values()],
            dialect=False,
        )

    def _note(self, code: str, number: int, done: Done, *, asked: int, lost: bool) -> None:
        self._journal.append(
            {
                "index": number,
                "turn": 0,
                "phase": "probe",
                "code": code,
                "stdout": done.stdout,
                "error": done.error,
                "context": len(self._settings.sources) - 1,
                "question": 0,
                "asked": asked,
                "failed": 0,
                "refused": 0,
                "calls": None,
                "report": {"vars": done.report.get("vars")},
                "lost": lost,
            }
        )

    async def replies(self, ids: Sequence[str]) -> dict[str, Reply]:
        """The replies on record among those of `ids`."""
        return {id: self._replies[id] for id in ids if id in self._replies}

    async def call(
        self, id: str, kernel: Kernel, begun: Begun, config: RunnableConfig, gate: asyncio.Semaphore
    ) -> None:
        """Calls the tool that a waiting call wants, keeps its reply and hands it over.

        Raises:
            GraphInterrupt: It asks a human.
        """
        call, settings = kernel.waiting[id], self._settings
        tool = settings.tools.get(call.prompt)
        if len(kernel.asked) > settings.max_calls:
            told = prompts.TOO_MANY_TOOLS.format(most=settings.max_calls)
            reply = Reply(error="BudgetExceeded", message=told)
        elif call.kind != "tool" or tool is None:
            reply = Reply(error="ToolError", message=prompts.NO_SUCH_TOOL.format(name=call.prompt[:60]))
        else:
            async with gate:
                reply = await call_tool(tool, call.context, id, config, settings.threads)
        self._replies[id] = reply
        begun.answered += begun.questions.pop(id, 0)
        kernel.deliver({id: reply})


class _Calling:
    """The calls of tools that one run of code has in flight."""

    def __init__(self, thread: PythonThread, kernel: Kernel, work: Work, begun: Begun, config: RunnableConfig) -> None:
        self.thread, self.kernel, self.work, self.begun, self.config = thread, kernel, work, begun, config
        self.in_flight: dict[asyncio.Task[None], str] = {}
        self.questions: dict[str, GraphInterrupt] = {}
        self.gate = asyncio.Semaphore(AT_ONCE)

    async def to_the_end(self) -> None:
        """Lets the cell go on until it has ended, and calls the tools that it wants.

        Raises:
            GraphInterrupt: Nothing is left to wait for but humans; one question is put at a time.
        """
        kernel = self.kernel
        for _ in range(self.begun.answered):
            interrupt(None)
        await self._go_on_with_the_one_that_asked()
        news = asyncio.ensure_future(kernel.advance(self.work, gather=False))
        try:
            while kernel.outcome is None:
                await self._call(list(kernel.waiting))
                if self.questions and not self.in_flight:
                    raise self._next_question()
                done, _ = await asyncio.wait({news, *self.in_flight}, return_when=asyncio.FIRST_COMPLETED)
                self._settle(done - {news})
                if news in done:
                    news.result()
                    news = asyncio.ensure_future(kernel.advance(self.work, gather=False))
        finally:
            news.cancel()
            for task in self.in_flight:
                task.cancel()
            await asyncio.gather(news, *self.in_flight, return_exceptions=True)

    async def _go_on_with_the_one_that_asked(self) -> None:
        """The answer that came belongs to the question that was put: its tool runs before any other may ask."""
        asked = self.begun.asking
        if asked is None:
            return
        while self.kernel.outcome is None and asked not in self.kernel.waiting:
            self.kernel.deliver(await self.thread.replies(list(self.kernel.waiting)))
            if self.kernel.waiting:
                break  # it is rebuilt, and went another way
            await self.kernel.advance(self.work)
        if asked in self.kernel.waiting:
            await self._call([asked])
            self._settle((await asyncio.wait(self.in_flight))[0])
            if asked in self.questions:
                raise self._next_question()
        self.begun.asking = None

    async def _call(self, ids: Sequence[str]) -> None:
        running = set(self.in_flight.values()) | set(self.questions)
        known = await self.thread.replies(ids)
        self.kernel.deliver(known)
        for id in ids:
            if id not in running and id not in known:
                calling = self.thread.call(id, self.kernel, self.begun, self.config, self.gate)
                self.in_flight[asyncio.create_task(calling)] = id

    def _settle(self, done: set[Any]) -> None:
        for task in done:
            id = self.in_flight.pop(task)
            try:
                task.result()
            except GraphInterrupt as question:
                self.questions[id] = question

    def _next_question(self) -> GraphInterrupt:
        asking = next(id for id in self.kernel.asked if id in self.questions)
        self.begun.asking = asking
        self.begun.questions[asking] += 1
        return self.questions[asking]


def _shown(done: Done, news: Sequence[str], *, first: bool) -> str:
    lines = [prompts.REBUILT.format(news=line) for line in news]
    if news:
        lines.append(prompts.CHECK_VARIABLES)
    if late := done.report.get("late", "").strip():
        lines.append(prompts.LATE.format(late=late))
    lines.append(done.stdout.rstrip("\n") if done.stdout.strip() else "" if done.error else prompts.PRINTED_NOTHING)
    if done.error:
        lines.append(done.error.rstrip("\n"))
        if first and "NameError" in done.error:
            lines.append(prompts.NEW_KERNEL)
    return "\n".join(filter(None, lines))
