"""Budgets of tokens, dollars and seconds: hit in the middle of a fan-out, stated, and never overspent."""

from __future__ import annotations

import time
from typing import Any

import pytest
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver

from conftest import chat
from model_server import Answer, Request, scripted, tokens, usage
from rlm_graph import Limits
from rlm_graph.errors import PriceError

TEXT = "some text to work on. " * 100
PRICES = {"root": (1.0, 1.0), "sub": (1.0, 1.0)}  # a dollar for a million tokens, whichever way
FAN_OUT = """```repl chunk
import asyncio
nested = [asyncio.create_task(arlm_query('ask', context='part')) for _ in range(3)]
await allm_query('go')  # answered when the nested runs have begun
got = await asyncio.gather(*nested, *[allm_query(f'number {i}') for i in range(500)], return_exceptions=True)
told = [g for g in got if isinstance(g, Exception)]
answer['content'] = f'{sum(isinstance(g, str) for g in got)} of 503'
print(sorted({f'{type(t).__name__}: {t}' for t in told})[:2])
```"""
NESTED = """```repl compose
import asyncio
got = await asyncio.gather(*[allm_query(f'leaf {i}') for i in range(10)], return_exceptions=True)
answer['content'] = f'{sum(isinstance(g, str) for g in got)} leaves'; answer['ready'] = True
```"""
COMPOSE = "```repl compose\nanswer['ready'] = True\n```"


class Counted:
    """Scripts of a root and a sub-model that count the tokens of what they answer, as the server does."""

    def __init__(
        self, root: Any, plain: Any = lambda n: Answer("a reply of some words, as it comes", latency=0.1)
    ) -> None:
        self.total = self.plain = self.nested = 0
        self._root, self._plain = root, plain

    def count(self, request: Request, answer: str | Answer) -> str | Answer:
        answer = answer if isinstance(answer, Answer) else Answer(answer)
        if answer.until is None:
            self.total += usage(request, answer)["total_tokens"]
        return answer

    def root(self, request: Request) -> str | Answer:
        return self.count(request, self._root(request))

    def sub(self, request: Request) -> str | Answer:
        if len(request.messages) > 1:
            self.nested += 1
            return self.count(request, NESTED)
        self.plain += 1
        if request.prompt == "go":
            self.total += usage(request, Answer("gone"))["total_tokens"]
            return Answer("gone", until=lambda: self.nested == 3)
        return self.count(request, self._plain(self.plain))


def rlm(scene: Any, counted: Counted, **more: Any) -> tuple[Any, Any]:
    s = scene(counted.root, counted.sub)
    s.root, s.sub = chat(s.server, "root", max_tokens=300), chat(s.server, "sub", max_tokens=300)
    return s, s.rlm(prices=PRICES, **more)


@pytest.mark.parametrize("limit", [{"max_tokens": 9_000}, {"max_cost": 0.009}, {"max_calls": 300}])
async def test_a_budget_hit_in_the_middle_of_500_calls_is_kept_and_what_is_missing_is_said(
    scene: Any, limit: dict[str, Any]
) -> None:
    counted = Counted(scripted(FAN_OUT, COMPOSE))
    s, graph = rlm(scene, counted, limits=Limits(**limit, cell_output=400))
    out = await graph.ainvoke({"question": "q", "context": TEXT})
    [name], used, nested = limit, out["usage"], counted.nested
    assert 50 < counted.plain < 500 and nested == 3
    assert used["input_tokens"] + used["output_tokens"] == counted.total
    assert used["cost"] == pytest.approx(counted.total / 1e6)
    assert counted.total <= limit.get("max_tokens", 9_000) or name == "max_calls"
    assert (used["calls"], used["failed"]) == (counted.plain + nested, 0)
    assert used["calls"] + used["refused"] == 504 + 10 * nested
    answered = counted.plain - 1 - leaves(s) + nested
    assert (out["answer"], out["stop_reason"]) == (f"{answered} of 503", name)
    assert f"left ({name})" in s.root_prompts()[1] and "BudgetExceeded" in s.root_prompts()[1]
    assert (
        out["warnings"][-1].startswith(f"{name}: ") and f"{used['refused']} calls were refused" in out["warnings"][-1]
    )


def leaves(s: Any) -> int:
    return sum(r.prompt.startswith("leaf") for r in s.server.seen)


async def test_calls_in_flight_are_cut_off_when_the_time_is_over_and_the_run_ends_with_what_it_has(scene: Any) -> None:
    forever = Answer(until=lambda: False)
    counted = Counted(scripted(FAN_OUT), lambda n: "in time" if n <= 100 else forever)
    s, graph = rlm(scene, counted, limits=Limits(max_seconds=12))
    out = await graph.ainvoke({"question": "q", "context": TEXT})
    used = out["usage"]
    hanging = counted.plain - 100
    assert 0 < hanging <= 64
    assert (out["stop_reason"], used["calls"]) == ("max_seconds", counted.plain + 3)
    assert used["failed"] == hanging
    assert out["answer"].endswith(" of 503") and not out["answer"].startswith("0 ")
    assert used["input_tokens"] + used["output_tokens"] == counted.total
    assert f"{used['failed']} calls failed" in out["warnings"][-1]
    assert s.server.asked("root") == 1  # no turn starts after the end


