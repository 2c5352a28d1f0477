"""From a trajectory to what a page shows of it: a pure function."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlm_graph import models
from rlm_graph.trace.events import Answered, CellBegun, Output, Text, Turn, beginning, shown
from rlm_graph.trace.trajectory import RunTold, Trajectory

AROUND = 400
"""Characters before and after a citation that the page shows."""

_CALL = re.compile(r'\{"call": ?"([^"]+)"')

LONGEST = 20_000
"""Characters of one text that the page holds; what is left out is counted."""


def view(trajectory: Trajectory, texts: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows.

    Args:
        trajectory: What happened; the run need not have ended.
        texts: The texts of the context by their names, in order; empty where they cannot be read.

    Returns:
        JSON-like data: `question`, `answer`, `stop_reason`, `warnings`, `context`, `usage`, `spent` (tables of tokens
        and cost), `citations`, `coverage`, `unread`, `strip`, and `runs`, the tree: the top one first, each with its
        `turns`, `cells` and their `calls`. Times are in seconds from the beginning.
    """
    top = trajectory.asked
    end: Mapping[str, Any] = top.answer or {}
    began = top.run["at"]
    source: Mapping[str, Any] = (top.run["sources"] or [{}])[-1]
    citations: list[Mapping[str, Any]] = list(end.get("citations") or [])
    coverage: Mapping[str, Any] = end.get("coverage") or {}
    present = [told for told in trajectory.runs.values() if told.run["at"] >= began]
    runs = sorted(present, key=lambda told: (told.run["depth"], told.run["at"]))
    return {
        "number": top.run["number"],
        "question": top.run["question"],
        "answer": _text(end.get("answer")),
        "ended": bool(end),
        "stop_reason": end.get("stop_reason", "did not end"),
        "warnings": list(end.get("warnings") or []),
        "seconds": round(max(_last_moment(told) for told in runs) - began, 3),
        "models": top.models,
        "context": {name: source.get(name) for name in ("name", "kind", "chars", "tokens", "items")},
        "usage": dict(end.get("usage") or {}),
        "spent": _spent(runs),
        "citations": [_cited(citation, texts, whole=trajectory.header["texts"]) for citation in citations],
        "coverage": {name: coverage.get(name) for name in ("scanned", "read")},
        "unread": list(coverage.get("unread") or ()),
        "unread_more": coverage.get("unread_more", 0),
        "strip": strip(coverage, citations, texts),
        "runs": [_run(told, trajectory, began) for told in runs],
    }


def _run(told: RunTold, trajectory: Trajectory, began: float) -> dict[str, Any]:
    run, end = told.run, told.answer
    limits = [e["limit"] for e in trajectory.others if e["event"] == "limit" and e["run"] == run["run"]]
    return {
        "id": run["run"],
        "depth": run["depth"],
        "question": run["question"],
        "start": round(run["at"] - began, 3),
        "end": round(_last_moment(told) - began, 3),
        "stop_reason": end["stop_reason"] if end else "did not end",
        "answer": _text(end["answer"] if end else None),
        "turns": [_turn(turn, began) for turn in told.turns],
        "cells": _cells(told, began),
        "limits": list(dict.fromkeys(limits)),
    }


def _last_moment(told: RunTold) -> float:
    entries = [told.run, *told.turns, *told.cells.values(), *told.outputs.values(), *told.replies.values()]
    return max(entry["at"] for entry in [*entries, *([told.answer] if told.answer else [])])


def _turn(turn: Turn, began: float) -> dict[str, Any]:
    return {
        "start": round(turn["at"] - turn["seconds"] - began, 3),
        "end": round(turn["at"] - began, 3),
        "model": turn["model"],
        "reply": _text(turn["reply"]),
        **_tokens(turn),
    }


def _cells(told: RunTold, began: float) -> list[dict[str, Any]]:
    calls: dict[int, list[Answered]] = defaultdict(list)
    for reply in told.replies.values():
        calls[reply["index"]].append(reply)
    return [_cell(told.cells[index], told.outputs.get(index), calls[index], began) for index in _present(told)]


def _present(told: RunTold) -> list[int]:
    """The cells of the question that the run works on; those of earlier ones are another page's."""
    return sorted(index for index, cell in told.cells.items() if cell["at"] >= told.run["at"])


def _cell(cell: CellBegun, output: Output | None, calls: list[Answered], began: float) -> dict[str, Any]:
    moments = [cell["at"], *(call["at"] for call in calls), *([output["at"]] if output else [])]
    return {
        "index": cell["index"],
        "turn": cell["turn"],
        "phase": cell["phase"],
        "start": round(cell["at"] - began, 3),
        "end": round(max(moments) - began, 3),
        "code": _text(cell["code"]),
        "ended": output is not None,
        "stdout": _text(output["stdout"] if output else None),
        "error": _text(output["error"]) if output and output["error"] else None,
        "calls": _calls(calls, began),
    }


