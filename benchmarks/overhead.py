"""What rlm-graph costs beside the models: one table of figures, their thresholds, and `rlms` on the same task.

`make bench`, or `python benchmarks/overhead.py --quick` to see that it works. Every figure is the median of some runs.
The sub-models are `tests/model_server.py` in its own process, behind `ChatOpenAI`, and a model that only sleeps in this
process. Beside each stands its floor: `ainvoke` of the same prompts, as many at once, without rlm-graph.
"""

# mypy: disable-error-code="import-not-found,attr-defined,no-untyped-def,no-untyped-call"
from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from pydantic import Field, SecretStr
from rich import box
from rich.console import Console
from rich.table import Table

from rlm_graph import Limits, create_rlm
from rlm_graph.kernel import pool
from rlm_graph.store import FolderStore

SERVER = Path(__file__).resolve().parents[1] / "tests" / "model_server.py"
sys.path.append(str(SERVER.parent))
from model_server import spread  # noqa: E402

SLOTS = 64
SAVERS = ("no saver", "SQLite")
PROMPT = "Which items does part {} name?"
MOST_SECONDS = 900
LIMITS = Limits(max_calls=100_000, max_breadth=100_000, max_turns=1_000, max_concurrency=SLOTS)
PROBE = "```repl probe\nsize = len(context)\nprint(size)\n```"
READY = "```repl compose\nanswer['content'] = str(size)\nanswer['ready'] = True\n```"


@dataclass(frozen=True, slots=True)
class Load:
    """Sub-calls that one cell makes: in one `llm_query_batched`, or one by one from a pool of `threads`."""

    calls: int
    latency: float = 0.0
    jitter: float = 0.0
    threads: int = 0

    @property
    def name(self) -> str:
        varying = f"0-{self.jitter * 1000:.0f} ms" if self.jitter else "no latency"
        kind = f"{self.latency * 1000:.0f} ms" if self.latency else varying
        return f"{self.calls:,} × {kind}, {f'{self.threads} threads' if self.threads else 'one batch'}"

    @property
    def prompts(self) -> list[str]:
        return [PROMPT.format(i) for i in range(self.calls)]

    @property
    def ideal(self) -> float:
        """Seconds that so many slots need for these latencies, taken in order."""
        slots = [0.0] * (self.threads or SLOTS)
        for prompt in self.prompts:
            heapq.heapreplace(slots, slots[0] + self.latency + self.jitter * spread(prompt))
        return max(slots)

    @property
    def cell(self) -> str:
        prompts = f"prompts = [{PROMPT!r}.format(i) for i in range({self.calls})]"
        ask = "llm_query_batched(prompts)"
        if self.threads:
            ask = f"list(futures.ThreadPoolExecutor({self.threads}).map(llm_query, prompts))"
            prompts = f"from concurrent import futures\n{prompts}"
        return f"{prompts}\ngot = {ask}\nanswer['content'] = str(sum(map(bool, got)))\nanswer['ready'] = True"


class Model(BaseChatModel):
    """A model of this process: sleeps, then says the reply of this turn (the last one for ever)."""

    replies: tuple[str, ...] = ("ok",)
    latency: float = 0.0
    jitter: float = 0.0
    spans: list[tuple[float, float]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "benchmark"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        turn = sum(message.type == "ai" for message in messages)
        usage = {"input_tokens": 8, "output_tokens": 1, "total_tokens": 9}
        reply = AIMessage(self.replies[min(turn, len(self.replies) - 1)], usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=reply)])

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        asked = time.perf_counter()
        if self.latency or self.jitter:
            await asyncio.sleep(self.latency + self.jitter * spread(messages[-1].text))
        result = self._generate(messages)
        self.spans.append((asked, time.perf_counter()))
        return result


@contextmanager
def server(latency: float = 0.0, jitter: float = 0.0, reply: str = "ok") -> Iterator[str]:
    """Runs the tests' model server as its own process and gives its base URL."""
    options = ["--latency", str(latency), "--jitter", str(jitter), "--reply", reply]
    process = subprocess.Popen([sys.executable, str(SERVER), *options], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int((process.stdout or sys.stdin).readline())}/v1"
    finally:
        process.kill()
        process.wait()


@dataclass(slots=True)
class Run:
    """One question that was asked: when it began, the CPU that it took, when its kernel stood and each node ended."""

    began: float
    cpu: float
    kernel: float = 0.0
    ends: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0
    answer: str = ""
    saved: int = 0


