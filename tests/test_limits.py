"""Limits across the whole tree: what does not fit is refused before it starts, and the run says why it stopped."""

from __future__ import annotations

from typing import Any

import pytest

from model_server import Answer, Request, scripted
from rlm_graph import Limits

TEXT = "some text to work on. " * 100
COMPOSE = "```repl compose\nanswer['content'] = str(got); answer['ready'] = True\n```"


async def run(scene: Any, root: Any, sub: Any = lambda r: "ok", **limits: Any) -> tuple[dict[str, Any], Any]:
    s = scene(root, sub)
    return await s.rlm(limits=Limits(**limits)).ainvoke({"question": "q", "context": TEXT}), s


async def test_a_batch_that_does_not_fit_is_refused_whole_and_the_root_is_told_what_is_left(scene: Any) -> None:
    root = scripted(
        "```repl chunk\ngot = llm_query_batched(['p'] * 11)\n```",
        "```repl chunk\ngot = llm_query_batched(['p'] * 10)\n```\n" + COMPOSE,
    )
    out, s = await run(scene, root, max_calls=10)
    assert out["answer"] == str(["ok"] * 10)
    assert (out["usage"]["calls"], out["usage"]["refused"], s.server.asked("sub")) == (10, 11, 10)
    assert "BudgetExceeded" in s.root_prompts()[1] and "11 calls asked, 10 left (max_calls)" in s.root_prompts()[1]
    assert "Left: 29 turns, 10 calls." in s.root_prompts()[1]


async def test_refused_structured_asks_count_once(scene: Any) -> None:
    root = scripted(
        "```repl chunk\ntry:\n    sub_call(list('abcdefghij'), 'what is it?')\n"
        "except BudgetExceeded as error:\n    got = 'refused'\n```\n" + COMPOSE,
    )
    out, _ = await run(scene, root, max_calls=5)
    assert (out["answer"], out["usage"]["calls"], out["usage"]["refused"]) == ("refused", 0, 10)


async def test_a_batch_that_comes_in_several_messages_is_refused_whole_as_well(scene: Any) -> None:
    code = "llm_query_batched([f'{n} ' + 'x' * 900_000 for n in range(11)])"
    root = scripted(f"```repl chunk\n{code}\n```", "```repl compose\nanswer['content'] = context; FINAL('so')\n```")
    out, s = await run(scene, root, max_calls=10)
    assert (out["usage"]["calls"], out["usage"]["refused"], s.server.asked("sub")) == (0, 11, 0)
    assert "11 calls asked, 10 left (max_calls)" in s.root_prompts()[1]


async def test_calls_beyond_the_limit_are_never_sent_and_the_run_says_max_calls(scene: Any) -> None:
    root = scripted(
        "```repl chunk\ngot = []\nfor i in range(9):\n    got.append(llm_query(f'p{i}'))\n```",
        COMPOSE,
    )
    out, s = await run(scene, root, max_calls=5)
    assert s.server.asked("sub") == 5
    assert (out["answer"], out["stop_reason"]) == (str(["ok"] * 5), "max_calls")
    assert "No calls are left: compose from what you have" in s.root_prompts()[1]


async def test_max_calls_counts_the_calls_of_nested_runs_as_well(scene: Any) -> None:
    def sub(request: Request) -> str:
        if len(request.messages) > 1:
            code = "got = [llm_query(f'leaf {i}') for i in range(3)]"
            tries = sum(m["role"] == "assistant" for m in request.messages)
            done = "answer['content'] = 'gave up'; answer['ready'] = True"
            return f"```repl chunk\n{code if not tries else done}\n```"
        return "leaf"

    root = scripted("```repl chunk\ngot = rlm_query_batched(['a', 'b'], ['x', 'y'])\n```\n" + COMPOSE)
    out, s = await run(scene, root, sub, max_calls=5)
    leaves = [r for r in s.server.seen if r.prompt.startswith("leaf")]
    assert (len(leaves), out["usage"]["calls"]) == (3, 5)
    assert out["stop_reason"] == "max_calls"


MANY = """```repl chunk
from concurrent.futures import ThreadPoolExecutor
def one(n):
    try:
        return len(llm_query(f"p{n}"))
    except Exception as error:
        return type(error).__name__
with ThreadPoolExecutor(16) as threads:
    got = list(threads.map(one, range(30)))
```
"""


def total(out: dict[str, Any]) -> int:
    return int(out["usage"]["input_tokens"] + out["usage"]["output_tokens"])


