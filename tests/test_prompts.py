"""Every word that the root is told: bounded, append-only, and shown in review when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlm_graph import Limits, asks, prompts
from rlm_graph.dialect import cells_of
from rlm_graph.history import root_messages
from rlm_graph.ledger import Left
from rlm_graph.state import Cell, Turn
from rlm_graph.tokens import estimate

SNAPSHOT = Path(__file__).parent / "snapshots" / "root.txt"
TOLD = SNAPSHOT.with_name("told.txt")
SYSTEM = prompts.system_for(Limits(), 0, None)


def cell(index: int, turn: int, **more: Any) -> Cell:
    base: Cell = {
        "index": index,
        "turn": turn,
        "phase": "probe",
        "code": "print(1)",
        "stdout": "1\n",
        "error": None,
        "context": 0,
        "question": 0,
        "asked": 0,
        "failed": 0,
        "refused": 0,
        "calls": None,
        "report": {},
        "lost": False,
    }
    return {**base, **more}  # type: ignore[typeddict-item]


def note(turns_left: int) -> str:
    return prompts.left_note("", turns_left=turns_left, left=Left(900), exhausted=False)


TURNS: list[Turn] = [{"note": note(30), "reply": "```repl probe\nprint(1)\n```"}, {"note": note(29), "reply": "second"}]
JOURNAL = [
    cell(0, 0),
    cell(1, 0, phase="filter", stdout="", report={"candidates": {"items": 3, "chars": 1_200, "share": 0.0123}}),
    cell(
        2,
        0,
        phase="chunk",
        asked=40,
        failed=2,
        report={"chunks": {"items": 40, "chars": 9_000, "tokens": [10, 200, 950], "over": 1}},
        error="Traceback (most recent call last):\n  cell 2, line 1\nKeyError: 'x'",
    ),
]


def root_text() -> str:
    messages = root_messages(SYSTEM, "How many?", "a str of 9 characters.", [], TURNS, JOURNAL, note(28))
    return "\n\n".join(f"=== {m.type} ===\n{m.text}" for m in messages) + "\n"


def test_the_system_prompt_stays_below_1500_tokens() -> None:
    assert estimate(len(SYSTEM)) < 1_500
    assert estimate(len(prompts.system_for(Limits(max_depth=0), 0, None))) < 1_500


def test_what_the_root_reads_is_as_in_the_snapshot() -> None:
    """To accept a change: write `root_text()` to the snapshot, and look at the difference in review."""
    assert root_text() == SNAPSHOT.read_text()


TOOL = {
    "name": "lookup",
    "doc": "Finds a word.\n\nword: the word",
    "returns": "str",
    "params": [["word", "str", None], ["most", "int", "3"]],
    "more": False,
}
SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


def told_text() -> str:
    """What is told beside the root's usual turns, to the root and to its sub-models."""
    plain = len(SYSTEM)
    alone = prompts.direct_messages("How many?", "the text", [], [], None)
    full = prompts.direct_messages("How many?", "the text", ["a.bin: binary"], ["Answer: 3"], "In French.", SCHEMA)
    journal = [cell(0, 0, report={"vars": [[f"v{n}", "list", "1 item"] for n in range(14)]}), cell(1, 0, lost=True)]
    error = "the kernel was killed by SIGKILL"
    one, two = {"0": "first\nchapter"}, {"1": "a line", "2": "another"}
    many = {str(n): f"line {n}" for n in range(5)}
    parts = {
        "system, no calls": prompts.system_for(Limits(max_depth=0), 0, None)[plain:],
        "system, tools and a form": prompts.system_for(Limits(), 0, "Be short.", [TOOL], SCHEMA)[plain:],
        "direct": "\n---\n".join(m.text for m in alone),
        "direct, with everything": "\n---\n".join(m.text for m in full),
        "python tool": prompts.python_tool_description(60, 8_000, [TOOL], "a str of 9 characters"),
        "lost": prompts.lost(error, journal),
        "lost, nothing before": prompts.lost(error, []),
        "late": prompts.cell_heard(cell(0, 0, report={"late": "tick\n"})),
        "structured ask": asks.checked_ask("Who paid?", one, None, quotes=True, notes={}),
        "structured ask, schema, asked again": asks.checked_ask(
            "Who paid?", two, SCHEMA, quotes=False, notes={"2": asks.NO_QUOTE}
        ),
        "structured ask, many": asks.checked_ask("Who paid?", many, None, quotes=True, notes={}),
    }
    fixed = {
        name: text
        for module in (prompts, asks)
        for name, text in vars(module).items()
        if name.isupper() and isinstance(text, str) and name != "ROOT"
    }
    return "\n\n".join(f"=== {name} ===\n{text.strip()}" for name, text in {**parts, **fixed}.items()) + "\n"


def test_all_else_that_is_told_is_as_in_the_snapshot() -> None:
    """To accept a change: write `told_text()` to the snapshot, and look at the difference in review."""
    assert told_text() == TOLD.read_text()


def test_messages_only_ever_grow_at_the_end() -> None:
    before = root_messages(SYSTEM, "q", "d", [], TURNS[:1], JOURNAL, TURNS[1]["note"])
    after = root_messages(SYSTEM, "q", "d", [], TURNS, [*JOURNAL, cell(3, 1)], note(28))
    assert [m.text for m in after[: len(before)]] == [m.text for m in before]


def test_the_examples_in_the_system_prompt_are_cells_that_the_dialect_takes() -> None:
    example = SYSTEM.split("# Example")[1]
    parsed = cells_of(example, "probe")
    assert [c["phase"] for c in parsed.cells] == ["filter", "chunk", "compose"]
    assert parsed.problem == ""
    for queued in parsed.cells:
        compile(queued["code"], "example", "exec")


def test_the_users_own_instructions_come_last() -> None:
    assert prompts.system_for(Limits(), 0, "Answer in French.").endswith(
        "# Instructions from the user\nAnswer in French."
    )


def test_the_last_turn_and_a_used_up_budget_are_said() -> None:
    assert "This is your last turn: deliver now" in prompts.left_note("", turns_left=1, left=Left(5), exhausted=False)
    assert "No calls are left" in prompts.left_note("", turns_left=5, left=Left(0), exhausted=True)
    assert prompts.left_note("Careful.", turns_left=2, left=Left(1), exhausted=False) == (
        "Careful.\nLeft: 2 turns, 1 call."
    )
