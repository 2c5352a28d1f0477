"""The root's messages, derived from its turns and cells; as they near its window, the older turns stand in short.

By code alone, so that it costs nothing and cannot fail; from the turns alone, so that a resumed run comes to the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from rlm_graph import prompts
from rlm_graph.state import Cell, Turn
from rlm_graph.tokens import estimate

SHARE = 0.8
"""Of the window: what the messages may fill before older turns are put in short."""

KEPT = 2
"""Turns that stay whole, the latest ones."""

_CODE, _OUTPUT, _CELLS = 240, 240, 40
"""Characters of a cell's code and of its output in a summary, and how many cells it holds at most."""


def root_messages(
    system_prompt: str,
    question: str,
    description: str,
    earlier: Sequence[str],
    turns: Sequence[Turn],
    journal: Sequence[Cell],
    note: str,
    window: int | None = None,
) -> list[BaseMessage]:
    """The root's messages before its next turn.

    Args:
        system_prompt: What `system_for` gave.
        question: The question.
        description: What the context is, in words; never its text.
        earlier: What was said on the thread before.
        turns: The turns so far on this question.
        journal: The cells of these turns.
        note: What the host says before the coming turn; kept in the turn, so that it is said again word for word.
        window: Tokens that the root can be given, where known: as they near it, older turns are summed up.
    """
    first = f"Question: {question}\n\nContext: {description}{prompts.said_before(earlier)}"
    ran = [[c for c in journal if c["turn"] == number] for number in range(len(turns))]
    notes = [*(turn["note"] for turn in turns), note]
    heard = [prompts.heard("", cells, said) for cells, said in zip([[], *ran], notes, strict=True)]
    whole = first_whole(
        [len(heard[number]) + len(turn["reply"]) for number, turn in enumerate(turns)],
        len(system_prompt) + len(first),
        [len(in_short(cells)) for cells in ran],
        window,
    )
    if whole:
        summary = in_short([cell for cells in ran[:whole] for cell in cells])
        first, heard[whole] = (
            f"{first}\n\n{prompts.IN_SHORT.format(turns=whole)}\n{summary}",
            prompts.heard("", [], turns[whole]["note"]),
        )
    heard[whole] = f"{first}\n\n{heard[whole]}" if heard[whole] else first
    messages: list[BaseMessage] = [SystemMessage(system_prompt)]
    for number in range(whole, len(turns)):
        messages += [HumanMessage(heard[number]), AIMessage(turns[number]["reply"])]
    return [*messages, HumanMessage(heard[-1])]


def first_whole(turns: Sequence[int], base: int, cells: Sequence[int], window: int | None) -> int:
    """The first turn that the root reads whole; those before it are summed up.

    Decided turn by turn, as it was when each was taken: so messages only grow at their end between two compactions.

    Args:
        turns: Characters of each turn so far: what the root heard and what it replied.
        base: Characters of what always stands before them.
        cells: Characters of each turn's cells in short.
        window: Tokens that the root can be given; None: not known, and nothing is summed up.
    """
    first = 0
    if window is None:
        return first
    for coming in range(1, len(turns) + 1):
        chars = base + sum(cells[:first]) + sum(turns[first:coming])
        if estimate(chars) > SHARE * window:
            first = max(first, coming - KEPT)
    return first


def in_short(cells: Sequence[Cell]) -> str:
    """Cells that ran, each in three lines at most."""
    left_out = len(cells) - _CELLS
    lines = [f"({left_out:,} cells before these are left out)"] if left_out > 0 else []
    for cell in cells[-_CELLS:]:
        lines.append(f"[{cell['phase']} cell {cell['index']}] {_cut(cell['code'], _CODE)}")
        lines.append(f"  printed: {_cut(cell['stdout'], _OUTPUT) or '(nothing)'}")
        if cell["error"]:
            lines.append(f"  failed: {_cut(cell['error'].strip().splitlines()[-1], _OUTPUT)}")
    return "\n".join(lines)


def _cut(text: str, chars: int) -> str:
    line = " ⏎ ".join(part.strip() for part in text.strip().splitlines() if part.strip())
    return line if len(line) <= chars else f"{line[:chars]}… ({len(line) - chars:,} characters more)"
