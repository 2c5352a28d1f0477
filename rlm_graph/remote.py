"""A nested RLM on another machine: a graph on a LangGraph server answers a call, on a thread that the call's id names.

So a call is answered once: whoever asks again, after a lost connection or in a new process, finds the thread, takes its
answer where it has one, waits where it is being answered, and lets it go on where its server was killed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypedDict
from uuid import UUID

import httpx
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphInterrupt
from langgraph.pregel.remote import RemoteException, RemoteGraph
from langgraph.types import Command, interrupt
from langgraph_sdk.errors import NotFoundError

from rlm_graph import models
from rlm_graph.budget import Budget
from rlm_graph.errors import RLMError

_PATIENCE_SECONDS = 180.0
"""How long a server may be out of reach before its calls fail. One that is restarted is back by then."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 10.0

_CANCEL_SECONDS, _CANCEL_PAUSE_SECONDS = 5.0, 0.2
"""How long a cancelled call sees to it that its run ends, and how often."""

_FORWARDED = ("__pregel_stream", "checkpoint_ns")
"""What of our place in the run a remote graph needs in order to stream into it; it sends neither to the server."""


_FAILED = ("error", "timeout")

_QUESTIONS = "rlm_questions"
"""Under which name a thread's metadata there lists the questions that it has asked a human, by id."""


class Lost(Exception):
    """A run's server has lost it."""


class Asked(TypedDict):
    """The input of a remote RLM: its context by reference, and its share of what is left of our limits."""

    question: str
    context: dict[str, str]
    budget: Budget | None


@dataclass(frozen=True, slots=True)
class _Call:
    """A call as it is answered: by which graph, on which thread there, and what has come of it so far.

    Attributes:
        waits: The requests in flight that last as long as a run.
        told: What a human answered, in the order of the questions.
    """

    graph: RemoteGraph
    thread: str
    asked: Asked
    there: RunnableConfig
    waits: list[asyncio.Task[Any]] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)


async def answer(graph: RemoteGraph, id: str, asked: Asked, config: RunnableConfig) -> dict[str, Any]:
    """The output of a remote RLM for one call.

    Args:
        graph: Who answers.
        id: The call's id, 32 hex digits.
        asked: What.
        config: The node's configuration, for streams.

    Raises:
        RLMError: The run failed there, or its server was out of reach for too long.
        CancelledError: The call was cancelled. So is its run there, where the server can be reached.
    """
    thread = str(UUID(id))
    configurable = {key: value for key, value in config["configurable"].items() if key in _FORWARDED}
    there: RunnableConfig = {"configurable": {**configurable, "thread_id": thread}}
    call = _Call(graph, thread, asked, there)
    try:
        return await _in_the_end(call)
    except asyncio.CancelledError:
        await _cancel(graph, thread, call.waits)
        raise


async def _in_the_end(call: _Call) -> dict[str, Any]:
    """The output, after as many attempts as it takes."""
    pause, lost_since = _FIRST_PAUSE_SECONDS, None
    while True:
        try:
            out = await _answered(call)
            if out is not None:
                return out
            lost_since = None
        except (httpx.HTTPError, RemoteException, Lost) as error:
            lost_since = lost_since or time.monotonic()
            if not _is_lost(error) or time.monotonic() - lost_since > _PATIENCE_SECONDS:
                raise RLMError(f"{_told(error)} (graph {call.graph.assistant_id!r}, thread {call.thread})") from error
        await asyncio.sleep(pause * (1 + random.random()))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


async def _answered(call: _Call) -> dict[str, Any] | None:
    """One attempt: starts the thread, or takes up what it has come to. None where it has to be looked at again."""
    graph, thread, waits = call.graph, call.thread, call.waits
    known = await _call(graph, "threads.create", thread_id=thread, if_exists="do_nothing")
    for run in await _active(graph, thread):
        await _shielded(_call(graph, "runs.join", thread, run["run_id"]), waits)
    state = await _call(graph, "threads.get_state", thread)
    values = state["values"] or {}
    if _has_ended(values):
        return dict(values)
    given: Any = call.asked
    if asking := state.get("interrupts") or [i for task in state["tasks"] for i in task["interrupts"]]:
        before = (known.get("metadata") or {}).get(_QUESTIONS) or []
        given = Command(resume={asking[0]["id"]: await _human(graph, thread, before, asking[0], call.told)})
    elif state["next"]:
        given = None
    try:
        out = await _shielded(_invoke(graph, given, call.there), waits)
    except GraphInterrupt:
        return None
    except (RemoteException, NotFoundError) as error:
        if not await _has_failed(graph, thread):
            raise Lost from error
        raise
    return out if _has_ended(out or {}) else None


