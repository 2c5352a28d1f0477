"""After `invoke`, an exception, a cancelled task and Ctrl-C, no kernel process is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from conftest import kernels
from model_server import Answer, ModelServer, Request, scripted
from rlm_graph.errors import ModelError
from rlm_graph.trees import _trees

TEXT = "some text to work on. " * 100
THREAD: Any = {"configurable": {"thread_id": "1"}}
ASKS = scripted("```repl chunk\ngot = llm_query_batched(['p'] * 5)\nanswer['ready'] = True\n```")


async def until(true: Any, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return bool(true())


async def test_none_after_ainvoke(scene: Any) -> None:
    await scene(ASKS).rlm().ainvoke({"question": "q", "context": TEXT})
    assert kernels() == set()


def test_none_after_invoke(scene: Any) -> None:
    scene(ASKS).rlm().invoke({"question": "q", "context": TEXT})
    assert kernels() == set()


async def test_none_after_an_exception(scene: Any) -> None:
    root = scripted("```repl probe\nprint(1)\n```", Answer("down", status=500))
    with pytest.raises(ModelError):
        await scene(root).rlm().ainvoke({"question": "q", "context": TEXT})
    assert await until(lambda: not kernels())


def test_no_thread_after_a_failed_run_that_could_be_resumed(scene: Any) -> None:
    root = scripted("```repl chunk\ngot = llm_query_batched(['p'] * 5)\n```", Answer("down", status=400))
    with pytest.raises(ModelError):
        scene(root).rlm(checkpointer=InMemorySaver()).invoke({"question": "q", "context": TEXT}, THREAD)
    assert asyncio.run(until(lambda: not model_threads()))


async def test_a_thread_without_a_checkpointer_leaves_nothing_of_a_failed_run(scene: Any, home: Path) -> None:
    root = scripted("```repl chunk\ngot = llm_query_batched(['p'] * 5)\n```", Answer("down", status=400))
    before = set(_trees)  # those of other runs may go meanwhile
    with pytest.raises(ModelError):
        await scene(root).rlm().ainvoke({"question": "q", "context": TEXT}, THREAD)
    assert not [path for path in home.rglob("*") if "reply" in path.parts]
    assert set(_trees) <= before


def model_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rlm-model")]


BEGUN = "llm_query('begun')"


@pytest.mark.parametrize("where", ["computing", "waiting for answers", "nested"])
async def test_none_after_a_cancelled_task(scene: Any, where: str) -> None:
    code = {
        "computing": f"{BEGUN}\nwhile True: pass",
        "waiting for answers": "llm_query_batched(['p'] * 5)",
        "nested": "rlm_query('q', context='text')",
    }[where]

    def sub(request: Request) -> str | Answer:
        if len(request.messages) > 1:
            return f"```repl probe\n{BEGUN}\nwhile True: pass\n```"
        return "ok" if request.prompt == "begun" else Answer("late", latency=300)

    s = scene(scripted(f"```repl chunk\n{code}\n```"), sub)
    task = asyncio.create_task(s.rlm().ainvoke({"question": "q", "context": TEXT}))
    there = {
        "computing": lambda: s.server.asked("sub") == 1,
        "waiting for answers": lambda: s.server.asked("sub") == 5,
        "nested": lambda: s.server.asked("sub") == 2 and len(kernels()) == 2,
    }[where]
    assert await until(there)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await until(lambda: not kernels())


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from model_server import ModelServer, Answer, by_model, scripted
from langchain_openai import ChatOpenAI
from rlm_graph import create_rlm
root = scripted("```repl chunk\\ngot = llm_query_batched(['begun'] + ['p'] * 249)\\n```")
def sub(request):
    if request.prompt == "begun":
        print("begun", flush=True)
    return Answer("late", latency=600)
with ModelServer(by_model({{"root": root, "sub": sub}})) as server:
    models = [ChatOpenAI(model=m, base_url=server.base_url, api_key="x") for m in ("root", "sub")]
    rlm = create_rlm(*models, direct_below=0)
    given = {{"question": "q", "context": "some text " * 100}}
    {call}
"""
CALLS = {
    "ainvoke": "import asyncio; asyncio.run(rlm.ainvoke(given))",
    "invoke": "rlm.invoke(given)",
}


@pytest.mark.parametrize("call", CALLS)
def test_none_after_ctrl_c_and_the_program_ends_at_once(call: str, tmp_path: Path) -> None:
    source = PROGRAM.format(tests=str(Path(__file__).parent), call=CALLS[call])
    program = subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, "RLM_GRAPH_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_ctrl_c,
    )
    try:
        assert program.stdout is not None and program.stdout.readline() == b"begun\n"
        (kernel,) = children_of(program.pid)
        program.send_signal(signal.SIGINT)
        _, stderr = program.communicate(timeout=60)
        assert b"KeyboardInterrupt" in stderr
        assert asyncio.run(until(lambda: not lives(kernel)))
    finally:
        program.kill()
        program.wait()


NESTED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from model_server import ModelServer, Answer, by_model, scripted
from langchain_openai import ChatOpenAI
from rlm_graph import create_rlm
asked = Path({asked!r})
root = scripted("```repl chunk\\ngot = rlm_query_batched(['q'] * 2, ['text'] * 2)\\n```")
nested = scripted(*["```repl chunk\\nllm_query('p')\\n```"] * 9)
def sub(request):
    with asked.open("a") as file: print("asked", file=file)
    return nested(request) if len(request.messages) > 1 else Answer("late", latency=2)
with ModelServer(by_model({{"root": root, "sub": sub}})) as server:
    models = [ChatOpenAI(model=m, base_url=server.base_url, api_key="x") for m in ("root", "sub")]
    create_rlm(*models, direct_below=0).invoke({{"question": "q", "context": "some text " * 100}})
