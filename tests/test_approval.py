"""A human is asked before a large bill: approve, allow fewer, or refuse; nothing runs twice because of it."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from model_server import Request, scripted
from rlm_graph import Approval
from rlm_graph.errors import RLMError
from rlm_graph.kernel.session import close_all

TEXT = "some text to work on. " * 100
pytestmark = pytest.mark.usefixtures("runs_left_waiting")
THREAD: Any = {"configurable": {"thread_id": "1"}}
ROOT = scripted(
    "```repl chunk\ntry:\n    got = llm_query_batched([f'prompt {i}' for i in range(40)])\n"
    "except BudgetExceeded as e:\n    got = [r for r in e.results if r]\n    print(e)\n```",
    "```repl compose\nanswer['content'] = str(len(got)); answer['ready'] = True\n```",
)


def echo(request: Request) -> str:
    return f"<{request.prompt}>"


async def asked(
    scene: Any, root: Any = ROOT, above: int | Approval = 10, sub: Any = echo
) -> tuple[Any, Any, dict[str, Any]]:
    s = scene(root, sub)
    rlm = s.rlm(checkpointer=InMemorySaver(), approve_above=above, prices={"root": (0, 0), "sub": (1.0, 2.0)})
    out = await rlm.ainvoke({"question": "q", "context": TEXT}, THREAD)
    [interrupt] = out["__interrupt__"]
    return s, rlm, interrupt.value


async def test_the_human_sees_what_is_about_to_be_done_before_any_of_it_is(scene: Any) -> None:
    s, _, request = await asked(scene)
    assert (request["kind"], request["calls"], request["model"], request["tokens"]) == ("approve_calls", 40, "sub", 110)
    assert request["samples"] == ["prompt 0", "prompt 1", "prompt 2"]
    assert s.server.asked("sub") == 0


@pytest.mark.parametrize("call", ["sub_call(texts, 'q')", "rlm_query_batched(['q'] * 10, texts)"])
async def test_the_bill_counts_the_texts_that_are_asked_about(scene: Any, call: str) -> None:
    root = scripted(f"```repl chunk\ntexts = ['x' * 20_000] * 10\n{call}\n```")
    _, _, request = await asked(scene, root, above=5)
    assert 50_000 <= request["tokens"] <= 60_000


@pytest.mark.parametrize("said", ["approve", True])
async def test_approved_calls_are_made_once(scene: Any, said: Any) -> None:
    s, rlm, _ = await asked(scene)
    out = await rlm.ainvoke(Command(resume=said), THREAD)
    assert (out["answer"], out["stop_reason"], s.server.asked("sub"), s.server.asked("root")) == (
        "40",
        "answered",
        40,
        2,
    )
    assert out["usage"]["calls"] == 40


@pytest.mark.parametrize("said", [15, {"max_calls": 15}])
async def test_a_smaller_number_lets_so_many_go_and_refuses_the_others(scene: Any, said: Any) -> None:
    s, rlm, _ = await asked(scene)
    out = await rlm.ainvoke(Command(resume=said), THREAD)
    assert (out["answer"], out["stop_reason"], s.server.asked("sub")) == ("15", "refused", 15)
    assert "a human allowed 15 of these 40 calls" in s.root_prompts()[1]


@pytest.mark.parametrize("said", ["refuse", False, 0])
async def test_refused_calls_are_a_typed_error_in_the_cell(scene: Any, said: Any) -> None:
    s, rlm, _ = await asked(scene)
    out = await rlm.ainvoke(Command(resume=said), THREAD)
    assert (out["answer"], out["stop_reason"], s.server.asked("sub")) == ("0", "refused", 0)


async def test_what_is_no_answer_is_told_and_the_question_put_again(scene: Any) -> None:
    s, rlm, _ = await asked(scene)
    out = await rlm.ainvoke(Command(resume="perhaps"), THREAD)
    [again] = out["__interrupt__"]
    assert again.value["complaint"].startswith("'perhaps' is no answer. Resume with 'approve'")
    out = await rlm.ainvoke(Command(resume="approve"), THREAD)
    assert (out["answer"], s.server.asked("sub")) == ("40", 40)


async def test_a_human_may_be_asked_by_cost_instead_and_is_told_the_estimate(scene: Any) -> None:
    s, rlm, request = await asked(scene, above=Approval(cost=0.01))
    # 110 tokens of prompts at a dollar a million, and 500 for each of 40 replies at two.
    assert request["cost"] == pytest.approx((110 + 40 * 500 * 2) / 1e6)
    out = await rlm.ainvoke(Command(resume="approve"), THREAD)
    assert (out["answer"], s.server.asked("sub")) == ("40", 40)


async def test_single_calls_are_asked_about_when_their_cost_adds_up(scene: Any) -> None:
    root = scripted(
        "```repl chunk\ngot = [llm_query(f'p{i}') for i in range(6)]\n"
        "answer['content'] = str(len(got)); answer['ready'] = True\n```"
    )
    s, rlm, request = await asked(scene, root, Approval(cost=0.0045), sub=lambda r: "word " * 800)
    # A call comes to 0.002 dollars, and the next is estimated at 0.001: two are within 0.0045, a third is not.
    assert (s.server.asked("sub"), request["calls"]) == (2, 1)
    while "__interrupt__" in (out := await rlm.ainvoke(Command(resume="approve"), THREAD)):
        pass
    assert (out["answer"], s.server.asked("sub")) == ("6", 6)


@pytest.mark.parametrize("said", ["$0.50", 0.5, True])
async def test_what_is_neither_a_number_of_calls_nor_an_approval_is_an_error(scene: Any, said: Any) -> None:
    with pytest.raises(TypeError, match="approve_above is a number of calls or an Approval"):
        scene(ROOT).rlm(approve_above=said)


async def test_without_a_checkpointer_nobody_can_be_asked(scene: Any) -> None:
    with pytest.raises(RLMError, match="approve_above needs a checkpointer"):
        await scene(ROOT, echo).rlm(approve_above=10).ainvoke({"question": "q", "context": TEXT})


async def test_calls_made_one_by_one_are_asked_about_when_they_add_up(scene: Any) -> None:
    root = scripted(
        "```repl chunk\ngot = [llm_query(f'p{i}') for i in range(25)]\n"
        "answer['content'] = str(len(got)); answer['ready'] = True\n```"
    )
    s, rlm, request = await asked(scene, root)
    assert (s.server.asked("sub"), request["calls"], request["calls_made"]) == (10, 1, 10)
    out = await rlm.ainvoke(Command(resume="approve"), THREAD)
    assert s.server.asked("sub") == 21
    out = await rlm.ainvoke(Command(resume="approve"), THREAD)
    assert (out["answer"], s.server.asked("sub")) == ("25", 25)


async def test_a_resume_in_a_process_without_the_kernel_runs_the_cell_again_and_asks_nothing_twice(scene: Any) -> None:
    s, rlm, _ = await asked(scene)
    close_all()
    out = await rlm.ainvoke(Command(resume="approve"), THREAD)
    assert (out["answer"], s.server.asked("sub"), s.server.asked("root")) == ("40", 40, 2)


def test_a_synchronous_run_is_asked_and_resumed_as_well(scene: Any) -> None:
    s = scene(ROOT, echo)
    rlm = s.rlm(checkpointer=InMemorySaver(), approve_above=10)
    assert "__interrupt__" in rlm.invoke({"question": "q", "context": TEXT}, THREAD)
    assert rlm.invoke(Command(resume="approve"), THREAD)["answer"] == "40"
