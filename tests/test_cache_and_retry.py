"""Replies may be cached by content, and what is transient is tried again; what is not, is not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.cache.memory import InMemoryCache
from langgraph.cache.sqlite import SqliteCache

from model_server import Answer, Request, scripted
from rlm_graph import Limits, create_rlm
from rlm_graph.errors import NothingRead

TEXT = "some text to work on. " * 100


def one_cell(code: str) -> Any:
    return scripted(f"```repl chunk\n{code}\nanswer['ready'] = True\n```")


ASKS = one_cell("answer['content'] = str(llm_query_batched(['a', 'b', 'vote', 'vote']))")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_second_run_asks_nothing_that_the_first_has_asked(scene: Any, kind: str, tmp_path: Any) -> None:
    cache: Any = InMemoryCache() if kind == "memory" else SqliteCache(path=str(tmp_path / "cache"))
    votes = iter("12345678")
    s = scene(ASKS, lambda r: next(votes) if r.prompt == "vote" else r.prompt.upper())
    first = await s.rlm(cache=cache).ainvoke({"question": "q", "context": TEXT})
    second = await s.rlm(cache=cache).ainvoke({"question": "another", "context": TEXT + "more"})
    assert first["answer"] == second["answer"]
    assert sorted(eval(first["answer"])) == ["1", "2", "A", "B"]
    assert s.server.asked("sub") == 4


async def test_another_model_setting_is_another_entry(scene: Any) -> None:
    s = scene(one_cell("answer['content'] = llm_query('a')"))
    cache: Any = InMemoryCache()
    for temperature in (0.0, 1.0, 1.0):
        sub = s.sub.model_copy(update={"temperature": temperature})
        await create_rlm(s.root, sub, direct_below=0, cache=cache).ainvoke({"question": "q", "context": TEXT})
    assert s.server.asked("sub") == 2


async def test_structured_asks_are_cached_and_another_schema_is_another_entry(scene: Any) -> None:
    s = scene(
        lambda r: f"```repl chunk\n{r.prompt.split('RUN: ')[1].splitlines()[0]}\nanswer['ready'] = True\n```",
        lambda r: json.dumps({"results": [{"id": "0", "answer": 7, "quotes": [], "confidence": 1.0}]}),
    )
    cache: Any = InMemoryCache()
    for schema, asked in (("int", 1), ("int", 1), ("dict(type='number')", 2), ("int", 2)):
        ask = f"answer['content'] = sub_call(context, 'How many?', schema={schema}, quotes=False)[0].answer"
        out = await s.rlm(cache=cache).ainvoke({"question": f"RUN: {ask}", "context": TEXT})
        assert (out["answer"], s.server.asked("sub")) == ("7", asked)


async def test_a_nested_run_shares_the_cache_of_the_tree(scene: Any) -> None:
    def sub(request: Request) -> str:
        nested = "```repl chunk\nanswer['content'] = llm_query('a') + llm_query('b'); answer['ready'] = True\n```"
        return nested if len(request.messages) > 1 else request.prompt.upper()

    s = scene(one_cell("answer['content'] = llm_query('a') + rlm_query('q', context='text') + llm_query('b')"), sub)
    cache: Any = InMemoryCache()
    out = await s.rlm(cache=cache).ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "AABB"
    assert sorted(r.prompt for r in s.server.seen if len(r.messages) == 1) == ["a", "b"]


async def test_without_a_cache_every_run_asks(scene: Any) -> None:
    s = scene(one_cell("answer['content'] = llm_query('a')"))
    for _ in range(2):
        await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert s.server.asked("sub") == 2


async def test_too_many_requests_are_tried_again_when_the_server_says(scene: Any) -> None:
    from langchain_openai import ChatOpenAI

    asked: list[Request] = []

    def sub(request: Request) -> Answer:
        asked.append(request)
        return Answer("slow down", status=429, headers={"Retry-After": "1"}) if len(asked) < 2 else Answer("fine")

    s = scene(one_cell("answer['content'] = llm_query('a')"), sub)
    patient = ChatOpenAI(model="sub", base_url=s.server.base_url, api_key="none")
    out = await create_rlm(s.root, patient, direct_below=0).ainvoke({"question": "q", "context": TEXT})
    first, second = [r for r in s.server.seen if r.model == "sub"]
    assert out["answer"] == "fine"
    assert first.sending is not None and second.arrived - first.sending >= 1.0


class Shaky(BaseChatModel):
    """A model without retries of its own that fails `failures` times."""

    error: Any
    failures: int
    tries: int = 0

    @property
    def _llm_type(self) -> str:
        return "shaky"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.tries += 1
        if self.tries <= self.failures:
            raise self.error
        return ChatResult(generations=[ChatGeneration(message=AIMessage("fine"))])


class Overloaded(Exception):
    status_code = 529


async def test_a_model_without_retries_of_its_own_is_tried_again_when_that_may_help(scene: Any) -> None:
    shaky = Shaky(error=Overloaded("busy"), failures=2)
    rlm = create_rlm(scene(one_cell("answer['content'] = llm_query('a')")).root, shaky, direct_below=0)
    out = await rlm.ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], shaky.tries) == ("fine", 3)


REQUEST = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout("no reply"),
        httpx.ConnectError("nobody listens"),
        httpx.RemoteProtocolError("server disconnected"),
        openai.APITimeoutError(REQUEST),
        openai.APIConnectionError(request=REQUEST),
        ConnectionResetError("reset by peer"),
        TimeoutError(),
        httpx.HTTPStatusError("busy", request=REQUEST, response=httpx.Response(503, request=REQUEST)),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_time_outs_and_lost_connections_of_every_client_are_tried_again(scene: Any, error: Exception) -> None:
    shaky = Shaky(error=error, failures=1)
    rlm = create_rlm(scene(one_cell("answer['content'] = llm_query('a')")).root, shaky, direct_below=0)
    out = await rlm.ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], shaky.tries) == ("fine", 2)


async def test_our_own_tries_wait_as_long_as_the_server_says(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    response = httpx.Response(429, headers={"Retry-After": "7"}, request=REQUEST)
    shaky = Shaky(error=httpx.HTTPStatusError("slow down", request=REQUEST, response=response), failures=1)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def slept(seconds: float, *more: Any) -> Any:
        pauses.append(seconds)
        return await sleep(0 if seconds == 7.0 else seconds, *more)

    monkeypatch.setattr(asyncio, "sleep", slept)
    rlm = create_rlm(scene(one_cell("answer['content'] = llm_query('a')")).root, shaky, direct_below=0)
    assert (await rlm.ainvoke({"question": "q", "context": TEXT}))["answer"] == "fine"
    assert 7.0 in pauses


async def test_what_is_not_transient_is_tried_once(scene: Any) -> None:
    shaky = Shaky(error=ValueError("no such parameter"), failures=9)
    root = scripted("```repl chunk\nllm_query('a')\n```", "FINAL(gave up)")
    rlm = create_rlm(scene(root).root, shaky, direct_below=0, limits=Limits(max_retries=2))
    with pytest.raises(NothingRead, match="no such parameter"):
        await rlm.ainvoke({"question": "q", "context": TEXT})
    assert shaky.tries == 1