async def run(root: BaseChatModel, sub: BaseChatModel, *, saver: bool, context: Any = "text " * 200) -> Run:
    """Asks one question of a new graph with a new store."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlm-bench-")))
        base = await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(folder / "db"))) if saver else None
        store = FolderStore(folder / "store")
        rlm = create_rlm(root, sub, limits=LIMITS, direct_below=0, checkpointer=base, content_store=store)
        found, start = Run(time.perf_counter(), time.process_time()), pool.start_session

        async def timed(*args: Any, **more: Any) -> Any:
            session = await start(*args, **more)
            found.kernel = time.perf_counter()
            return session

        stack.callback(setattr, pool, "start_session", start)
        pool.start_session = timed
        question: Any = {"question": "How many?", "context": context}
        async for update in rlm.astream(question, {"configurable": {"thread_id": "1"}} if saver else {}):
            found.ends.update(dict.fromkeys(update, time.perf_counter()))
            found.answer = (update.get("compose") or {}).get("answer") or found.answer
        found.ended, found.cpu = time.perf_counter(), time.process_time() - found.cpu
        if base is not None:
            await base.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            found.saved = (folder / "db").stat().st_size
        return found


async def fan_out(load: Load, sub: BaseChatModel, *, saver: bool) -> Run:
    found = await run(Model(replies=(f"{PROBE}\n```repl chunk\n{load.cell}\n```",)), sub, saver=saver)
    if found.answer != str(load.calls):
        raise RuntimeError(f"{load.name}: {found.answer} answers of {load.calls}")
    return found


async def alone(load: Load, model: BaseChatModel) -> tuple[float, float]:
    """Seconds, and those of CPU, that the model takes for these prompts without rlm-graph."""
    gate = asyncio.Semaphore(load.threads or SLOTS)

    async def one(prompt: str) -> None:
        async with gate:
            await model.ainvoke(prompt)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(one, load.prompts))
    return time.perf_counter() - began, time.process_time() - cpu


async def turns(replies: tuple[str, ...], *, saver: bool) -> float:
    """The median root turn: from the root's reply to its next question. The first starts the kernel: left out."""
    root = Model(replies=replies)
    await run(root, Model(), saver=saver)
    return median(asked - answered for (_, answered), (asked, _) in list(pairwise(root.spans))[1:])


@dataclass(slots=True)
class Row:
    """One figure; `value` and `limit` are of one unit. What has no limit is there to compare with."""

    figure: str
    threshold: str
    limit: float | None
    value: float
    measured: str = ""
    floor: str = ""
    rlms: str = ""
    goes: str = ""

    @property
    def verdict(self) -> str:
        return "" if self.limit is None else "met" if self.value <= self.limit else "MISSED"


