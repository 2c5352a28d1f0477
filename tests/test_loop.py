"""The loop from question to answer: a real kernel, a real HTTP model behind `ChatOpenAI`, and the official dialect."""

from __future__ import annotations

import re
from typing import Any

import pytest

from model_server import Request, scripted

THREE_TURNS = scripted(
    "Look first.\n```repl probe\nprint(type(context).__name__, len(context))\n```",
    "Keep the lines, cut them, ask.\n"
    "```repl filter\ncandidates = [l for l in context.splitlines() if 'ITEM' in l]\nprint(len(candidates))\n```\n"
    "```repl chunk\nchunks = ['\\n'.join(candidates[i:i + 10]) for i in range(0, len(candidates), 10)]\n"
    "found = llm_query_batched(['COUNT ' + c for c in chunks])\nprint(len(found), found[:1])\n```",
    "```repl compose\nanswer['content'] = str(sum(map(int, found)))\nanswer['ready'] = True\n```",
)


def count_items(request: Request) -> str:
    return str(len(re.findall("ITEM", request.prompt)))


@pytest.fixture
def lines() -> str:
    return "\n".join(f"{n} ITEM" if n % 5 == 0 else f"{n} nothing here" for n in range(1_000))


async def test_three_turns_answer_a_question_over_a_text(scene: Any, lines: str) -> None:
    s = scene(THREE_TURNS, count_items)
    out = await s.rlm().ainvoke({"question": "How many items?", "context": lines})
    assert out["answer"] == "200"
    assert out["stop_reason"] == "answered"
    assert (out["usage"]["turns"], out["usage"]["calls"]) == (3, 20)
    assert out["messages"][-1].text == "200"


def test_invoke_does_the_same_as_ainvoke(scene: Any, lines: str) -> None:
    s = scene(THREE_TURNS, count_items)
    assert s.rlm().invoke({"question": "How many items?", "context": lines})["answer"] == "200"
