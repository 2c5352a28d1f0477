"""A run that has nothing to answer from ends in an error with its reason: it never answers from the question alone."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from model_server import Answer, Request, scripted
from rlm_graph import Limits
from rlm_graph.dialect import reads
from rlm_graph.errors import KernelError, NothingRead
from rlm_graph.kernel import pool

TEXT = "some text to work on. " * 100
LOOK = "```repl compose\nanswer['content'] = context[:4]; answer['ready'] = True\n```"
ASK = """```repl chunk
try:
    got = llm_query_batched(['a', 'b'])
except SubCallError as error:
    got = error.results
answer['content'] = 'a confident answer'; answer['ready'] = True
```"""


def failing(*names: str) -> Any:
    def sub(request: Request) -> str | Answer:
        return Answer("no such key", status=401) if request.prompt in names else "ok"

    return sub


async def answered(scene: Any, root: Any, sub: Any = lambda r: "ok", **limits: Any) -> tuple[dict[str, Any], Any]:
    s = scene(root, sub)
    return await s.rlm(limits=Limits(**limits)).ainvoke({"question": "q", "context": TEXT}), s


async def test_a_run_whose_calls_all_failed_does_not_answer_and_says_why_they_did(scene: Any) -> None:
    with pytest.raises(NothingRead, match=r"none of 2 calls was answered.*AuthenticationError"):
        await answered(scene, scripted(ASK), failing("a", "b"))


async def test_one_answer_is_something_to_answer_from(scene: Any) -> None:
    out, _ = await answered(scene, scripted(ASK), failing("a"))
    assert (out["answer"], out["usage"]["failed"]) == ("a confident answer", 1)


async def test_refused_calls_are_a_limit_and_no_failure(scene: Any) -> None:
    out, _ = await answered(scene, scripted(ASK), max_calls=1)
    assert (out["answer"], out["stop_reason"]) == ("a confident answer", "max_calls")


async def test_a_nested_run_with_nothing_is_a_failed_call_of_its_parent(scene: Any) -> None:
    def sub(request: Request) -> str | Answer:
        return ASK if len(request.messages) > 1 else Answer("down", status=500)

    root = scripted(
        "```repl chunk\ntry:\n    rlm_query('q', context='x')\nexcept SubCallError as error:\n    print(error)\n```",
        LOOK,
    )
    s = scene(root, sub)
    with pytest.raises(NothingRead, match="none of 1 calls was answered"):
        await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert "the nested RLM failed: none of 2 calls was answered" in s.root_prompts()[1]


async def test_an_answer_before_any_cell_is_sent_back_once(scene: Any) -> None:
    out, s = await answered(scene, scripted("FINAL(42)", LOOK))
    assert (out["answer"], out["stop_reason"], out["usage"]["turns"]) == ("some", "answered", 2)
    assert "Your answer was not taken: no cell has run" in s.root_prompts()[1]


async def test_a_root_that_answers_from_the_question_alone_again_ends_in_an_error(scene: Any) -> None:
    with pytest.raises(NothingRead, match="the root answered from the question alone"):
        await answered(scene, scripted("FINAL(42)", "FINAL(42)"))


async def test_a_small_context_after_a_question_that_read_nothing_is_answered_directly(scene: Any) -> None:
    s = scene(lambda request: "It says so." if "small" in request.prompt else "I think.")
    rlm = s.rlm(limits=Limits(max_errors=2), direct_below=1_000, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(NothingRead, match="no cell has run"):
        await rlm.ainvoke({"question": "q", "context": TEXT * 10}, thread)
    out = await rlm.ainvoke({"question": "q", "context": "a small text"}, thread)
    assert (out["answer"], out["stop_reason"]) == ("It says so.", "direct")


async def test_prose_alone_is_no_answer_either(scene: Any) -> None:
    with pytest.raises(NothingRead, match="no cell has run"):
        await answered(scene, scripted("I think.", "It is 42."), max_errors=2)


async def test_final_in_prose_is_taken_when_a_cell_has_run(scene: Any) -> None:
    out, _ = await answered(scene, scripted("```repl probe\nprint(context[:9])\n```", "FINAL(42)"))
    assert (out["answer"], out["stop_reason"]) == ("42", "answered")


async def test_an_answer_of_cells_that_never_name_the_context_comes_with_a_warning(scene: Any) -> None:
    out, _ = await answered(scene, scripted("```repl compose\nanswer['content'] = '42'; answer['ready'] = True\n```"))
    assert (out["answer"], len(out["warnings"])) == ("42", 1)
    assert "the answer may come from the question alone" in out["warnings"][0]
    out, _ = await answered(scene, scripted(LOOK))
    assert out["warnings"] == []


@pytest.mark.parametrize("name", ["asub_call", "count_tokens", "arlm_query_batched", "context_1"])
def test_all_that_reads_the_context_or_asks_a_model_counts_as_reading(name: str) -> None:
    assert reads(f"x = await {name}(1)")


async def test_kernels_that_all_die_leave_nothing_to_answer_from(scene: Any) -> None:
    die = "```repl probe\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n```"
    with pytest.raises(NothingRead, match="KernelError"):
        await answered(scene, scripted(die, "It is 42.", "It is 42."), max_errors=2)


async def test_without_a_kernel_there_is_no_answer(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_kernel(*_: Any, **__: Any) -> Any:
        raise KernelError("the kernel did not start: no such program", cause="start")

    monkeypatch.setattr(pool, "start_session", no_kernel)
    with pytest.raises(KernelError, match="the kernel did not start"):
        await answered(scene, scripted(LOOK))
