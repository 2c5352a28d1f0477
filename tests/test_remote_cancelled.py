"""What is no longer wanted here does not go on over there: a run on a LangGraph server is cancelled with its call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from langgraph.pregel.remote import RemoteGraph

from model_server import Answer, Request, scripted
from rlm_graph import Limits, models
from rlm_graph.remote import answer
from runs_server import PATIENCE_SECONDS, RunsServer

ID = "ab" * 16
GIVEN: Any = {"question": "?", "context": "some text"}
ASKS = "```repl chunk\ntry:\n    rlm_query('What is it?')\nexcept SubCallError as error:\n    FINAL(str(error))\n```"
ASKS_TWO = """\
```repl compose
import asyncio
both = [asyncio.ensure_future(arlm_query("What is it?")), asyncio.ensure_future(allm_query("And this?"))]
done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
FINAL(done.pop().result())
```"""


def on(server: RunsServer) -> RemoteGraph:
    return RemoteGraph("reader", url=server.url)


def run(way: str, rlm: Any) -> Any:
    return rlm.invoke(GIVEN) if way == "invoke" else asyncio.run(rlm.ainvoke(GIVEN))


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_of_a_call_that_runs_out_of_time(scene: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Once the run has begun, all time is over that there was."""
    over = ("rlm_graph.nodes.nested._GRACE_SECONDS", -1_000_000.0)
    with RunsServer(lambda: monkeypatch.setattr(*over)) as server:
        rlm = scene(scripted(ASKS)).rlm(sub_graph=on(server), limits=Limits(max_seconds=100_000))
        with pytest.raises(Exception, match="none of 1 calls was answered"):
            run(way, rlm)
        assert server.states == ["interrupted"]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_of_a_call_whose_cell_has_ended_without_it(scene: Any, way: str) -> None:
    with RunsServer() as server:

        def other(request: Request) -> Answer:
            return Answer("It is blue.", until=lambda: server.states == ["running"])

        out = run(way, scene(scripted(ASKS_TWO), other).rlm(sub_graph=on(server)))
        assert out["answer"] == "It is blue."
        assert server.states == ["interrupted"]


DRIVES = {"synchronous": models.in_step, "asynchronous": lambda act: asyncio.run(act())}
"""How a node's coroutine is run to its end."""


async def cancelled(server: RunsServer, at: Callable[[float], bool]) -> None:
    """Asks there, and cancels that when `at` has come."""
    asking = asyncio.create_task(answer(on(server), ID, GIVEN, {"configurable": {}}))
    assert await asyncio.to_thread(at, PATIENCE_SECONDS)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("drive", DRIVES.values(), ids=DRIVES)
def test_which_an_earlier_process_began_and_this_one_waits_for(drive: Any) -> None:
    with RunsServer() as server:
        server.begin(str(UUID(ID)))
        drive(lambda: cancelled(server, server.joined.wait))
        assert server.states == ["interrupted"]


@pytest.mark.parametrize("drive", DRIVES.values(), ids=DRIVES)
def test_which_begins_only_when_it_has_been_cancelled_here(drive: Any) -> None:
    with RunsServer(slow=True) as server:
        drive(lambda: cancelled(server, server.sent.wait))
        assert server.states == ["interrupted"]
