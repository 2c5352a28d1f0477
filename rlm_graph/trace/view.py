"""From a trajectory to what a page shows of it: a pure function."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rlm_graph.trace.events import Answered, CellBegun, Output, Text, Turn, shown
from rlm_graph.trace.trajectory import RunTold, Trajectory

Excerpt = Callable[[Mapping[str, Any]], tuple[str, str]]
"""The text before and after a citation, in its source; two empty strings where the source cannot be read."""

BINS = 1_000
"""Parts into which the coverage strip divides the input."""

LONGEST = 20_000
"""Characters of one text that the page holds; what is left out is counted."""


def view(trajectory: Trajectory, excerpt: Excerpt) -> dict[str, Any]:
    """What the page shows.

    Args:
        trajectory: What happened; the run need not have ended.
        excerpt: How to read a citation's surroundings.

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
    runs = sorted(trajectory.runs.values(), key=lambda told: (told.run["depth"], told.run["at"]))
    return {
        "question": top.run["question"],
        "answer": _text(end.get("answer")),
        "ended": bool(end),
        "stop_reason": end.get("stop_reason", "did not end"),
        "warnings": list(end.get("warnings") or []),
        "seconds": round(max(_last_moment(told) for told in runs) - began, 3),
        "models": list(top.run.get("models") or []),
        "context": {name: source.get(name) for name in ("name", "kind", "chars", "tokens", "items")},
        "usage": dict(end.get("usage") or {}),
        "spent": _spent(runs),
        "citations": [_cited(citation, excerpt) for citation in citations],
        "coverage": {name: coverage.get(name) for name in ("scanned", "read")},
        "unread": [str(part) for part in coverage.get("unread") or ()],
        "strip": strip(coverage, citations),
        "runs": [_run(told, trajectory, began) for told in runs if told.run["at"] >= began],
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
    """The cells of the question that the run works on; those of earlier ones are another page's."""
    calls: dict[int, list[Answered]] = defaultdict(list)
    for reply in told.replies.values():
        calls[reply["index"]].append(reply)
    present = [index for index, cell in told.cells.items() if cell["at"] >= told.run["at"]]
    return [_cell(told.cells[index], told.outputs.get(index), calls[index], began) for index in sorted(present)]


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
        "calls": [_call(call, began) for call in sorted(calls, key=lambda call: call["asked"])],
    }


def _call(call: Answered, began: float) -> dict[str, Any]:
    return {
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
        for reply in told.replies.values():
            cell = told.cells.get(reply["index"])
            if reply["model"] is not None:
                yield reply, cell["phase"] if cell else "?", told.run["depth"] + 1


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


def strip(coverage: Mapping[str, Any], citations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The coverage strip: the sources one behind the other, cut into `BINS` equal parts.

    Returns:
        `{"sources": [[name, characters], …], "scanned": […], "read": […], "cited": […]}`: for each part the share
        of it that code scanned, that a model read, that the answer cites.
    """
    sources = coverage.get("sources") or []
    sizes = {str(each["source"]): int(each["chars"]) for each in sources}
    total = sum(sizes.values())
    empty: dict[str, Any] = {"sources": [], "scanned": [], "read": [], "cited": []}
    if not total:
        return empty
    starts, at = {}, 0
    for name, size in sizes.items():
        starts[name], at = at, at + size

    def bins(spans: Iterable[tuple[str, int, int]]) -> list[float]:
        return _shares(
            [(starts[name] + start, starts[name] + end) for name, start, end in spans if name in starts], total
        )

    def of(kind: str) -> list[float]:
        return bins((str(each["source"]), span[0], span[1]) for each in sources for span in each.get(kind) or ())

    cited = bins((str(c["source"]), c["start"], c["end"]) for c in citations)
    return {"sources": list(map(list, sizes.items())), "scanned": of("scanned"), "read": of("read"), "cited": cited}


def _shares(spans: list[tuple[int, int]], total: int) -> list[float]:
    shares = [0.0] * BINS
    for start, end in _merged(spans):
        first, last = start * BINS // total, min(BINS - 1, max(start, end - 1) * BINS // total)
        for part in range(first, last + 1):
            low, high = part * total / BINS, (part + 1) * total / BINS
            shares[part] += max(0.0, min(end, high) - max(start, low)) / (high - low)
    return [round(min(1.0, share), 3) for share in shares]


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _cited(citation: Mapping[str, Any], excerpt: Excerpt) -> dict[str, Any]:
    before, after = excerpt(citation)
    names = ("source", "start", "end", "quote")
    return {**{name: citation[name] for name in names}, "before": before, "after": after}


def _text(text: Text | None) -> dict[str, Any]:
    """`{"text": …, "chars": …}`; `chars` counts the whole, of which the page may hold the beginning only."""
    return {"text": shown(text)[:LONGEST], "chars": text["chars"]} if text else {"text": "", "chars": 0}


def _tokens(entry: Turn | Answered) -> dict[str, Any]:
    return {"input": entry["input_tokens"], "output": entry["output_tokens"], "cost": entry["cost"]}