async def _human(
    graph: RemoteGraph, thread: str, before: Sequence[str], asking: dict[str, Any], told: list[Any]
) -> Any:
    """What a human answers to a question of the run there.

    LangGraph gives a node that is run again the answers in the order of its questions, the earlier ones as well. Which
    those were is kept with the thread there, as another process may go on with the run here.
    """
    questions = list(before)
    if asking["id"] not in questions:
        questions.append(asking["id"])
        await _call(graph, "threads.update", thread, metadata={_QUESTIONS: questions})
    while len(told) <= questions.index(asking["id"]):
        told.append(interrupt(asking["value"]))
    return told[questions.index(asking["id"])]


async def _has_failed(graph: RemoteGraph, thread: str) -> bool:
    """Whether it is the run that failed. A server that has been restarted answers as well, but does not know it."""
    try:
        runs = await _call(graph, "runs.list", thread, limit=1)
    except NotFoundError:
        return False
    return bool(runs) and runs[0]["status"] in _FAILED


def _has_ended(values: dict[str, Any]) -> bool:
    return bool(values.get("stop_reason"))


async def _invoke(graph: RemoteGraph, given: Any, there: RunnableConfig) -> Any:
    """Runs the graph there. A run that loses its caller goes on."""
    more: dict[str, Any] = {"on_disconnect": "continue", "stream_resumable": True, "multitask_strategy": "reject"}
    if models.is_synchronous():
        return await asyncio.to_thread(lambda: graph.invoke(given, there, **more))
    return await graph.ainvoke(given, there, **more)


async def _shielded(request: Coroutine[Any, Any, Any], waits: list[asyncio.Task[Any]]) -> Any:
    """Awaits what lasts as long as a run. Cancelled here, it stays, to show whether the run has ended there."""
    waits[:] = [asyncio.ensure_future(request)]
    return await asyncio.shield(waits[0])


async def _cancel(graph: RemoteGraph, thread: str, waits: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels what runs on the thread there, until no request waits for it: one under way may only just begin a run."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CANCEL_SECONDS):
            while True:
                with suppress(httpx.HTTPError):
                    for run in await _active(graph, thread):
                        await _call(graph, "runs.cancel", thread, run["run_id"])
                if all(request.done() for request in waits):
                    break
                await asyncio.wait(waits, timeout=_CANCEL_PAUSE_SECONDS)
    for request in waits:
        request.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def _active(graph: RemoteGraph, thread: str) -> list[Any]:
    """The runs of a thread that have not ended."""
    runs = [await _call(graph, "runs.list", thread, status=status) for status in ("running", "pending")]
    return [run for some in runs for run in some]


async def _call(graph: RemoteGraph, name: str, *args: Any, **given: Any) -> Any:
    """A request of the server's API, by the client that this run can use: an asynchronous one is bound to its loop."""
    if models.is_synchronous():
        return await asyncio.to_thread(attrgetter(name)(graph.sync_client), *args, **given)
    return await attrgetter(name)(graph.client)(*args, **given)


def _told(error: Exception) -> str:
    """What a server said of a run that failed, or what is wrong with the server, in a line."""
    said = error.args[0] if error.args else None
    if isinstance(said, dict):
        return models.without_keys(f"{said.get('error')}: {str(said.get('message'))[:300]}")
    return f"{type(error).__name__}: {models.first_line(error)}"


def _is_lost(error: Exception) -> bool:
    """Whether the server is out of reach, or not itself, or already busy with this thread."""
    return isinstance(error, Lost) or models.status_of(error) == 409 or models.is_transient(error)