"""


def test_after_ctrl_c_a_nested_run_begins_nothing(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    asked.touch()
    source = NESTED.format(tests=str(Path(__file__).parent), asked=str(asked))
    program = subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, "RLM_GRAPH_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        preexec_fn=heed_ctrl_c,
    )
    try:
        assert asyncio.run(until(lambda: asked.read_text().count("asked") == 4, 60))
        program.send_signal(signal.SIGINT)
        _, stderr = program.communicate(timeout=30)
        assert b"KeyboardInterrupt" in stderr
        assert asked.read_text().count("asked") == 4
    finally:
        program.kill()
        program.wait()


def test_a_nested_run_that_its_cell_no_longer_wants_begins_nothing_more(scene: Any) -> None:
    code = (
        "import threading, time\nthreading.Thread(target=rlm_query, args=('q', 'text'), daemon=True).start()\n"
        "time.sleep(0.5)\nllm_query('p')\nanswer['content'] = 'enough'; answer['ready'] = True"
    )
    nested = scripted(*["```repl chunk\nllm_query('slow')\n```"] * 9)

    def sub(request: Request) -> str | Answer:
        if len(request.messages) > 1:
            return nested(request)
        return Answer("late", latency=2) if request.prompt == "slow" else "soon"

    s = scene(scripted(f"```repl chunk\n{code}\n```"), sub)
    assert s.rlm().invoke({"question": "q", "context": TEXT})["answer"] == "enough"
    assert [r.prompt for r in s.server.seen if r.model == "sub"].count("slow") <= 1


def test_a_synchronous_run_leaves_ctrl_c_as_it_was(scene: Any) -> None:
    before = signal.default_int_handler
    outside = signal.signal(signal.SIGINT, before)
    seen: list[Any] = []

    def sub(request: Request) -> str:
        seen.append(signal.getsignal(signal.SIGINT))
        return "```repl chunk\nanswer['content'] = context; answer['ready'] = True\n```"

    root = scripted("```repl chunk\nanswer['content'] = rlm_query('q', 'text'); answer['ready'] = True\n```")
    try:
        assert scene(root, sub).rlm().invoke({"question": "q", "context": TEXT})["answer"] == "text"
        assert seen and before not in seen
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outside)


def heed_ctrl_c() -> None:
    """A shell has what it runs in the background ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def children_of(pid: int) -> list[int]:
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if is_child(p, pid)]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_child(process: Path, parent: int) -> bool:
    try:
        of_it = int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent
        return of_it and b"launch.py" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def never() -> bool:
    return False


def hung_up(server: ModelServer) -> bool:
    """Whether the client has left all its calls before they were answered."""
    calls = [record for record in server.seen if record.prompt == "p"]
    return len(calls) == 5 and all(record.hung_up and record.sent is None for record in calls)


@pytest.mark.parametrize("where", ["at the top", "nested"])
async def test_a_cancelled_task_hangs_up_on_the_model_server(scene: Any, where: str) -> None:
    def sub(request: Request) -> str | Answer:
        return str(ASKS(request)) if len(request.messages) > 1 else Answer("too late", until=never)

    nests = scripted("```repl chunk\ngot = rlm_query('q', context='text')\n```")
    s = scene(ASKS if where == "at the top" else nests, sub)
    task = asyncio.create_task(s.rlm().ainvoke({"question": "q", "context": TEXT}))
    assert await until(lambda: [r.prompt for r in s.server.seen].count("p") == 5, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await until(lambda: hung_up(s.server))


async def test_a_stream_that_is_closed_ends_its_kernel_and_hangs_up(scene: Any) -> None:
    s = scene(ASKS, lambda r: Answer("too late", until=never))
    stream = s.rlm().astream({"question": "q", "context": TEXT}, stream_mode="custom", subgraphs=True)

    async def read() -> None:
        async for _ in stream:
            pass

    reading = asyncio.create_task(read())
    assert await until(lambda: s.server.asked("sub") == 5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await stream.aclose()
    assert await until(lambda: not kernels())
    assert await until(lambda: hung_up(s.server))


LOOKS = scripted(*[f"```repl probe\nprint({n})\n```" for n in range(5)])


@pytest.mark.parametrize("saver", [None, InMemorySaver()], ids=["no saver", "a saver"])
async def test_a_stream_that_is_left_between_two_nodes_ends_its_kernel(scene: Any, saver: Any) -> None:
    stream = scene(LOOKS).rlm(checkpointer=saver).astream({"question": "q", "context": TEXT}, THREAD)
    async for update in stream:
        if "probe" in update:
            break
    assert len(kernels()) == 1
    await stream.aclose()
    assert await until(lambda: not kernels())


def test_a_synchronous_stream_that_is_left_ends_its_kernel(scene: Any) -> None:
    stream = scene(LOOKS).rlm().stream({"question": "q", "context": TEXT})
    next(update for update in stream if "probe" in update)
    assert len(kernels()) == 1
    stream.close()
    assert asyncio.run(until(lambda: not kernels()))


async def test_a_stream_with_a_slow_reader_keeps_its_kernel(scene: Any) -> None:
    seen: list[set[int]] = []
    answer: Any = None
    delivers = "```repl compose\nanswer['content'] = kept + 1; answer['ready'] = True\n```"
    rlm = scene(scripted("```repl probe\nkept = 41\n```", delivers)).rlm()
    stream = rlm.astream({"question": "q", "context": TEXT})
    async for update in stream:
        await asyncio.sleep(0.2)
        seen.append(kernels())
        answer = update.get("compose", {}).get("answer")
    assert {len(each) for each in seen} == {0, 1}
    assert len(set().union(*seen)) == 1
    assert answer == "42"