class Bench:
    """Measures the figures, one method for each kind, and keeps their rows."""

    def __init__(self, runs: int, rlms: str) -> None:
        self.runs, self.rlms = runs, rlms
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.figure}: {row.measured} {row.verdict}", file=sys.stderr)

    async def medians(self, kinds: Mapping[str, Callable[[], Awaitable[Any]]]) -> dict[str, list[Any]]:
        """The results of some runs of each kind, taken in turns, so that a busy minute of the machine hits all."""
        results: dict[str, list[Any]] = {kind: [] for kind in kinds}
        for _ in range(self.runs):
            for kind, measure in kinds.items():
                gc.collect()
                results[kind].append(await measure())
        return results

    async def sub_calls(self, load: Load, some: Load | None = None) -> None:
        """A fan-out against what the latencies alone would take; `some`: the load for ChatOpenAI."""
        http = some or load
        with server(load.latency, load.jitter) as url:
            beside = "" if http.threads else rlms_of(self.rlms, http.cell, url, 1)
            if not isinstance(beside, str):
                beside = f"{beside[0]:.2f} s, {beside[0] / http.calls * 1000:.2f} ms a call"
            chat = ChatOpenAI(model="sub", base_url=url, api_key=SecretStr("none"), max_retries=0)
            await self._sub_calls(http, "ChatOpenAI", chat, beside)
            await self._sub_calls(load, "in-process", Model(latency=load.latency, jitter=load.jitter), "")

    async def _sub_calls(self, load: Load, kind: str, model: BaseChatModel, beside: str) -> None:
        scale, unit = (load.ideal, "×") if load.ideal else (load.calls / 1000, "ms a call")
        limits = (1.15, 1.25) if load.ideal else (1.5, 4.0) if kind == "in-process" else (None, None)
        ways = {saver: partial(fan_out, load, model, saver=saver == "SQLite") for saver in SAVERS}
        await alone(Load(2 * SLOTS), model)  # opens the connections
        found = await self.medians({"alone": partial(alone, load, model), **ways})
        least, least_cpu = map(median, zip(*found.pop("alone"), strict=True))
        for (saver, runs), limit in zip(found.items(), limits, strict=True):
            walls = [r.ends["chunk"] - r.ends["probe"] for r in runs]
            wall, whole, cpu = median(walls), median(r.ended - r.began for r in runs), median(r.cpu for r in runs)
            row = Row(f"{load.name}, {kind}, {saver}", "", limit, wall / scale, rlms=beside)
            row.threshold = f"≤ {limit} {unit}{f' {load.ideal:.2f} s' if load.ideal else ''}" if limit else ""
            row.measured = f"{wall / scale:.2f} {unit} = {wall:.2f} s (best {min(walls):.2f}, whole run {whole:.2f})"
            row.floor = f"{least / scale:.2f} {unit}; CPU a call {least_cpu / load.calls * 1000:.2f} ms, "
            row.floor += f"ours {(cpu - least_cpu) / load.calls * 1000:+.2f} ms"
            row.goes = f"latency {load.ideal:.2f} s, client {least - load.ideal:.2f}, rlm-graph {wall - least:.2f}"
            self.add(row)

    async def root_turn(self, number: int) -> None:
        replies = (*(f"```repl probe\nsize = {n} * 2\nprint(size)\n```" for n in range(number)), READY)
        with server() as url:
            beside = rlms_of(self.rlms, "size = 21 * 2\nprint(size)", url, number)
        official = beside if isinstance(beside, str) else f"{beside[1] * 1000:.1f} ms"
        ways = {saver: partial(turns, replies, saver=saver == "SQLite") for saver in SAVERS}
        for (saver, found), limit in zip((await self.medians(ways)).items(), (15.0, None), strict=True):
            value, told = median(found) * 1000, f"≤ {limit:.0f} ms" if limit else ""
            self.add(Row(f"a root turn, p50 of {number}, {saver}", told, limit, value, f"{value:.1f} ms", "", official))

    async def large_file(self, megabytes: int) -> None:
        """A large file as context against one of 1 MB; it must come first, as a process' peak never sinks."""
        root = Model(replies=(PROBE, READY))
        with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
            small, large = (written(Path(folder) / f"{size}.txt", size) for size in (1, megabytes))
            little, before = await run(root, Model(), saver=True, context=small), peak()
            found = (await self.medians({"": partial(run, root, Model(), saver=True, context=large)}))[""]
        name, grew, saved = f"{megabytes:,} MB file", (peak() - before) / 1e6, found[-1].saved
        cell, load = median(r.ends["probe"] - r.kernel for r in found), median(r.ends["load"] - r.began for r in found)
        took = f"{cell:.2f} s (`load` before it {load:.2f} s)"
        self.add(Row(f"{name}: first cell after the kernel's start", "≤ 2 s", 2.0, cell, took))
        self.add(Row(f"{name}: the host grows by", "< 50 MB", 50.0, grew, f"{grew:.0f} MB"))
        sizes = f"{saved / little.saved:.2f} × = {saved / 1000:.0f} kB"
        self.add(Row(f"{name}: checkpoints against 1 MB", "≤ 1.05 ×", 1.05, saved / little.saved, sizes))


def written(file: Path, megabytes: int) -> Path:
    """A file of mixed ASCII, no line twice in a megabyte."""
    lines = (f"{i:07} the {i % 7}. item, of {i * 7919 % 10007} pages;" for i in range(30_000))
    block = "\n".join(lines).encode()[:999_990]
    with file.open("wb") as out:
        out.writelines(b"%s\n%08d\n" % (block, number) for number in range(megabytes))
    return file


