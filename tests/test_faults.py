"""Fault injection: a host or a kernel killed at any moment changes nothing, and nothing paid for is asked again."""

from __future__ import annotations

import asyncio
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

import crash_program
from conftest import kernels
from crash_program import ANSWER, QUESTION, ROOT, TEXT, Task, sub
from model_server import ModelServer, by_model

pytestmark = pytest.mark.slow

POINTS = 30
AT_ONCE = 3
HARD = 0.3
"""Seconds within which a reply that the server has sent may still be on its way to the record."""


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


def asked_again(server: ModelServer, killed: float) -> list[str]:
    """Prompts asked after the kill although their reply had been sent well before it."""
    paid = {(r.model, str(r.messages)) for r in server.seen if r.sent is not None and r.sent < killed - HARD}
    return [r.prompt for r in server.seen if r.arrived > killed and (r.model, str(r.messages)) in paid]


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
        second = processes.Process(target=crash_program.run, args=(Task(**task, resume=True),))
        second.start()
        second.join(60)
        try:
            if second.exitcode != 0 or not result.exists():
                return f"killed at {point:.2f} s: the resume ended with {second.exitcode}"
            out = json.loads(result.read_text())
            if out["answer"] != ANSWER or out["stop_reason"] != "answered" or out["warnings"]:
                return f"killed at {point:.2f} s: {out}"
            if again := asked_again(server, killed):
                return f"killed at {point:.2f} s: asked again: {again}"
            return ""
        finally:
            second.kill()
            second.join()


def points(seed: int, longest: float) -> list[float]:
    """Moments spread over the whole run, one drawn from each of its `POINTS` equal parts."""
    drawn = random.Random(seed)
    return [(n + drawn.random()) * longest / POINTS for n in range(POINTS)]


@pytest.mark.timeout(600)
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
            killed = time.monotonic()
            for pid in kernels():
                os.kill(pid, signal.SIGKILL)
            out = await running
        if out["answer"] != ANSWER or out["stop_reason"] != "answered" or out["warnings"]:
            return f"kernel killed at {point:.2f} s: {out['answer']} {out['stop_reason']} {out['warnings']}"
        if again := asked_again(server, killed):
            return f"kernel killed at {point:.2f} s: asked again: {again}"
    return ""


@pytest.mark.timeout(600)
async def test_a_kernel_killed_at_any_moment_is_rebuilt(saver: str, home: Path) -> None:
    wrong = [await kill_kernel_at(p, n, saver, home) for n, p in enumerate(points(11, 2.5))]
    assert [w for w in wrong if w] == []


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
