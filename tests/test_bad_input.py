"""Bad input gets a clear error, and nothing is lost. Each test names what the user, or the root, reads."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from model_server import Answer, scripted
from rlm_graph import create_rlm
from rlm_graph.errors import ContextError, ModelError, NothingRead

TEXT = "some text to work on. " * 100
DONE = "```repl compose\nanswer['content'] = 'done'; answer['ready'] = True\n```"


async def fails(scene: Any, given: dict[str, Any]) -> str:
    with pytest.raises(ContextError) as error:
        await scene(scripted(DONE)).rlm().ainvoke(given)
    return str(error.value)


@pytest.mark.parametrize(
    ("context", "told"), [("", "context is empty"), ([], "context is an empty list"), ({}, "context is an empty dict")]
)
async def test_an_empty_context(scene: Any, context: Any, told: str) -> None:
    assert told in await fails(scene, {"question": "q", "context": context})


async def test_a_context_of_white_space(scene: Any) -> None:
    assert "context is only white space" in await fails(scene, {"question": "q", "context": "  \n"})


@pytest.mark.parametrize("question", ["", "   "])
async def test_an_empty_question(scene: Any, question: str) -> None:
    assert "no question: give `question`, or `messages`" in await fails(scene, {"question": question, "context": TEXT})


async def test_no_context_at_all(scene: Any) -> None:
    assert "no context: give `context`" in await fails(scene, {"question": "q"})


async def test_a_context_of_a_kind_that_is_not_listed(scene: Any) -> None:
    assert "set" in await fails(scene, {"question": "q", "context": {1, 2}})


async def test_a_path_that_does_not_exist(scene: Any, tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    assert str(missing) in await fails(scene, {"question": "q", "context": missing})


async def test_a_text_that_is_really_a_path(scene: Any) -> None:
    assert "pathlib.Path" in await fails(scene, {"question": "q", "context": "/data/book.txt"})


def test_a_model_name_without_a_provider() -> None:
    with pytest.raises(ModelError, match=r"write it as 'provider:name', e\.g\. 'openai:gpt-5'"):
        create_rlm("gpt-5")


async def test_a_model_name_that_the_provider_does_not_know(scene: Any) -> None:
    s = scene(lambda r: Answer("The model `root` does not exist", status=404))
    with pytest.raises(ModelError, match=r"the root model 'root' failed: .*404.*does not exist"):
        await s.rlm().ainvoke({"question": "q", "context": TEXT})


async def read_by_root(scene: Any, first: str, sub: Any = lambda r: "ok") -> str:
    """What the root reads after its first reply; the run must still come to its answer, if it has had any."""
    s = scene(scripted(first, DONE), sub)
    with suppress(NothingRead):
        out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
        assert out["answer"] == "done"
    return s.root_prompts()[1].split(first)[-1]


async def test_a_reply_without_a_cell(scene: Any) -> None:
    assert "No cell was found in your reply. Put Python into a block" in await read_by_root(scene, "Let me think.")


async def test_a_reply_with_a_syntax_error(scene: Any) -> None:
    assert "SyntaxError" in await read_by_root(scene, "```repl probe\nprint((\n```")


async def test_a_reply_with_an_unknown_label(scene: Any) -> None:
    heard = await read_by_root(scene, "```repl guess\nprint(1)\n```")
    assert "A cell was not run: `guess` is not a label. The labels are probe, filter, chunk, compose." in heard


async def test_a_reply_with_an_unclosed_fence(scene: Any) -> None:
    heard = await read_by_root(scene, "```repl probe\nprint('cut off he")
    assert "The last cell was not run: its fence is not closed." in heard
    assert "cut off he\n" not in heard


async def test_a_good_cell_before_a_bad_one_still_runs(scene: Any) -> None:
    heard = await read_by_root(scene, "```repl probe\nprint('ran')\n```\n```repl guess\nprint(1)\n```")
    assert "ran" in heard and "`guess` is not a label" in heard


async def test_a_failed_cell_between_a_bad_one_and_others_leaves_nothing_untold(scene: Any) -> None:
    cells = ["```repl guess\nprint(1)\n```", "```repl probe\n1 / 0\n```", "```repl filter\nprint(2)\n```"]
    heard = await read_by_root(scene, "\n".join(cells))
    assert "`guess` is not a label" in heard and "The cells behind it were not run (filter)." in heard


async def test_a_cell_that_redefines_what_the_host_gave_hurts_itself_alone(scene: Any) -> None:
    spoiled = "```repl probe\nllm_query = print = context = len = None\n```\n"
    fine = "```repl chunk\nprint(llm_query('p'), len(context))\n```"
    heard = await read_by_root(scene, spoiled + fine)
    assert "ok 2200" in heard


async def test_surrogates_and_nul_bytes_in_the_text(scene: Any) -> None:
    text = "before \ud800 between \x00 after. " * 100
    root = scripted(
        "```repl probe\nprint(context[:24])\n```",
        "```repl compose\nanswer['content'] = context[:24]; answer['ready'] = True\n```",
    )
    out = await scene(root).rlm().ainvoke({"question": "q", "context": text})
    assert out["answer"] == text[:24]


@pytest.mark.parametrize("prompt", ["''", "'  '"])
async def test_an_empty_prompt_of_a_cell(scene: Any, prompt: str) -> None:
    heard = await read_by_root(scene, f"```repl chunk\nllm_query({prompt})\n```")
    assert "ValueError" in heard and "llm_query" in heard


async def test_a_sub_model_that_answers_with_an_error(scene: Any) -> None:
    heard = await read_by_root(
        scene, "```repl chunk\nllm_query('p')\n```", lambda r: Answer("out of memory", status=500)
    )
    assert "SubCallError" in heard and "the model 'sub' failed" in heard and "out of memory" in heard


async def test_a_sub_model_that_answers_with_nothing(scene: Any) -> None:
    heard = await read_by_root(scene, "```repl chunk\nllm_query('p')\n```", lambda r: "")
    assert "the model 'sub' replied with nothing" in heard


async def test_a_sub_model_that_refuses(scene: Any) -> None:
    heard = await read_by_root(scene, "```repl chunk\nllm_query('p')\n```", lambda r: Answer(refusal="I will not."))
    assert "the model 'sub' refused: I will not." in heard


async def test_a_sub_model_that_does_not_exist(scene: Any) -> None:
    heard = await read_by_root(scene, "```repl chunk\nllm_query('p', model='gpt-9')\n```")
    assert "no model 'gpt-9' here: leave `model` out" in heard


async def test_a_question_may_come_as_the_last_message_with_the_earlier_ones_as_context(scene: Any) -> None:
    s = scene(scripted("```repl compose\nanswer['content'] = context[:5]; answer['ready'] = True\n```"))
    out = await s.rlm().ainvoke({"messages": [HumanMessage("a long story " * 20), HumanMessage("What is it about?")]})
    assert out["answer"] == "Human"
    assert "Question: What is it about?" in s.root_prompts()[0]


async def test_a_long_message_alone_is_question_and_context(scene: Any) -> None:
    message = "Here is a log.\n\n" + "line of the log\n" * 1_000 + "\n\nHow many lines are there?"
    s = scene(
        scripted("```repl compose\nanswer['content'] = str(context.count('line of')); answer['ready'] = True\n```")
    )
    out = await s.rlm().ainvoke({"messages": [HumanMessage(message)]})
    assert out["answer"] == "1000"
    assert "How many lines are there?" in s.root_prompts()[0]
    assert s.root_prompts()[0].count("line of the log") < 100


async def test_a_root_that_cannot_be_reached_is_told_with_its_address_and_no_secret() -> None:
    root = ChatOpenAI(
        model="root", base_url="http://me:hidden@127.0.0.1:9/v1?key=hidden", api_key="none", max_retries=0
    )
    with pytest.raises(ModelError, match=r"'root' failed: .*asked at http://127\.0\.0\.1:9/v1\)") as told:
        await create_rlm(root).ainvoke({"question": "q", "context": "some text"})
    assert "hidden" not in str(told.value)