async def test_a_model_without_a_maximum_is_told_one_so_that_long_replies_do_not_exceed_the_tokens(scene: Any) -> None:
    def long(request: Request) -> Answer:
        wanted, allowed = 12_000, request.body["max_completion_tokens"]
        return Answer("four" * min(wanted, allowed), finish_reason="length" if wanted > allowed else "stop")

    out, s = await run(scene, scripted(MANY + COMPOSE), long, max_tokens=30_000)
    assert 20_000 < total(out) <= 30_000
    assert out["stop_reason"] == "max_tokens"
    assert s.server.asked("sub") < 30


async def test_a_server_that_heeds_no_maximum_ends_the_run_with_the_limit_that_it_exceeded(scene: Any) -> None:
    out, _ = await run(scene, scripted(MANY + COMPOSE), lambda r: "four" * 12_000, max_tokens=30_000)
    assert total(out) > 30_000
    assert out["stop_reason"] == "max_tokens"


async def test_a_small_budget_of_tokens_is_used_by_short_calls(scene: Any) -> None:
    out, s = await run(scene, scripted(MANY, COMPOSE), lambda r: "four" * 60, max_tokens=12_000)
    assert (s.server.asked("sub"), out["usage"]["refused"], out["stop_reason"]) == (30, 0, "answered")
    assert total(out) <= 12_000


async def test_a_small_budget_of_tokens_lets_many_calls_go_at_once_when_their_replies_are_short(scene: Any) -> None:
    def short(request: Request) -> Answer:
        return Answer("ok", until=lambda: request.number < 6 or s.server.peak >= 8)

    s = scene(scripted(MANY + COMPOSE), short)
    out = await s.rlm(limits=Limits(max_tokens=16_000)).ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], s.server.peak >= 8) == (str([2] * 30), True)


async def test_one_that_need_not_wait_is_told_no_less_for_the_short_replies_before(scene: Any) -> None:
    told = []

    def sub(request: Request) -> str:
        told.append(request.body["max_completion_tokens"])
        return "ok"

    alone = "```repl chunk\ngot = [llm_query(f'p{n}') for n in range(6)]\n```\n"
    await run(scene, scripted(alone + COMPOSE), sub, max_tokens=16_000)
    assert told == [4_000] * 6


async def test_max_turns_ends_with_what_the_root_has_drafted(scene: Any) -> None:
    root = scripted(*["```repl probe\nanswer['content'] = 'a draft'\nprint('more')\n```"] * 5)
    out, s = await run(scene, root, max_turns=3)
    assert (out["answer"], out["stop_reason"], out["usage"]["turns"]) == ("a draft", "max_turns", 3)
    assert "This is your last turn" in s.root_prompts()[2] and "last turn" not in s.root_prompts()[1]


async def test_without_a_draft_the_last_output_is_the_best_answer_there_is(scene: Any) -> None:
    root = scripted(*["```repl probe\nprint('seven blue items')\n```"] * 5)
    out, _ = await run(scene, root, max_turns=2)
    told = "No answer was delivered; the last output was: seven blue items"
    assert (out["answer"], out["stop_reason"]) == (told, "max_turns")
    assert "max_turns: 2 of 2 turns used" in out["warnings"]


async def test_replies_without_a_cell_end_the_run_after_max_errors(scene: Any) -> None:
    root = scripted("```repl probe\nprint(1)\n```", "I think.", "I think more.", "It is seven.")
    out, s = await run(scene, root, max_errors=3)
    assert (out["answer"], out["stop_reason"], out["usage"]["turns"]) == ("It is seven.", "errors", 4)
    assert "No cell was found in your reply" in s.root_prompts()[2]


async def test_a_wave_never_holds_more_than_max_breadth(scene: Any) -> None:
    root = scripted("```repl chunk\ngot = llm_query_batched([f'p{i}' for i in range(40)])\n```\n" + COMPOSE)
    out, s = await run(scene, root, lambda r: Answer("ok", latency=0.05), max_breadth=8)
    assert out["answer"] == str(["ok"] * 40)
    assert s.server.peak <= 8


async def test_no_more_than_max_concurrency_model_calls_are_in_flight_in_the_whole_tree(scene: Any) -> None:
    def sub(request: Request) -> Answer:
        if len(request.messages) > 1:
            return Answer(
                "```repl chunk\nanswer['content'] = llm_query_batched(['leaf'] * 10)\nanswer['ready'] = True\n```",
                latency=0.02,
            )
        return Answer("leaf", latency=0.02)

    root = scripted("```repl chunk\ngot = rlm_query_batched(['a'] * 4, list('wxyz'))\n```\n" + COMPOSE)
    s = scene(root, sub)
    await s.rlm(limits=Limits(max_concurrency=3)).ainvoke({"question": "q", "context": TEXT})
    assert s.server.peak <= 3
    s.rlm(limits=Limits(max_concurrency=3)).invoke({"question": "q2", "context": TEXT})
    assert s.server.peak <= 3


