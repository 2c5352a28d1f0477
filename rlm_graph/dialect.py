"""From a root's reply to labelled cells: what a fence may say, and what the root hears where it says something else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass

from rlm_graph import prompts
from rlm_graph.state import PHASES, Phase, Queued

_FENCE = re.compile(r"^[ ]{0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_LANGUAGES = {"repl", "python", "py", "ipython"}
_FINAL = re.compile(r"^\s*(?P<name>FINAL_VAR|FINAL)\((?P<inside>.*)\)\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A reply taken apart.

    Attributes:
        cells: The cells to run, in order.
        problem: What to tell the root where a block was left out or none was found; "" where all is well.
        in_prose: Whether its only cell is a `FINAL(…)` that stands in the prose.
    """

    cells: tuple[Queued, ...]
    problem: str = ""
    in_prose: bool = False


def cells_of(reply: str, phase: Phase) -> Parsed:
    """The cells of a reply.

    Args:
        reply: The root's text.
        phase: The current phase, which a block without a label belongs to.
    """
    cells: list[Queued] = []
    problems: list[str] = []
    prose: list[str] = []
    lines = iter(reply.splitlines(keepends=True))
    for line in lines:
        opened = _FENCE.match(line.rstrip("\r\n"))
        if not opened:
            prose.append(line)
            continue
        code = _until_closed(lines, opened["fence"])
        language, *labels = opened["info"].split() or [""]
        if language.lower() not in _LANGUAGES:
            continue
        if code is None:
            problems.append(prompts.NOT_CLOSED)
        elif labels and labels[0].lower() not in PHASES:
            problems.append(prompts.UNKNOWN_LABEL.format(label=labels[0][:40], labels=", ".join(PHASES)))
        elif code.strip():
            phase = _as_phase(labels[0]) if labels else phase
            cells.append({"phase": phase, "code": code})
    if final := _final_in_prose("".join(prose)):
        cells.append({"phase": "compose", "code": final})
    if not cells and not problems:
        problems.append(prompts.NO_CELL)
    return Parsed(tuple(cells), "\n".join(problems), in_prose=bool(final) and len(cells) == 1)


_READING = re.compile(
    r"context(_\d+)?|a?llm_query(_batched)?|a?rlm_query(_batched)?|a?sub_call|peek|grep|search|split|count_tokens"
)
_ANYTHING = {"eval", "exec", "globals", "locals", "vars", "get_ipython"}
"""Names by which code may come to everything; what it does with them cannot be seen."""


def reads(code: str, tools: Iterable[str] = ()) -> bool:
    """Whether a cell names the context, or something that reads it, asks a model, or calls one of these tools."""
    names = _names(code)
    return any(_READING.fullmatch(name) for name in names) or not names.isdisjoint({*_ANYTHING, *tools})


def _names(code: str) -> set[str]:
    try:
        return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # magics, or what fails when it runs
        return set(re.findall(r"\w+", code))


def _until_closed(lines: object, fence: str) -> str | None:
    code: list[str] = []
    for line in lines:  # type: ignore[attr-defined]
        bare = line.strip()
        if bare and set(bare) == {fence[0]} and len(bare) >= len(fence):
            return "".join(code)
        code.append(line)
    return None


def _as_phase(label: str) -> Phase:
    return next(p for p in PHASES if p == label.lower())


def _final_in_prose(prose: str) -> str | None:
    """`FINAL(…)` and `FINAL_VAR(…)` on a line of their own, as the older official dialect has them."""
    found = _FINAL.search(prose)
    if not found:
        return None
    inside = found["inside"].strip()
    if found["name"] == "FINAL_VAR":
        return f"FINAL_VAR({inside.strip(chr(34) + chr(39) + ' ')!r})\n"
    return f"FINAL({_unquoted(inside)!r})\n"


def _unquoted(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return value if isinstance(value, str) else text
