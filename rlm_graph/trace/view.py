"""From a trajectory's entries to what a page shows of a run: a pure function of the entries.

After a resume an entry may stand twice; the later one counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]
Excerpt = Callable[[Mapping[str, Any]], tuple[str, str]]
"""The text before and after a citation, in its source; two empty strings where the source cannot be read."""

BINS = 1_000
"""Parts into which the coverage strip divides the input."""

LONGEST = 20_000
"""Characters of one text that the page holds; what is left out is counted."""


def view(entries: Sequence[Entry], excerpt: Excerpt) -> dict[str, Any]:
    """What the page shows.

    Args:
        entries: A trajectory, in order.
        excerpt: How to read a citation's surroundings.

    Returns:
        JSON-like data: `question`, `answer`, `stop_reason`, `warnings`, `context`, `usage`, `spent` (tables of tokens
        and cost), `citations`, `coverage`, `strip`, and `runs`, the tree: the top one first, each with its `turns`,
        `cells` and their `calls`. Times are in seconds from the beginning.
    """
    runs = [entry for entry in entries if entry["event"] == "run"]
    top = next((run for run in reversed(runs) if run["depth"] == 0), runs[0] if runs else {})
    began = min((entry["at"] for entry in entries), default=0.0)
    end = _last(entries, "answer", run=top.get("run"))
    source = (top.get("sources") or [{}])[-1]
    citations = list(end.get("citations") or [])
    coverage = dict(end.get("coverage") or {})
    return {
        "question": top.get("question", ""),
        "answer": _text(end.get("answer")),
        "ended": bool(end),
        "stop_reason": end.get("stop_reason", "did not end"),
        "warnings": list(end.get("warnings") or []),
        "began": began,
        "seconds": round(max((entry["at"] for entry in entries), default=began) - began, 3),
        "models": list(top.get("models") or []),
        "limits": dict(top.get("limits") or {}),
        "context": {name: source.get(name) for name in ("name", "kind", "chars", "tokens", "items")},
        "usage": dict(end.get("usage") or {}),
        "spent": _spent(entries),
        "citations": [_cited(citation, excerpt) for citation in citations],
        "coverage": {name: coverage.get(name) for name in ("scanned", "read")},
        "unread": [str(part) for part in coverage.get("unread") or ()],
        "strip": strip(coverage, citations),
        "runs": _runs(entries, began),
    }


def _runs(entries: Sequence[Entry], began: float) -> list[dict[str, Any]]:
    """Every RLM of the tree, the top one first, then in order of their beginning."""
    begun = {entry["run"]: entry for entry in entries if entry["event"] == "run"}
    ordered = sorted(begun.values(), key=lambda run: (run["depth"], run["at"]))
    by_run: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_run[entry["run"]].append(entry)
    return [_run(run, by_run[run["run"]], began) for run in ordered]


def _run(run: Entry, entries: Sequence[Entry], began: float) -> dict[str, Any]:
    end = _last(entries, "answer")
    return {
        "id": run["run"],
        "depth": run["depth"],
        "question": run["question"],
        "start": round(run["at"] - began, 3),
        "end": round((end["at"] if end else entries[-1]["at"]) - began, 3),
        "stop_reason": end.get("stop_reason", "did not end"),
        "answer": _text(end.get("answer")),
        "turns": [_turn(turn, began) for turn in _latest(entries, "turn", "id")],
        "cells": _cells(entries, began),
        "limits": [entry["limit"] for entry in _latest(entries, "limit", "limit")],
    }


def _turn(turn: Entry, began: float) -> dict[str, Any]:
    return {
        "start": round(turn["at"] - turn["seconds"] - began, 3),
        "end": round(turn["at"] - began, 3),
        "model": turn["model"],
        "reply": _text(turn["reply"]),
        **_tokens(turn),
    }


def _cells(entries: Sequence[Entry], began: float) -> list[dict[str, Any]]:
    begun = {entry["index"]: entry for entry in entries if entry["event"] == "cell"}
    ended = {entry["index"]: entry for entry in entries if entry["event"] == "output"}
    calls: dict[int, list[Entry]] = defaultdict(list)
    for reply in _latest(entries, "reply", "id"):
        calls[reply["index"]].append(reply)
    return [
        _cell(begun.get(index), ended.get(index), calls[index], began) for index in sorted(begun.keys() | ended.keys())
    ]


def _cell(begun: Entry | None, ended: Entry | None, calls: Sequence[Entry], began: float) -> dict[str, Any]:
    some: Entry = ended or begun or {}
    told: Entry = ended or {}
    start = begun["at"] if begun else some["at"]
    return {
        "index": some["index"],
        "turn": some["turn"],
        "phase": some["phase"],
        "start": round(start - began, 3),
        "end": round(max([some["at"], start, *(call["at"] for call in calls)]) - began, 3),
        "code": _text(some.get("code") or (begun or {}).get("code")),
        "ended": ended is not None,
        "stdout": _text(told.get("stdout")),
        "error": _text(told.get("error")) if told.get("error") else None,
        "lost": bool(told.get("lost")),
        "calls": [_call(call, began) for call in sorted(calls, key=lambda call: call["asked"])],
    }


def _call(call: Entry, began: float) -> dict[str, Any]:
    return {
        "id": call["id"],
        "kind": call["kind"],
        "model": call["model"],
        "status": call["status"],
        "message": call["message"],
        "start": round(call["asked"] - began, 3),
        "end": round(call["at"] - began, 3),
        "prompt": _text(call["prompt"]),
        "reply": _text(call["reply"]) if call["reply"] else None,
        **_tokens(call),
    }


def _spent(entries: Sequence[Entry]) -> dict[str, list[list[Any]]]:
    """Rows `[name, calls, input tokens, output tokens, cost]` by model, by depth and by phase."""
    phases = {(e["run"], e["index"]): e["phase"] for e in entries if e["event"] in ("cell", "output")}
    tables: dict[str, dict[str, list[Any]]] = {"model": {}, "depth": {}, "phase": {}}
    paid = [(turn, "plan", turn["depth"]) for turn in _latest(entries, "turn", "id")]
    paid += [
        (reply, phases.get((reply["run"], reply["index"]), "?"), reply["depth"] + 1)
        for reply in _latest(entries, "reply", "id")
        if reply["model"]
    ]
    for entry, phase, depth in paid:
        for table, name in (("model", entry["model"]), ("depth", str(depth)), ("phase", phase)):
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


def _text(text: Mapping[str, Any] | None) -> dict[str, Any]:
    """`{"text": …, "chars": …}`; `chars` counts the whole, of which the page may hold the beginning only."""
    if not text:
        return {"text": "", "chars": 0}
    known = text.get("text", text.get("head", ""))
    return {"text": known[:LONGEST], "chars": text["chars"]}


def _tokens(entry: Entry) -> dict[str, Any]:
    return {"input": entry["input_tokens"], "output": entry["output_tokens"], "cost": entry["cost"]}


def _latest(entries: Iterable[Entry], event: str, key: str) -> list[Entry]:
    """Entries of one kind; of those with one key the latest, in the place of the first."""
    return list({entry[key]: entry for entry in entries if entry["event"] == event}.values())


def _last(entries: Iterable[Entry], event: str, run: str | None = None) -> Entry:
    found = [e for e in entries if e["event"] == event and (run is None or e["run"] == run)]
    return found[-1] if found else {}