def _calls(replies: list[Answered], began: float) -> list[dict[str, Any]]:
    """Calls in the order in which they were made; the attempts at one that asks for a structure stand below it."""
    made = {reply["id"]: _call(reply, began) for reply in sorted(replies, key=lambda reply: reply["asked"])}
    attempts = [(made[reply["id"]], call) for reply in replies if (call := _attempt_at(reply)) in made]
    for attempt, call in attempts:
        made[str(call)]["attempts"].append(attempt)
        del made[attempt["id"]]
    return list(made.values())


def _attempt_at(reply: Answered) -> str | None:
    """The call that a reply is an attempt at; None where it is a call's own."""
    context = reply.get("context")
    found = _CALL.match(shown(context)) if reply["kind"] == "sub" and context else None
    return found[1] if found else None


def _call(call: Answered, began: float) -> dict[str, Any]:
    return {
        "attempts": [],
        "id": call["id"],
        "kind": call["kind"],
        "status": call["status"],
        "message": call["message"],
        "start": round(call["asked"] - began, 3),
        "end": round(call["at"] - began, 3),
        "prompt": _text(call["prompt"]),
        "context": _text(call.get("context")),
        "reply": _text(call["reply"]),
        **_tokens(call),
    }


def _paid(runs: Iterable[RunTold]) -> Iterator[tuple[Turn | Answered, str, int]]:
    """What models were paid for: the entry, its phase, its depth."""
    for told in runs:
        yield from ((turn, "plan", told.run["depth"]) for turn in told.turns)
        present = {index: told.cells[index] for index in _present(told)}
        for reply in told.replies.values():
            if reply["model"] is not None and (cell := present.get(reply["index"])):
                yield reply, cell["phase"], told.run["depth"] + 1


def _spent(runs: Iterable[RunTold]) -> dict[str, list[list[Any]]]:
    """Rows `[name, times asked, input tokens, output tokens, US dollars or None]` by model, by depth and by phase."""
    tables: dict[str, dict[str, list[Any]]] = {"model": {}, "depth": {}, "phase": {}}
    for entry, phase, depth in _paid(runs):
        for table, name in (("model", entry["model"] or ""), ("depth", str(depth)), ("phase", phase)):
            row = tables[table].setdefault(name, [name, 0, 0, 0, None])
            row[1] += 1
            row[2] += entry["input_tokens"]
            row[3] += entry["output_tokens"]
            if entry["cost"] is not None:
                row[4] = (row[4] or 0.0) + entry["cost"]
    return {table: list(rows.values()) for table, rows in tables.items()}


def strip(
    coverage: Mapping[str, Any], citations: Iterable[Mapping[str, Any]], texts: Mapping[str, str]
) -> dict[str, Any]:
    """The coverage strip: the texts one behind the other, cut into equal parts.

    Returns:
        `{"sources": [[name, characters], …], "scanned": […], "read": […], "cited": […]}`: for each part the share of
        it that code scanned and that a model read, and 1 where the answer cites something. `sources` and `cited` are
        empty where the texts cannot be read.
    """
    map = coverage.get("map") or {"scanned": "", "read": ""}
    shares = {row: [int(digit) / 9 for digit in map[row]] for row in ("scanned", "read")}
    sizes = {name: len(text) for name, text in texts.items()}
    cited = _marks(citations, sizes, len(map["read"]))
    return {"sources": [[*pair] for pair in sizes.items()], **shares, "cited": cited}


def _marks(citations: Iterable[Mapping[str, Any]], sizes: Mapping[str, int], parts: int) -> list[int]:
    total, starts, at = sum(sizes.values()), {}, 0
    if not total or not parts:
        return []
    for name, size in sizes.items():
        starts[name], at = at, at + size
    marks = [0] * parts
    for citation in citations:
        if (start := starts.get(str(citation["source"]))) is not None:
            first, last = ((start + citation[end]) * parts // total for end in ("start", "end"))
            marks[first : last + 1] = [1] * len(marks[first : last + 1])
    return marks


def _cited(citation: Mapping[str, Any], texts: Mapping[str, str], *, whole: bool) -> dict[str, Any]:
    """A citation with what stands around it in its source, where that can be read and has not changed.

    Where the file is not `whole`, what looks like a key is left out around it too.
    """
    text, start, end = texts.get(str(citation["source"]), ""), citation["start"], citation["end"]
    found = citation["quote"] in (text[start:end], beginning(text[start:end]))
    before, after = (text[max(0, start - AROUND) : start], text[end : end + AROUND]) if found else ("", "")
    if not whole:
        before, after = models.without_keys(before), models.without_keys(after)
    return {**{name: citation[name] for name in ("source", "start", "end", "quote")}, "before": before, "after": after}


def _text(text: Text | None) -> dict[str, Any]:
    """`{"text": …, "chars": …}`; `chars` counts the whole, of which the page may hold the beginning only."""
    return {"text": shown(text)[:LONGEST], "chars": text["chars"]} if text else {"text": "", "chars": 0}


def _tokens(entry: Turn | Answered) -> dict[str, Any]:
    return {"input": entry["input_tokens"], "output": entry["output_tokens"], "cost": entry["cost"]}