def peak() -> int:
    """Bytes that this process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rlms_of(python: str, code: str, sub_url: str, number: int) -> tuple[float, float] | str:
    """Seconds of `rlms`' longest cell and median root turn, or why not; its root says `number` times: run `code`."""
    with server(reply=f"```repl\n{code}\n```") as root_url, tempfile.TemporaryDirectory(prefix="rlm-bench-") as home:
        inside = f"{inspect.getsource(rlms_inside)}\nrlms_inside({root_url!r}, {sub_url!r}, {number})"
        run = partial(subprocess.run, [python, "-c", inside], capture_output=True, text=True, timeout=MOST_SECONDS)
        try:
            ended = run(cwd=home, env={"PATH": os.environ["PATH"], "HOME": home})
        except (OSError, subprocess.TimeoutExpired) as error:
            return type(error).__name__
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["failed"])[-1]
        return "not installed" if "No module named 'rlm'" in last else last[:60]
    return tuple[float, float](json.loads(ended.stdout.splitlines()[-1]))


def rlms_inside(root_url: str, sub_url: str, turns: int) -> None:
    """Runs where `rlms` is installed, without this module: it needs nothing from around it."""
    import itertools
    import json
    import statistics
    import time

    from rlm import RLM
    from rlm.core.lm_handler import LMHandler
    from rlm.environments.ipython_repl import IPythonREPL

    def timed(owner, name):
        spans, function = [], getattr(owner, name)

        def call(*args, **more):
            began = time.perf_counter()
            value = function(*args, **more)
            spans.append((began, time.perf_counter()))
            return value

        setattr(owner, name, call)
        return spans

    asked, cells = timed(LMHandler, "completion"), timed(IPythonREPL, "execute_code")
    root, sub = ({"model_name": "any", "base_url": url, "api_key": "none"} for url in (root_url, sub_url))
    kernel = {"environment": "ipython", "environment_kwargs": {"kernel_mode": "subprocess"}, "max_iterations": turns}
    models = {"backend": "openai", "backend_kwargs": root, "other_backends": ["openai"], "other_backend_kwargs": [sub]}
    RLM(**models, **kernel).completion("text " * 200, root_prompt="How many?")
    between = [after[0] - before[1] for before, after in itertools.pairwise(asked)] or [0.0]
    print(json.dumps([max(end - began for began, end in cells), statistics.median(between)]))


async def measure_all(bench: Bench, only: str, quick: bool) -> None:
    calls, none, some, number, size = (100, 500, 200, 5, 20) if quick else (1_000, 10_000, 2_000, 50, 1_000)
    figures: dict[str, Callable[[], Awaitable[None]]] = {
        "file": partial(bench.large_file, size),
        "fixed": partial(bench.sub_calls, Load(calls, latency=0.2)),
        "varying": partial(bench.sub_calls, Load(calls, jitter=0.4)),
        "threads16": partial(bench.sub_calls, Load(calls, jitter=0.4, threads=16)),
        "threads64": partial(bench.sub_calls, Load(calls, jitter=0.4, threads=64)),
        "none": partial(bench.sub_calls, Load(none), Load(some)),
        "turn": partial(bench.root_turn, number),
    }
    await run(Model(replies=(PROBE, READY)), Model(), saver=True)  # imports, caches
    for name, measure in figures.items():
        if not only or name in only.split(","):
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    await measure()
            except TimeoutError:
                bench.add(Row(name, "", 0.0, 1.0, f"not done in {MOST_SECONDS} s"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints what rlm-graph costs beside the models.")
    parser.add_argument("--quick", action="store_true", help="small numbers, one run each: shows only that it works")
    parser.add_argument("--runs", type=int, default=3, help="runs of each figure, of which the median counts")
    parser.add_argument("--only", default="", help="some of fixed,varying,threads16,threads64,none,turn,file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    parser.add_argument("--rlms-python", default=sys.executable, metavar="PATH", help="a Python that has rlms")
    args = parser.parse_args()
    bench = Bench(1 if args.quick else args.runs, args.rlms_python)
    asyncio.run(measure_all(bench, args.only, args.quick))
    table = Table("figure", "threshold", "measured", "", "floor: the model alone", "rlms", box=box.MARKDOWN)
    for row in bench.rows:
        table.add_row(row.figure, row.threshold, row.measured, row.verdict, row.floor, row.rlms)
    console = Console(width=240)
    console.print(table, f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    for row in (row for row in bench.rows if row.verdict == "MISSED"):
        console.print(f"MISSED: {row.figure}: {row.goes or row.measured}")
    if args.json:
        args.json.write_text(json.dumps([{**asdict(row), "verdict": row.verdict} for row in bench.rows], indent=1))


if __name__ == "__main__":
    main()
