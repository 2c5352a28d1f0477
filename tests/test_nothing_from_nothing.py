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
from test_checked_answers import answering

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


CHECKED = """```repl chunk
results = sub_call(split(tokens=110), 'Who?'{})
answer['content'] = 'a confident answer'; answer['ready'] = True
```"""
ABSENT = answering(lambda id, text: {"answer": None})


@pytest.mark.parametrize("pack", ["", ", pack=True"])
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Answer("down", status=500), "Error code: 500"),
        (Answer("no such key", status=401), "AuthenticationError: Error code: 401"),
        (Answer(refusal="I will not"), "refused: I will not"),
        ("I cannot say", "no result that can be read"),
    ],
)
async def test_a_run_whose_checked_calls_all_failed_does_not_answer_either(
    scene: Any, reply: Any, reason: str, pack: str
) -> None:
    with pytest.raises(NothingRead, match=rf"none of {1 if pack else 5} calls was answered.*{reason}"):
        await answered(scene, scripted(CHECKED.format(pack)), lambda _: reply, max_retries=1)


async def test_the_root_is_told_that_its_checked_calls_failed_and_may_ask_anew(scene: Any) -> None:
    root = scripted(CHECKED.format("").replace("'ready'] = True", "'ready'] = False"), CHECKED.format(", pack=True"))
    s = scene(root, lambda r: ABSENT(r) if "5 of them" in r.prompt else "I cannot say")
    out = await s.rlm(limits=Limits(max_retries=0)).ainvoke({"question": "q", "context": TEXT})
    assert "5 calls made, 5 failed." in s.root_prompts()[1]
    assert (out["answer"], out["stop_reason"]) == ("a confident answer", "answered")


async def test_second_tries_that_a_limit_refused_do_not_make_an_answer_of_nothing(scene: Any) -> None:
    """All five calls have failed, and none was left to ask again: more of them would have helped nobody."""
    with pytest.raises(NothingRead, match=r"none of 5 calls was answered.*AuthenticationError"):
        await answered(
            scene, scripted(CHECKED.format("")), lambda _: Answer("no such key", status=401), max_calls=5, max_retries=1
        )


async def test_that_no_chunk_says_it_is_something_to_answer_from(scene: Any) -> None:
    out, _ = await answered(scene, scripted(CHECKED.format("")), ABSENT)
    assert (out["answer"], out["stop_reason"], out["usage"]["failed"]) == ("a confident answer", "answered", 0)


async def test_one_checked_answer_is_something_to_answer_from_and_the_caller_is_told_of_the_rest(scene: Any) -> None:
    replies = iter([ABSENT, *[lambda _: "I cannot say"] * 4])
    out, _ = await answered(scene, scripted(CHECKED.format("")), lambda r: next(replies)(r), max_retries=0)
    assert out["answer"] == "a confident answer"
    told = "4 of the 5 chunks that a sub-model was asked about got no answer that can be used"
    assert told in out["warnings"]


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
