"""When the root's history nears its window, older turns are put in short; the variables remain."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from conftest import chat
from model_server import Answer, Request
from rlm_graph import Limits, prompts
from rlm_graph.history import first_whole, root_messages
from rlm_graph.ledger import Left
from rlm_graph.state import Cell, Turn
from rlm_graph.tokens import estimate
from test_prompts import cell

SNAPSHOT = Path(__file__).parent / "snapshots" / "compacted.txt"
TEXT = "some text to work on. " * 100
WINDOW = 2_000


def note(turns_left: int) -> str:
    return prompts.left_note("", turns_left=turns_left, left=Left(900), exhausted=False)


def turn(number: int) -> Turn:
    return {"note": note(30 - number), "reply": f"```repl probe\nv{number} = {number}\nprint('x' * 2000)\n```"}


def ran(number: int, **more: Any) -> Cell:
    code = f"v{number} = {number}\nprint('x' * 2000)"
    return cell(number, number, code=code, stdout=f"output {number}: {'x' * 2000}\n", **more)


def messages(turns: int, window: int | None = WINDOW) -> list[str]:
    journal = [ran(n, error="Traceback …\nKeyError: 'x'" if n == 1 else None) for n in range(turns)]
    told = root_messages("system", "q", "d", [], [turn(n) for n in range(turns)], journal, note(9), window)
    return [f"=== {m.type} ===\n{m.text}" for m in told]


def test_what_the_root_reads_after_a_compaction_is_as_in_the_snapshot() -> None:
    """To accept a change: write it to the snapshot, and look at the difference in review."""
    assert "\n\n".join(messages(4)) + "\n" == SNAPSHOT.read_text("utf-8")


def test_messages_stay_within_the_window_however_many_turns_there_are() -> None:
    assert all(estimate(sum(map(len, messages(n)))) <= WINDOW for n in range(12))
    assert estimate(sum(map(len, messages(11, None)))) > WINDOW


def test_between_two_compactions_messages_only_grow_at_the_end() -> None:
    told = [messages(n, 6_000) for n in range(30)]
    grew = [after[: len(before) - 1] == before[:-1] for before, after in pairwise(told)]
    assert 0 < grew.count(False) < grew.count(True)


def test_a_window_that_is_not_known_or_not_near_changes_nothing() -> None:
    assert messages(8, None) == messages(8, 1_000_000)
    assert first_whole([100] * 9, 0, [10] * 9, None) == 0


def test_a_decision_once_taken_stays() -> None:
    turns, short = [400, 900, 300, 800, 1_000, 200, 700], [50] * 7
    taken = [first_whole(turns[:n], 500, short[:n], 700) for n in range(8)]
    assert taken == sorted(taken) and taken[-1] > taken[0] == 0


async def test_a_long_run_goes_on_with_the_variables_of_turns_that_it_no_longer_reads(scene: Any) -> None:
    def root(request: Request) -> str:
        number = next(numbers)
        if number < 6:
            return f"```repl probe\nv{number} = len(context) + {number}\nprint('x' * 4000)\n```"
        return "```repl compose\nanswer['content'] = str([v0, v1, v2, v3, v4, v5]); answer['ready'] = True\n```"

    numbers = iter(range(9))
    s = scene(root)
    out = await s.rlm(root_window=5_000).ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == str([len(TEXT) + n for n in range(6)])
    assert all(estimate(len(p)) < 5_000 for p in s.root_prompts())
    assert "turns in short. All their variables are still there" in s.root_prompts()[-1]
    assert "[probe cell 0] v0 = len(context) + 0" in s.root_prompts()[-1]


async def test_a_prompt_too_long_for_the_sub_models_profile_becomes_a_nested_run_as_depth_allows(scene: Any) -> None:
    def sub(request: Request) -> str | Answer:
        deep = "```repl compose\nanswer['content'] = str(len(context)); answer['ready'] = True\n```"
        return deep if len(request.messages) > 1 else "plain"

    code = (
        "try:\n    answer['content'] = llm_query('x' * 8000) + llm_query('short')\n"
        "except PromptTooLong as error:\n    answer['content'] = f'{error} {llm_query(context[:9])}'\n"
        "answer['ready'] = True"
    )
    s = scene(lambda request: f"```repl chunk\n{code}\n```", sub)
    s.sub = chat(s.server, "sub", profile={"max_input_tokens": 1_500})
    out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "8000plain"
    out = await s.rlm(limits=Limits(max_depth=1)).ainvoke({"question": "q", "context": TEXT})
    assert "the prompt has about 2,000 tokens, the model takes 1,500" in out["answer"]
