"""Fault injection: a host or a kernel killed at any moment changes nothing, and nothing paid for is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

import crash_program
from conftest import kernels
from crash_program import ANSWER, CANDIDATES, QUESTION, ROOT, TEXT, THREADS, TOGETHER, Task, sub
from model_server import Answer, ModelServer, by_model, scripted

pytestmark = pytest.mark.slow

POINTS = 30
AT_ONCE = 3


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_program"])
    return context


@pytest.fixture(params=["sqlite", "postgres"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "threads.sqlite")
    else:
        yield request.getfixturevalue("postgres")


def on_record(home: Path) -> set[str]:
    """The replies that are kept, each the text of one; no two calls of this run get the same."""
    kept = [path for kind in ("reply", "turn") for path in home.glob(f"run/*/{kind}/*") if "~" not in path.name]
    return {json.loads(path.read_bytes())["text"] for path in kept}


def wasted(server: ModelServer, killed: float, kept: set[str]) -> str:
    """What was paid for twice, or had not been kept when it was used, if anything; `kept` is the record at the kill.

    No clock says how long a reply takes to the record: what has been asked since does.
    """
    again = [r.prompt for r in server.seen if r.arrived > killed and r.reply in kept]
    before = [r for r in server.seen if r.arrived <= killed]
    rest = sum(r.prompt in CANDIDATES[TOGETHER:] for r in before)
    nested = any(r.model == "sub" and len(r.messages) > 1 for r in before)
    together = sum(f"<{prompt}>" in kept for prompt in CANDIDATES[:TOGETHER])
    one_by_one = sum(f"<{prompt}>" in kept for prompt in CANDIDATES[TOGETHER:])
    used = len(CANDIDATES) - TOGETHER if nested else rest - THREADS
    if again or (rest and together < TOGETHER) or one_by_one < used:
        return f"asked again: {again}; of {TOGETHER} kept {together}, of {used} kept {one_by_one}"
    return ""


def kill_host_at(point: float, number: int, saver: str, tmp_path: Path, processes: Any) -> str:
    """Kills a run `point` seconds after it began, goes on with it, and says what was wrong ("" for nothing)."""
    home = tmp_path / f"home{number}"
    with ModelServer(by_model({"root": ROOT, "sub": sub})) as server:
        own = saver.replace("threads", f"threads{number}")
        result = tmp_path / f"result{number}"
        task = {
            "base_url": server.base_url,
            "home": str(home),
            "saver": own,
            "thread": f"t{number}",
            "result": str(result),
        }
        first = processes.Process(target=crash_program.run, args=(Task(**task, resume=False),))
        first.start()
        time.sleep(point)
        first.kill()
        killed = time.monotonic()
        first.join()
        kept = on_record(home)
        second = processes.Process(target=crash_program.run, args=(Task(**task, resume=True),))
        second.start()
        second.join(150)
        try:
            if second.exitcode != 0 or not result.exists():
                return f"killed at {point:.2f} s: the resume ended with {second.exitcode}"
            out = json.loads(result.read_text())
            if out["answer"] != ANSWER or out["stop_reason"] != "answered" or out["warnings"]:
                return f"killed at {point:.2f} s: {out}"
            if waste := wasted(server, killed, kept):
                return f"killed at {point:.2f} s: {waste}"
            return ""
        finally:
            second.kill()
            second.join()


def points(seed: int, longest: float) -> list[float]:
    """Moments spread over the whole run, one drawn from each of its `POINTS` equal parts."""
    drawn = random.Random(seed)
    return [(n + drawn.random()) * longest / POINTS for n in range(POINTS)]


@pytest.mark.timeout(1800)
def test_a_host_killed_at_any_moment_goes_on_in_a_new_process(saver: str, tmp_path: Path, processes: Any) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = list(
            pool.map(lambda p: kill_host_at(p[1], p[0], saver, tmp_path, processes), enumerate(points(7, 4.0)))
        )
    assert [w for w in wrong if w] == []


async def kill_kernel_at(point: float, number: int, saver: str, home: Path) -> str:
    """Kills every kernel of this process `point` seconds after a run began, and says what was wrong."""
    with ModelServer(by_model({"root": ROOT, "sub": sub})) as server:
        task = Task(server.base_url, str(home), saver, f"k{number}", "", False)
        async with crash_program.saver_of(saver) as checkpointer:
            await checkpointer.setup()
            config = {"configurable": {"thread_id": task.thread}}
            running = asyncio.create_task(
                task.graph(checkpointer).ainvoke({"question": QUESTION, "context": TEXT}, config)
            )
            await asyncio.sleep(point)
            killed, kept = time.monotonic(), on_record(home)
            for pid in kernels():
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(pid, signal.SIGKILL)
            out = await running
        if out["answer"] != ANSWER or out["stop_reason"] != "answered" or out["warnings"]:
            return f"kernel killed at {point:.2f} s: {out['answer']} {out['stop_reason']} {out['warnings']}"
        if waste := wasted(server, killed, kept):
            return f"kernel killed at {point:.2f} s: {waste}"
    return ""


@pytest.mark.timeout(1800)
async def test_a_kernel_killed_at_any_moment_is_rebuilt(
    saver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = []
    for number, point in enumerate(points(11, 2.5)):
        home = tmp_path / f"home{number}"
        monkeypatch.setenv("RLM_GRAPH_HOME", str(home))
        wrong.append(await kill_kernel_at(point, number, saver, home))
    assert [w for w in wrong if w] == []


async def test_a_reply_is_on_record_while_others_of_its_batch_are_awaited(scene: Any, home: Path) -> None:
    kept: list[bool] = []

    def all_kept() -> bool:
        kept[:] = [{"0", "1", "2"} <= on_record(home)]
        return kept[0]

    cell = "```repl chunk\nanswer['content'] = ''.join(llm_query_batched(list('012w'))); answer['ready'] = True\n```"
    s = scene(scripted(cell), lambda r: Answer(r.prompt, until=all_kept if r.prompt == "w" else None))
    rlm = s.rlm(checkpointer=InMemorySaver())
    out = await rlm.ainvoke({"question": QUESTION, "context": TEXT}, {"configurable": {"thread_id": "1"}})
    assert (out["answer"], kept) == ("012w", [True])


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of the tests' own, on a Unix socket, where PostgreSQL is installed."""
    pytest.importorskip("langgraph.checkpoint.postgres", reason="langgraph-checkpoint-postgres is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []
    bin = found[-1] if found else Path(shutil.which("initdb") or "/nowhere/initdb").parent
    if not (bin / "initdb").exists():
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    from postgres_server import serve

    yield from serve(bin, tmp_path_factory.mktemp("postgres"))