async def test_a_root_turn_that_does_not_fit_is_not_taken_and_the_best_answer_is_given(scene: Any) -> None:
    counted = Counted(scripted("```repl probe\nanswer['content'] = 'a draft'\n```", "never asked"))
    s, graph = rlm(scene, counted, limits=Limits(max_tokens=2_000))
    out = await graph.ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["stop_reason"], s.server.asked("root")) == ("a draft", "max_tokens", 1)
    assert out["usage"]["input_tokens"] + out["usage"]["output_tokens"] == counted.total < 2_000


async def test_the_root_sees_what_is_left_each_turn(scene: Any) -> None:
    counted = Counted(scripted("```repl probe\n1\n```", COMPOSE))
    limits = Limits(max_tokens=50_000, max_cost=0.1, max_seconds=500)
    s, graph = rlm(scene, counted, limits=limits)
    await graph.ainvoke({"question": "q", "context": TEXT})
    left = [line for p in s.root_prompts() for line in p.splitlines() if line.startswith("Left: ")]
    assert left[0].startswith("Left: 30 turns, 1,000 calls, 50,000 tokens for calls, $0.1000 for calls, ")
    assert left[-1].startswith("Left: 29 turns, 1,000 calls, 4") and left[-1].endswith(" seconds.")


async def test_a_batch_whose_prompts_alone_do_not_fit_is_refused_before_any_is_sent(scene: Any) -> None:
    counted = Counted(scripted("```repl chunk\ngot = llm_query_batched(['word ' * 1000] * 40)\n```", COMPOSE))
    s, graph = rlm(scene, counted, limits=Limits(max_tokens=40_000))
    out = await graph.ainvoke({"question": "q", "context": TEXT})
    assert (counted.plain, out["usage"]["calls"], out["usage"]["refused"]) == (0, 0, 40)
    assert "40 calls of 50,000 tokens asked, 3" in s.root_prompts()[1] and "(max_tokens)" in s.root_prompts()[1]


async def test_a_cost_cannot_be_bounded_while_a_price_is_unknown_and_the_error_says_what_to_pass(scene: Any) -> None:
    s = scene(scripted(COMPOSE))
    with pytest.raises(PriceError, match=r"none is known for 'sub': pass prices=\{'sub': \(input, output\)\}"):
        s.rlm(limits=Limits(max_cost=1.0), prices={"root": (1.0, 2.0)})
    with pytest.raises(PriceError, match=r"prices\['root'\] is 3: give US dollars per million tokens"):
        s.rlm(prices={"root": 3})


async def test_without_prices_the_cost_of_a_run_is_unknown_rather_than_zero(scene: Any) -> None:
    out = await scene(scripted(COMPOSE)).rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["usage"]["cost"] is None


async def test_a_reply_from_the_cache_costs_nothing(scene: Any) -> None:
    root = scripted("```repl chunk\nanswer['content'] = llm_query('p'); answer['ready'] = True\n```")
    counted = Counted(root)
    s, graph = rlm(scene, counted, cache=InMemoryCache())
    first = (await graph.ainvoke({"question": "q", "context": TEXT}))["usage"]
    again = (await graph.ainvoke({"question": "q", "context": TEXT}))["usage"]
    assert (first["calls"], again["calls"], s.server.asked("sub")) == (1, 1, 1)
    assert "sub" in first["by_model"] and "sub" not in again["by_model"]
    assert again["cost"] < first["cost"]


async def test_a_direct_answer_that_does_not_fit_is_not_asked_for(scene: Any) -> None:
    counted = Counted(scripted("It is small."))
    s, graph = rlm(scene, counted, direct_below=16_000, limits=Limits(max_tokens=100))
    out = await graph.ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["stop_reason"], s.server.asked()) == ("", "max_tokens", 0)


async def test_a_follow_up_question_begins_a_new_budget(scene: Any) -> None:
    counted = Counted(scripted(*["```repl compose\nanswer['content'] = context[:4]; answer['ready'] = True\n```"] * 2))
    _, graph = rlm(scene, counted, limits=Limits(max_tokens=2_500), checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    for _ in range(2):
        out = await graph.ainvoke({"question": "q", "context": TEXT}, thread)
        assert (out["answer"], out["stop_reason"]) == ("some", "answered")


def test_a_synchronous_run_is_cut_off_as_well(scene: Any) -> None:
    forever = Answer(until=lambda: False)
    code = "answer['content'] = 'none'\nanswer['content'] = llm_query('p')"
    counted = Counted(scripted(f"```repl chunk\n{code}\n```"), lambda n: forever)
    _, graph = rlm(scene, counted, limits=Limits(max_seconds=6))
    begun = time.monotonic()
    out = graph.invoke({"question": "q", "context": TEXT})
    assert time.monotonic() - begun < 25  # the model would have answered after 30
    assert (out["answer"], out["stop_reason"], out["usage"]["failed"]) == ("none", "max_seconds", 1)


def test_tokens_are_counted_as_the_server_counts_them() -> None:
    from rlm_graph.tokens import estimate

    assert all(tokens("x" * n) == estimate(n) for n in (0, 1, 4, 5, 1_001))
