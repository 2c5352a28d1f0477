"""A caller grants a question less than the graph's own limits, and never more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.stores import InMemoryByteStore
from langgraph.checkpoint.memory import InMemorySaver

from model_server import scripted
from rlm_graph import Limits
from rlm_graph.budget import Budget, within
from rlm_graph.errors import RLMError
from rlm_graph.ledger import Ledger
from rlm_graph.tree import Tree

TWO_CALLS = """\
```repl compose
try:
    answer["content"] = llm_query_batched(["a", "b"])
except BudgetExceeded as error:
    answer["content"] = "refused"
answer["ready"] = True
```"""
THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.mark.parametrize(
    ("granted", "expected"),
    [
        ({}, (10, None)),
        ({"max_calls": 3}, (3, None)),
        ({"max_calls": 0}, (0, None)),
        ({"max_calls": 11}, (10, None)),
        ({"max_calls": 11, "max_tokens": 500}, (10, 500)),
    ],
)
def test_the_narrower_of_both_holds(granted: Budget, expected: Any) -> None:
    limits = within(Limits(max_calls=10), granted)
    assert (limits.max_calls, limits.max_tokens) == expected


@pytest.mark.parametrize(
    "granted", ["7", [1], {"max_depth": 9}, {"max_calls": "7"}, {"max_calls": -1}, {"max_cost": 0}]
)
def test_what_is_no_budget_is_refused(granted: Any) -> None:
    with pytest.raises(ValueError, match="budget"):
        within(Limits(), granted)


async def test_a_question_keeps_to_its_budget_and_the_next_one_has_none(scene: Callable[..., Any]) -> None:
    rlm = scene(lambda request: TWO_CALLS).rlm(checkpointer=InMemorySaver())
    given = {"question": "?", "context": "text", "budget": {"max_calls": 1}}
    out = await rlm.ainvoke(given, THREAD)
    assert (out["answer"], out["usage"]["calls"], out["stop_reason"]) == ("refused", 0, "max_calls")
    assert any("0 of 1 calls" in warning for warning in out["warnings"])
    out = await rlm.ainvoke({"question": "And now?"}, THREAD)
    assert (out["usage"]["calls"], out["stop_reason"]) == (2, "answered")


async def test_a_budget_of_tokens_holds_where_the_graph_has_no_limit_on_them(scene: Callable[..., Any]) -> None:
    out = (
        await scene(scripted(TWO_CALLS))
        .rlm()
        .ainvoke({"question": "?", "context": "text", "budget": {"max_tokens": 10}})
    )
    assert (out["stop_reason"], out["usage"]["input_tokens"]) == ("max_tokens", 0)


async def test_a_budget_of_dollars_needs_prices(scene: Callable[..., Any]) -> None:
    with pytest.raises(RLMError, match="max_cost in a budget needs the price of every model"):
        await scene(scripted(TWO_CALLS)).rlm().ainvoke({"question": "?", "context": "t", "budget": {"max_cost": 1.0}})


async def test_a_process_that_goes_on_with_the_run_keeps_to_its_budget() -> None:
    store = InMemoryByteStore()
    await Tree("run.0", Limits(), store, 1, lasting=True).grant({"max_calls": 3})
    other = Tree("run.0", Limits(), store, 1, lasting=True)
    await other.rebuild()
    assert other.ledger.left().calls == 3
    follow_up = Tree("run.1", Limits(), store, 1, lasting=True)
    await follow_up.rebuild()
    assert follow_up.ledger.left().calls == 1_000


def test_a_share_that_an_earlier_process_lent_is_lent_again_until_its_run_is_settled() -> None:
    ledger = Ledger(Limits(max_calls=10))
    assert ledger.lend("call", share={"max_calls": 4}) == {"max_calls": 4}
    assert ledger.lend("call", share={"max_calls": 4}) == {"max_calls": 4}
    assert ledger.left().calls == 6
    ledger.settle("call", None, failed=True)
    ledger.lend("call", share={"max_calls": 4})
    assert ledger.left().calls == 9