async def test_depth_0_makes_no_calls_and_tells_the_root_so(scene: Any) -> None:
    root = scripted(
        "```repl chunk\ngot = llm_query('p')\n```",
        "```repl compose\nanswer['content'] = '0'; answer['ready'] = True\n```",
    )
    out, s = await run(scene, root, max_depth=0)
    assert (out["answer"], s.server.asked("sub")) == ("0", 0)
    assert "No model can be called in this run" in s.root_prompts()[0]
    assert "max_depth is 0" in s.root_prompts()[1]


async def test_three_levels_use_the_sub_model_of_their_depth(scene: Any) -> None:
    from conftest import chat
    from model_server import ModelServer, by_model
    from rlm_graph import create_rlm

    def deep(code: str) -> Any:
        return lambda request: f"```repl chunk\n{code}\nanswer['ready'] = True\n```"

    models = by_model(
        {
            "root": deep("answer['content'] = rlm_query('go', context='one')"),
            "first": deep("answer['content'] = rlm_query('go', context='two')"),
            "second": deep("answer['content'] = llm_query('leaf')"),
            "third": lambda request: "from the third",
        }
    )
    with ModelServer(models, models=("root", "first", "second", "third")) as server:
        subs = [chat(server, name) for name in ("first", "second", "third")]
        rlm = create_rlm(chat(server, "root"), subs, limits=Limits(max_depth=3), direct_below=0)
        out = await rlm.ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "from the third"
    assert set(out["usage"]["by_model"]) == {"root", "first", "second", "third"}


async def test_a_parents_step_limit_ends_the_run_in_good_order(scene: Any) -> None:
    root = scripted(*["```repl probe\nanswer['content'] = 'so far'\n```"] * 30)
    out = await scene(root).rlm().ainvoke({"question": "q", "context": TEXT}, {"recursion_limit": 12})
    assert (out["answer"], out["stop_reason"]) == ("so far", "max_steps")
    assert any("give a higher recursion_limit" in line for line in out["warnings"])


@pytest.mark.timeout(300)
async def test_a_parents_step_limit_ends_a_loop_of_calls_in_good_order(scene: Any) -> None:
    root = scripted(*["```repl chunk\nanswer['content'] = llm_query_batched(['a', 'b'])\n```"] * 30)
    for limit in range(8, 21):
        out = await scene(root).rlm().ainvoke({"question": "q", "context": TEXT}, {"recursion_limit": limit})
        assert out["stop_reason"] == "max_steps"


async def test_a_small_context_is_answered_directly(scene: Any) -> None:
    s = scene(scripted("It is small."))
    out = await s.rlm(direct_below=16_000).ainvoke({"question": "How is it?", "context": TEXT})
    assert (out["answer"], out["stop_reason"], out["usage"]["turns"]) == ("It is small.", "direct", 1)
    assert TEXT.strip() in s.root_prompts()[0]


@pytest.mark.parametrize("bad", [{"max_calls": -1}, {"max_breadth": 0}, {"max_turns": 0}, {"max_depth": -1}])
def test_a_limit_that_makes_no_sense_is_an_error_that_names_it(bad: dict[str, int]) -> None:
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=rf"Limits\({name}={value}\): it must be at least"):
        Limits(**bad)


@pytest.mark.parametrize("direct_below", [0, 16_000])
async def test_a_limit_below_the_first_turn_says_how_much_that_needs(scene: Any, direct_below: int) -> None:
    s = scene(scripted("never asked"))
    rlm = s.rlm(limits=Limits(max_tokens=500), direct_below=direct_below)
    out = await rlm.ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["stop_reason"], s.server.asked()) == ("", "max_tokens", 0)
    assert any("the first turn needs room for about " in w and "max_tokens is 500" in w for w in out["warnings"])


async def test_cells_that_compute_without_end_are_told_as_such(scene: Any) -> None:
    out, _ = await run(scene, lambda _: "```repl probe\nwhile True: pass\n```", max_errors=1, cell_seconds=1)
    assert any("the cell computed for more than 1 s" in line for line in out["warnings"])


@pytest.mark.parametrize("name", ["max_errors", "max_calls", "max_tokens", "kernel_memory"])
def test_what_is_counted_is_a_whole_number(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Limits\({name}=2.5\): it must be a whole number"):
        Limits(**{name: 2.5})
