"""What a call costs: the user's price, else the listed one, else unknown; never a guess, never the network."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from rlm_graph import models
from rlm_graph.offline import OfflineReader
from rlm_graph.prices import cost_of

MILLION = UsageMetadata(input_tokens=1_000_000, output_tokens=1_000_000, total_tokens=2_000_000)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a price was asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)


def openai(name: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, api_key=SecretStr("none"), **more)


def price(model: Any, **prices: tuple[float, float]) -> float | None:
    cost = cost_of(model, prices)
    return cost(MILLION) if cost is not None else None


def test_a_listed_model_has_its_listed_price() -> None:
    assert price(openai("gpt-5-mini")) == pytest.approx(0.25 + 2.0)


def test_the_users_price_goes_before_the_listed_one() -> None:
    assert cost_of(openai("gpt-5-mini"), {"gpt-5-mini": (1.0, 3.0)})(MILLION) == 4.0  # type: ignore[misc]


def test_cached_input_is_priced_as_such() -> None:
    cost = cost_of(openai("gpt-5-mini"), {})
    assert cost is not None
    all_cached = UsageMetadata(
        input_tokens=1_000_000, output_tokens=0, total_tokens=1_000_000, input_token_details={"cache_read": 1_000_000}
    )
    assert cost(all_cached) == pytest.approx(0.025)


def test_a_listed_name_on_another_server_has_no_known_price() -> None:
    assert price(openai("gpt-5-mini", base_url="http://localhost:8000/v1")) is None
    assert price(openai("gpt-5-mini", base_url="https://models.example.com/v1")) is None


def test_openais_own_address_and_a_known_reseller_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert price(openai("gpt-5-mini", base_url="https://api.openai.com/v1")) == pytest.approx(2.25)
    assert price(openai("openai/gpt-5-mini", base_url="https://openrouter.ai/api/v1")) == pytest.approx(2.25)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://10.0.0.7/v1")
    assert price(openai("gpt-5-mini")) is None


def test_a_model_that_nobody_lists_has_no_known_price() -> None:
    assert price(openai("a-model-of-my-own")) is None


def test_what_is_no_language_model_costs_nothing() -> None:
    assert price(OfflineReader()) == 0.0


def test_the_longest_reply_is_the_maximum_that_was_set_else_a_usual_one() -> None:
    assert models.longest_reply(openai("gpt-5-mini", max_tokens=700)) == 700
    assert models.longest_reply(openai("gpt-5-mini").bind(max_tokens=50)) == 50
    assert models.longest_reply(openai("gpt-5-mini")) == models.LONG_REPLY
    assert models.longest_reply(openai("gpt-5-mini", max_tokens=128_000)) == models.LONG_REPLY  # the provider's own
    assert models.longest_reply(openai("gpt-5-mini"), ample=20_000) == 20_000
    assert models.longest_reply(openai("a-model-of-my-own"), ample=20_000) == models.LONG_REPLY


def test_only_a_model_that_has_the_parameter_is_told_how_long_its_reply_may_be() -> None:
    told = models.at_most(openai("gpt-5-mini"), 70)
    assert getattr(told, "kwargs", None) == {"max_tokens": 70}
    for model in (OfflineReader(), RunnableLambda(lambda _: AIMessage("ok")), openai("gpt-5-mini").bind(stop=["x"])):
        assert models.at_most(model, None) is model
    for model in (OfflineReader(), RunnableLambda(lambda _: AIMessage("ok"))):
        assert models.at_most(model, 70) is model
