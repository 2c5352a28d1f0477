"""Fault injection: a host or a kernel killed at any moment changes nothing, and nothing paid for is asked again.

Moments are events that the model server sees, not times of a clock: a slow machine and a fast one are hit alike.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from langgraph.checkpoint.memory import InMemorySaver

import crash_program
from conftest import kernels
from crash_program import ANSWER, ASKED, CANDIDATES, QUESTION, ROOT, TEXT, THREADS, TOGETHER, Task, sub
from model_server import Answer, ModelServer, Record, Request, by_model, scripted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

POINTS = 30
AT_ONCE = 4
HARD = 0.3
"""Seconds within which a reply that the server has sent may still be on its way to the record, where cores are free."""
PATIENCE = 150.0


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        k: Requests and replies count from 0; -1 is the start of the process.
        kind: `held`: the k-th request has come, it and all later ones are held back, and the replies to those before
            have long been sent; `asked`: the k-th request has just come; `replied`: its reply, or the k-th in all, has
            just been sent; `between`: some time later.
        later: Seconds after the event.
    """

    k: int
    kind: Literal["held", "asked", "replied", "between"]
    later: float = 0.0


def moments(seed: int) -> list[Moment]:
    """Moments spread over the whole run: one drawn from each of the equal parts of what it asks."""
    drawn = random.Random(seed)
    kinds: list[Any] = ["held", "asked", "replied", "between"] * (POINTS // 4 + 1)
    drawn.shuffle(kinds)
    points = [int((n + drawn.random()) * (ASKED + 1) / POINTS) - 1 for n in range(POINTS)]
    spread = [(k, kind if k >= 0 else "between") for k, kind in zip(points, kinds, strict=False)]
    return [Moment(k, kind, drawn.uniform(0.01, 0.2) if kind == "between" else 0.0) for k, kind in spread]


def hard() -> float:
    """`HARD`, and as much longer as there are more processes here that want to run than cores."""
    return HARD * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Watched:
    """A model server that holds back what comes at a moment until the kill is done."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.hard = hard()
        self.killed = threading.Event()
        self.server = ModelServer(by_model({"root": self.answer, "sub": self.answer}))

    def answer(self, request: Request) -> Answer:
        said = (ROOT if request.model == "root" else sub)(request)
        answer = Answer(said) if isinstance(said, str) else said
        holds = self.moment.kind in ("held", "asked") and request.number >= self.moment.k
        return replace(answer, until=self.killed.is_set) if holds else answer

    def has_come(self) -> bool:
        seen, k = self.server.seen, self.moment.k
        if self.moment.kind in ("replied", "between"):
            return sum(record.sent is not None for record in seen) > k
        if self.moment.kind == "asked":
            return len(seen) > k
        before = time.monotonic() - self.hard - 0.05
        return len(seen) > k and all(record.sent is not None and record.sent < before for record in seen[:k])


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


def call(record: Record) -> tuple[str, str]:
    return record.model, str(record.messages)


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_program"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not give its path to the fork server
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(params=["sqlite", "postgres"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "threads.sqlite")
    else:
        yield request.getfixturevalue("postgres")


@dataclass(frozen=True)
class Outcome:
    """What a kill came to: whether it met a run at work, and what was wrong ("" for nothing)."""

    met: bool
    wrong: str


def kill_at(moment: Moment, victim: str, number: int, saver: str, tmp_path: Path, processes: Any) -> Outcome:
    """Begins a run in a process of its own, kills it or its kernels at a moment, and lets it go on to its end."""
    watched = Watched(moment)
    result, home = tmp_path / f"result{number}", tmp_path / f"home{number}"
    with watched.server as server:
        task = {
            "base_url": server.base_url,
            "home": str(home),
            "saver": saver.replace("threads", f"threads{number}"),
            "thread": f"{victim}{number}",
            "result": str(result),
        }
        run = processes.Process(target=crash_program.run, args=(Task(**task, resume=False),))
        run.start()
        try:
            deadline = time.monotonic() + PATIENCE
            while not watched.has_come() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(moment.later)
            met = run.is_alive() and not result.exists()
            if victim == "host":
                run.kill()
                killed = time.monotonic()
                run.join()
                met = met and run.exitcode == -signal.SIGKILL and not result.exists()
                kept = on_record(home)
            else:
                killed, kept = time.monotonic(), on_record(home)
                met = bool(kill_kernels_of(run.pid)) and met
            watched.killed.set()
            if victim == "host":
                run = processes.Process(target=crash_program.run, args=(Task(**task, resume=True),))
                run.start()
            run.join(PATIENCE)
            wrong = what_is_wrong(run.exitcode, result, watched, killed) or wasted(server, killed, kept)
            return Outcome(met, wrong and f"{victim} killed at {moment}: {wrong}")
        finally:
            watched.killed.set()
            run.kill()
            run.join()


def kill_kernels_of(host: int) -> set[int]:
    found = kernels(host)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)
    return found


def what_is_wrong(exitcode: int | None, result: Path, watched: Watched, killed: float) -> str:
    if exitcode != 0 or not result.exists():
        return f"the run ended with {exitcode}"
    out = json.loads(result.read_text())
    if out["answer"] != ANSWER or out["stop_reason"] != "answered" or out["warnings"]:
        return str(out)
    seen, moment = watched.server.seen, watched.moment
    paid = {call(r) for r in seen if r.sent is not None and r.sent < killed - watched.hard}
    if moment.kind == "held" and len(paid) != moment.k:
        return f"{len(paid)} calls were paid for"
    if again := [r.prompt for r in seen if r.arrived > killed and call(r) in paid]:
        return f"asked again: {again}"
    asked = {call(r) for r in seen}
    return "" if len(asked) == ASKED else f"{len(asked)} different calls"


@pytest.mark.parametrize("victim", ["host", "kernel"])
def test_what_is_killed_at_any_moment_goes_on(victim: str, saver: str, tmp_path: Path, processes: Any) -> None:
    """A host goes on in a new process, a kernel is rebuilt."""
    points = moments(seed=7 if victim == "host" else 11)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda at: kill_at(points[at], victim, at, saver, tmp_path, processes), range(POINTS)))
    assert [outcome.wrong for outcome in outcomes if outcome.wrong] == []
    # One may come before there is a kernel, and one when the last cell has ended.
    assert sum(outcome.met for outcome in outcomes) >= POINTS - 2


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
