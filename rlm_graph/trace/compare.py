"""Two recorded runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlm_graph import models
from rlm_graph.trace.events import ANSWER_HEAD, Text, full, held_out, shown
from rlm_graph.trace.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Row:
    """What is compared, and what it is in either run; None where it is not known."""

    name: str
    left: str | None
    right: str | None

    @property
    def differs(self) -> bool:
        return self.left != self.right


def compare(left: Trajectory, right: Trajectory) -> list[Row]:
    """Question, answer, turns, calls, tokens, cost, time and coverage of two runs, in rows."""
    pair = [_facts(left), _facts(right)]
    return [Row(name, *(facts.get(name) for facts in pair)) for name in dict.fromkeys([*pair[0], *pair[1]])]


def _facts(trajectory: Trajectory) -> dict[str, str | None]:
    run = trajectory.asked
    usage: dict[str, Any] = run.answer["usage"] if run.answer else {}
    cells = [output for output in run.outputs.values() if output["question"] == run.run["number"]]
    facts: dict[str, str | None] = {
        "question": models.without_keys(run.run["question"]),
        "context": ", ".join(f"{s['name']} ({s['chars']:,} characters)" for s in run.run["sources"][-1:]),
        "models": ", ".join(dict.fromkeys(run.models)),
        "answer": _answer(run.answer["answer"]) if run.answer else None,
        "stop reason": run.answer["stop_reason"] if run.answer else "not ended",
        "turns": _number(usage.get("turns", len(run.turns))),
        "cells": _number(len(cells)),
        "failed cells": _number(sum(output["error"] is not None for output in cells)),
        "nested runs": _number(len(trajectory.runs) - 1),
        "calls": _number(usage.get("calls", sum(len(each.replies) for each in trajectory.runs.values()))),
        "failed calls": _number(usage.get("failed")),
        "refused calls": _number(usage.get("refused")),
        "input tokens": _number(usage.get("input_tokens")),
        "output tokens": _number(usage.get("output_tokens")),
        "cost": None if usage.get("cost") is None else f"${usage['cost']:,.4f}",
        "seconds": None if not usage else f"{usage['seconds']:,.1f}",
        "coverage": _coverage(run.answer.get("coverage") if run.answer else None),
    }
    return facts


def _answer(answer: Text) -> str:
    """As a file without whole texts has it, so that one with them compares; the hash tells apart what is not shown."""
    held = held_out(answer, ANSWER_HEAD)
    if (text := full(held)) is not None:
        return text
    return f"{shown(held)}… ({held['chars']:,} characters, hash {held['hash'][:8]})"


def _number(n: int | None) -> str | None:
    return None if n is None else f"{n:,}"


def _coverage(coverage: Any) -> str | None:
    """The shares of the input, as far as they were worked out."""
    told = coverage if isinstance(coverage, dict) else {}
    shares = [f"{name} {told[name]:.1%}" for name in ("scanned", "read") if isinstance(told.get(name), int | float)]
    return ", ".join(shares) or None
