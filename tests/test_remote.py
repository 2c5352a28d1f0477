"""Nested RLMs on a LangGraph server: real servers on loopback, one of them killed."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command
from langgraph_sdk.errors import NotFoundError

from conftest import Scene
from dev_server import DevServer
from model_server import scripted
from ports import own_port
from rlm_graph import Limits, hold, models
from rlm_graph.errors import RLMError
from rlm_graph.graph import Graph
from rlm_graph.remote import Asked, answer
from rlm_graph.store import FolderStore

pytest.importorskip("langgraph_api", reason="needs the extra `studio` (langgraph-cli[inmem])")
QUESTION = "Which number is it?"
THREAD: Any = {"configurable": {"thread_id": "1"}}
ASK_EACH = f"""\
```repl chunk
import re
parts = context.split("#")[1:]
answers = rlm_query_batched([{QUESTION!r}] * len(parts), parts)
```
```repl compose
answer["content"] = str(sum(int(re.search("[0-9]+", text)[0]) for text in answers))
answer["ready"] = True
```"""
TELL = """\
```repl chunk
try:
    rlm_query("Which number is it?", "The number is 3.")
except SubCallError as error:
    answer["content"] = str(error)
answer["ready"] = True
```"""


def numbered(count: int) -> str:
    return "".join(f"#The number is {n}.\n" + "Nothing else is said here.\n" * 20 for n in range(count))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content store that we and the servers have in common."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLM_GRAPH_HOME", str(shared))
    return shared


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[DevServer]:
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(Path(__file__).parent / "served", folder, dirs_exist_ok=True)
    server = DevServer(folder, shared)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def reader(server: DevServer, name: str = "reader") -> RemoteGraph:
    return RemoteGraph(name, url=server.url)


async def called(server: DevServer) -> dict[str, list[str]]:
    """The states of the runs on the server, by thread."""
    client = reader(server).client
    assert client is not None
    threads = await client.threads.search(limit=1_000)
    runs = {t["thread_id"]: await client.runs.list(t["thread_id"]) for t in threads}
    return {thread: [run["status"] for run in own] for thread, own in runs.items()}


async def states(server: DevServer, call: str) -> list[str]:
    """The states of the runs of one call."""
    client = reader(server).client
    assert client is not None
    try:
        return [run["status"] for run in await client.runs.list(str(UUID(call)))]
    except NotFoundError:
        return []


async def budget(server: DevServer, thread: str) -> Any:
    """What the run of a thread was granted."""
    client = reader(server).client
    assert client is not None
    (run,) = await client.runs.list(thread)
    return run["kwargs"]["input"]["budget"]


async def test_a_picture_of_the_graph_asks_no_server(scene: Any) -> None:
    nowhere = RemoteGraph("reader", url=f"http://127.0.0.1:{own_port()}")
    drawn = scene(scripted(TELL)).rlm(sub_graph=nowhere).get_graph(xray=True)
    assert "sub_call:rlm" in drawn.nodes and "sub_call:rlm:load" not in drawn.nodes


async def test_a_server_that_stays_out_of_reach_is_told(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlm_graph.remote._PATIENCE_SECONDS", 0.0)
    nowhere = RemoteGraph("reader", url=f"http://127.0.0.1:{own_port()}")
    told = await told_by(scene(scripted(TELL)).rlm(sub_graph=nowhere))
    assert re.search("the nested RLM failed: ConnectError: .*graph 'reader', thread ", told)


@pytest.mark.slow
async def test_nested_rlms_run_on_the_server_and_stream_from_there(scene: Any, server: DevServer) -> None:
    before = await called(server)
    rlm = scene(scripted(ASK_EACH)).rlm(sub_graph=reader(server), limits=Limits(max_calls=11))
    nodes: set[str] = set()
    async for space, part in rlm.astream({"question": "?", "context": numbered(3)}, subgraphs=True):
        if any(name.startswith("rlm:") for name in space):
            nodes |= set(part)
        if "compose" in part and not space:
            out = part["compose"]
    assert (out["answer"], out["stop_reason"]) == ("3", "answered")
    assert {"load", "compose"} <= nodes
    after = await called(server)
    new = set(after) - set(before)
    assert [after[thread] for thread in new] == [["success"]] * 3
    # What they came to is in our usage; each had its share of the 8 calls that were left, one part of which we kept.
    assert out["usage"]["by_model"]["offline-reader"]["calls"] == 3
    assert set(out["usage"]["by_depth"]) == {"0", "2"}
    assert [await budget(server, thread) for thread in new] == [{"max_calls": 2}] * 3


@pytest.mark.slow
def test_a_synchronous_run_has_them_too(scene: Any, server: DevServer) -> None:
    rlm = scene(scripted(ASK_EACH)).rlm(sub_graph=reader(server))
    assert rlm.invoke({"question": "?", "context": numbered(2)})["answer"] == "1"


def asked(text: str) -> Asked:
    return {"question": QUESTION, "context": {"type": "rlm_context", "id": hold(text)["id"]}, "budget": None}


@pytest.mark.slow
async def test_a_call_that_was_answered_is_not_run_again(server: DevServer) -> None:
    id = "ab" * 16
    outs = [await answer(reader(server), id, asked("The number is 5."), {"configurable": {}}) for _ in range(2)]
    assert [out["answer"] for out in outs] == ["The number is 5."] * 2
    assert await states(server, id) == ["success"]


@pytest.mark.slow
async def test_a_call_that_is_being_answered_is_waited_for(server: DevServer) -> None:
    id = "ac" * 16
    both = [answer(reader(server), id, asked("The number is 4."), {"configurable": {}}) for _ in range(2)]
    outs = await asyncio.gather(*both)
    assert [out["answer"] for out in outs] == ["The number is 4."] * 2
    assert await states(server, id) == ["success"]


async def cancelled_there(server: DevServer, id: str) -> None:
    running = asyncio.create_task(answer(reader(server), id, asked("The number is 44444."), {"configurable": {}}))
    while await states(server, id) != ["running"]:
        assert not running.done()
        await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    while await states(server, id) == ["running"]:
        await asyncio.sleep(0.1)
    assert await states(server, id) == ["interrupted"]


@pytest.mark.slow
async def test_a_cancelled_run_is_cancelled_on_the_server(server: DevServer) -> None:
    await cancelled_there(server, "ad" * 16)


@pytest.mark.slow
def test_so_is_one_in_a_synchronous_run(server: DevServer) -> None:
    models.in_step(lambda: cancelled_there(server, "ae" * 16))


@pytest.mark.slow
async def test_a_human_who_is_asked_there_answers_here(scene: Any, server: DevServer) -> None:
    rlm = scene(scripted(ASK_EACH)).rlm(sub_graph=reader(server, "asking"), checkpointer=InMemorySaver())
    out = await rlm.ainvoke({"question": "?", "context": numbered(1)}, THREAD)
    assert out["__interrupt__"][0].value["calls"] == 1
    out = await rlm.ainvoke(Command(resume="approve"), THREAD)
    assert out["answer"] == "0"


@pytest.mark.slow
async def test_a_human_who_is_asked_there_twice_answers_each_question(scene: Any, server: DevServer) -> None:
    root = scripted(
        f"```repl chunk\nanswer['content'] = rlm_query({QUESTION!r}, context)\nanswer['ready'] = True\n```"
    )
    rlm = scene(root).rlm(sub_graph=reader(server, "twice"), checkpointer=InMemorySaver())
    out = await rlm.ainvoke({"question": "?", "context": numbered(1)}, THREAD)
    questions = []
    for said in ("approve", "refuse"):
        questions.append(out["__interrupt__"][0].value)
        out = await rlm.ainvoke(Command(resume=said), THREAD)
    assert questions == ["first?", "second?"]
    assert out["answer"] == "approve refuse"


async def told_by(rlm: Graph) -> str:
    """What a run says whose only call failed: nothing was read, so it ends in an error."""
    with pytest.raises(RLMError) as failed:
        await rlm.ainvoke({"question": "?", "context": "text"})
    return str(failed.value)


@pytest.mark.slow
async def test_a_failure_there_is_told(scene: Any, server: DevServer, tmp_path: Path) -> None:
    of_our_own = scripted(TELL.replace("The number is 3.", "A text that only we have."))
    told = await told_by(scene(of_our_own).rlm(sub_graph=reader(server), content_store=FolderStore(tmp_path)))
    assert re.search("the nested RLM failed: ContextError: there is no context .* in the content store", told)


@pytest.mark.slow
async def test_a_graph_that_the_server_does_not_have_is_told(scene: Any, server: DevServer) -> None:
    told = await told_by(scene(scripted(TELL)).rlm(sub_graph=reader(server, "nobody")))
    assert "the nested RLM failed" in told and "nobody" in told


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_fifty_in_parallel_survive_a_server_that_is_killed(scene: Any, server: DevServer) -> None:
    started: Scene = scene(lambda request: ASK_EACH)
    rlm = started.rlm(sub_graph=reader(server), checkpointer=InMemorySaver())
    done: list[int] = []

    async def run() -> Any:
        parts = rlm.astream({"question": "?", "context": numbered(50)}, THREAD, stream_mode=["updates"], subgraphs=True)
        async for space, _, part in parts:
            if "rlm" in part and len(space) == 1:
                done.append(1)
            if "compose" in part and not space:
                out = part["compose"]
        return out

    running = asyncio.create_task(run())
    while len(done) < 10:
        assert not running.done()
        await asyncio.sleep(0.05)
    await asyncio.to_thread(server.kill)
    assert len(done) < 50 and not running.done()
    await asyncio.to_thread(server.start)
    out = await running
    assert (out["answer"], out["usage"]["calls"], out["usage"]["failed"]) == (str(sum(range(50))), 50, 0)
    assert len(started.root_prompts()) == 1
