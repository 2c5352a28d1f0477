"""What comes next is a pure function of the state: no kernel, no model."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.graph import END
from langgraph.types import Send

from rlm_graph import Limits, flow
from rlm_graph.nodes.dispatch import decide, nested_question, prompt_of
from rlm_graph.state import Call

LIMITS = Limits(max_turns=3, max_errors=2)
PROBE = {"phase": "probe", "code": "1"}
CHUNK = {"phase": "chunk", "code": "2"}


def state(**more: Any) -> Any:
    base = {
        "run": "r",
        "tree": "t",
        "start": {"question": 0, "turn": 0, "cell": 0},
        "turns": [{"note": "", "reply": ""}],
        "journal": [],
        "sources": [{"tokens": 20_000}],
        "queue": [],
        "running": None,
        "errors": 0,
        "draft": None,
        "limit": None,
        "stop_reason": None,
        "wave": None,
        "steps": 1_000,
    }
    return {**base, **more}


def then(**more: Any) -> str:
    return flow.next_step(LIMITS)(state(**more))


def test_the_queues_first_cell_is_next() -> None:
    assert then(queue=[CHUNK, PROBE]) == "chunk"


def test_an_empty_queue_goes_back_to_plan() -> None:
    assert then() == "plan"


def test_a_cell_that_waits_goes_to_dispatch_before_the_queue() -> None:
    assert then(running=PROBE, queue=[CHUNK]) == "dispatch"


def test_a_ready_answer_goes_to_compose_whatever_is_queued() -> None:
    assert then(draft={"ready": True, "content": "x"}, queue=[CHUNK]) == "compose"


def test_a_draft_that_is_not_ready_changes_nothing() -> None:
    assert then(draft={"ready": False, "content": "x"}, queue=[CHUNK]) == "chunk"


def test_a_stop_reason_ends_the_run() -> None:
    assert then(stop_reason="answered") == END


def test_too_many_errors_in_a_row_end_in_compose() -> None:
    assert (then(errors=1), then(errors=2)) == ("plan", "compose")


def test_used_up_turns_end_in_compose_but_only_when_their_cells_have_run() -> None:
    turns = [{"note": "", "reply": ""}] * 3
    assert (then(turns=turns), then(turns=turns, queue=[PROBE])) == ("compose", "probe")


def test_turns_count_from_the_present_question() -> None:
    turns = [{"note": "", "reply": ""}] * 5
    assert then(turns=turns, start={"question": 1, "turn": 3, "cell": 0}) == "plan"


def test_the_last_supersteps_are_kept_for_compose() -> None:
    assert (then(steps=6, running=PROBE), then(steps=7, running=PROBE)) == ("compose", "dispatch")
    assert flow.ending(state(steps=3), LIMITS) == "max_steps"


def test_a_limit_gives_its_name_to_the_end() -> None:
    ready = {"ready": True, "content": "x"}
    assert flow.ending(state(draft=ready), LIMITS) == "answered"
    assert flow.ending(state(draft=ready, limit="max_calls"), LIMITS) == "max_calls"
    assert flow.ending(state(errors=2), LIMITS) == "errors"


@pytest.mark.parametrize(("tokens", "depth", "direct"), [(15_999, 0, True), (16_000, 0, False), (15_999, 1, False)])
def test_only_the_top_answers_a_small_context_directly(tokens: int, depth: int, direct: bool) -> None:
    assert flow.is_direct(state(sources=[{"tokens": tokens}]), depth, 16_000) is direct


def wave(**more: Any) -> Any:
    return {
        "number": 2,
        "batches": [],
        "alone": [],
        "nested": [],
        "calls": 0,
        "allowance": 5,
        "uncertain": 0,
        "kernel": "k",
        **more,
    }


def test_a_wave_is_a_send_for_each_batch_and_each_nested_run_and_one_of_them_pumps() -> None:
    sends = flow.let_go(state(running=CHUNK, wave=wave(batches=["b1", "b2"], nested=["n1"], calls=102)))
    assert isinstance(sends, list) and all(isinstance(s, Send) and s.node == "sub_call" for s in sends)
    assert [s.arg for s in sends] == [
        {"run": "r", "tree": "t", "cell": 0, "kernel": "k", "batch": "b1", "allowance": 5},
        {"run": "r", "tree": "t", "cell": 0, "kernel": "k", "batch": "b2"},
        {"run": "r", "tree": "t", "cell": 0, "kernel": "k", "nested": "n1"},
    ]


def test_a_wave_of_nested_runs_alone_has_a_pump_as_well() -> None:
    sends = flow.let_go(state(running=CHUNK, wave=wave(nested=["n1"], calls=1)))
    assert isinstance(sends, list)
    assert ["allowance" in s.arg for s in sends] == [True, False]
    assert ["nested" in s.arg for s in sends] == [False, True]


def test_a_tool_that_asks_a_human_gets_a_task_of_its_own_beside_the_one_that_pumps() -> None:
    sends = flow.let_go(state(running=CHUNK, wave=wave(alone=["a1"], calls=1)))
    assert [("allowance" in s.arg, s.arg.get("batch"), s.arg.get("alone")) for s in sends] == [
        (True, None, None),
        (False, "a1", True),
    ]


def test_an_empty_wave_goes_back_to_the_waiting_cell() -> None:
    assert flow.let_go(state(running=CHUNK, wave=wave())) == "chunk"


def test_verify_sends_back_to_dispatch_what_is_in_doubt() -> None:
    assert flow.after_verify(state(running=CHUNK, wave=wave(calls=10, uncertain=1))) == "dispatch"
    assert flow.after_verify(state(running=CHUNK, wave=wave(calls=10))) == "chunk"


def kinds(calls: list[Call], depth: int = 0, window: int | None = None, **limits: int) -> tuple[list[str], ...]:
    decided = decide({str(c.number): c for c in calls}, depth, Limits(**limits), ["m"], window)
    return list(decided.plain), list(decided.nested), [r.error or "" for r in decided.refused.values()]


LLM, RLM = Call(1, "llm", "p"), Call(2, "rlm", "q", context="c")


def test_a_nested_call_nests_as_far_as_depth_allows_and_is_plain_below() -> None:
    assert kinds([LLM, RLM], max_depth=2) == (["1"], ["2"], [])
    assert kinds([LLM, RLM], depth=1, max_depth=2) == (["1", "2"], [], [])
    assert kinds([LLM, RLM], depth=1, max_depth=3) == (["1"], ["2"], [])
    assert kinds([LLM, RLM], max_depth=0) == ([], [], ["BudgetExceeded", "BudgetExceeded"])


def test_a_prompt_too_long_for_the_model_nests_or_is_refused_with_both_sizes() -> None:
    long = Call(3, "llm", "x" * 4_000)
    assert kinds([long], window=100) == ([], ["3"], [])
    refused = decide({"3": long}, 1, Limits(max_depth=2), ["m"], 100).refused["3"]
    assert refused.error == "PromptTooLong"
    assert refused.message == "the prompt has about 1,000 tokens, the model takes 100"


def test_a_model_that_is_not_known_here_is_refused() -> None:
    assert kinds([Call(4, "llm", "p", model="m"), Call(5, "llm", "p", model="other")]) == (["4"], [], ["SubCallError"])


def test_a_tool_runs_at_any_depth_and_size_and_nothing_but_a_plain_call_nests_for_its_length() -> None:
    tool, sub = Call(7, "tool", "x" * 4_000, context={}), Call(8, "sub", "x" * 4_000, context={})
    assert kinds([tool, sub], window=100) == (["7"], [], ["PromptTooLong"])
    assert kinds([tool, sub], max_depth=0) == (["7"], [], ["BudgetExceeded"])


def test_a_schema_counts_among_what_the_model_is_given() -> None:
    schema = {"type": "string", "description": "x" * 4_000}
    ask = Call(9, "sub", "q", context={"texts": {"1": "short"}, "schema": schema, "quotes": True})
    assert kinds([ask], window=900) == ([], [], ["PromptTooLong"])
    assert kinds([ask], window=2_000) == (["9"], [], [])


def test_what_a_nested_call_asks() -> None:
    assert nested_question(RLM) == ("q", "c")
    assert nested_question(Call(6, "rlm", "long text")) == ("Answer the prompt in `context`.", "long text")
    assert prompt_of(RLM) == "q\n\nc"
    assert prompt_of(Call(7, "rlm", "q", context=["a", "b"])) == "q\n\na\n\nb"
    assert prompt_of(Call(8, "rlm", "q", context={"a": 1})) == 'q\n\n{"a": 1}'
