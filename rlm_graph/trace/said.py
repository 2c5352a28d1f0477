"""What is to be said of a run: pure functions of what a node was given and what it returned."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, cast

from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from rlm_graph import flow, models
from rlm_graph.ledger import Limits, Spent
from rlm_graph.settings import Settings
from rlm_graph.state import Cell, Reply, Source, State
from rlm_graph.trace.events import (
    Answer,
    Answered,
    AtCell,
    Below,
    Dispatch,
    Entry,
    Made,
    Output,
    Run,
    Said,
    Text,
    Turn,
    Verdict,
    held_out,
    is_text,
    whole,
)


def begun(node: str, state: State, depth: int, limits: Limits) -> Iterator[Entry]:
    """What is to be said before a node works: that a cell begins."""
    queue = state.get("queue")
    if not queue or state.get("running") or node != queue[0]["phase"] or flow.ending(flow.in_a_run(state), limits):
        return
    yield {
        **_said(state, depth),
        "event": "cell",
        "index": len(state.get("journal") or []),
        "turn": len(state.get("turns") or []) - 1 - state["start"]["turn"],
        "phase": queue[0]["phase"],
        "code": whole(queue[0]["code"]),
    }


def followed(node: str, before: State, update: Mapping[str, Any], settings: Settings, depth: int) -> Iterator[Entry]:
    """What is to be said of a node's update."""
    state = cast(State, {**before, **update})
    if node == "load":
        yield _run(state, settings, depth)
    for cell in update.get("journal") or ():
        yield _output(cell, state, depth)
    if (wave := update.get("wave")) and wave["calls"]:
        at = {**_said(state, depth), "index": len(before.get("journal") or []), "wave": wave["number"]}
        nested = len(wave["nested"])
        if node == "dispatch":
            yield cast(Dispatch, {**at, "event": "dispatch", "plain": wave["calls"] - nested, "nested": nested})
        elif node == "verify":
            yield cast(Verdict, {**at, "event": "verdict", "uncertain": wave["uncertain"]})
    if (limit := update.get("limit")) and limit != before.get("limit"):
        yield {**_said(state, depth), "event": "limit", "limit": limit}
    if update.get("stop_reason"):
        yield _answer(state, depth)


def turn(run: str, depth: int, id: str, reply: str, spent: Spent, seconds: float) -> Turn:
    """What is to be said of a root turn."""
    return {
        "at": time.time(),
        "run": run,
        "depth": depth,
        "event": "turn",
        "id": id,
        "model": spent.model,
        "reply": whole(reply),
        **_tokens(spent),
        "seconds": round(seconds, 3),
    }


def at_cell(run: str, depth: int, index: int) -> AtCell:
    """Which cell asks."""
    return {"run": run, "depth": depth, "index": index}


def made(by: AtCell, kind: str, prompt: str, context: Any) -> Made:
    """What is known of a call when its cell makes it."""
    call: Made = {
        "run": by["run"],
        "depth": by["depth"],
        "index": by["index"],
        "kind": kind,
        "prompt": whole(prompt),
        "asked": time.time(),
    }
    if context is not None:
        call["context"] = whole(context if isinstance(context, str) else json.dumps(context, ensure_ascii=False))
    return call


def answered(id: str, call: Made, reply: Reply, spent: Spent | None, at: float) -> Answered:
    """What is to be said of a reply that came `at` (seconds since the epoch)."""
    said: dict[str, Any] = {
        **dict(call),
        "at": at,
        "event": "reply",
        "id": id,
        "model": spent.model if spent else None,
        "status": reply.error or "answered",
        "message": reply.message,
        "reply": None if reply.text is None else whole(reply.text),
        **_tokens(spent),
    }
    return cast(Answered, said)


def kept_beside(said: Answered) -> dict[str, Any]:
    """What the record keeps beside a reply, which it has already."""
    kept: dict[str, Any] = {name: value for name, value in said.items() if name not in {"reply", "message"}}
    return {name: held_out(cast(Text, value)) if is_text(value) else value for name, value in kept.items()}


def _said(state: State, depth: int) -> Said:
    return {"at": time.time(), "run": state["run"], "depth": depth}


def _run(state: State, settings: Settings, depth: int) -> Run:
    below, again = settings.model(depth + 1), settings.retry_model
    called: Below = {
        "settings": models.settings_hash(below),
        "window": models.window_of(below),
        "tools": [dict(tool.spec) for tool in settings.tools],
    }
    if again is not None:
        called["retry"] = {"model": models.name_of(again), "settings": models.settings_hash(again)}
    return {
        **_said(state, depth),
        "event": "run",
        "tree": state["tree"],
        "number": state["start"]["question"],
        "question": state["asked"],
        "sources": [_reference(source) for source in state["sources"]],
        "models": [models.name_of(model) for model in settings.models],
        "below": called,
        "limits": asdict(settings.limits),
    }


def _reference(source: Source) -> dict[str, Any]:
    """A context by reference, without the beginnings and ends of its text."""
    return {name: value for name, value in source.items() if name not in {"head", "tail", "about", "left_out"}}


def _output(cell: Cell, state: State, depth: int) -> Output:
    error = cell["error"]
    return {
        **_said(state, depth),
        "event": "output",
        "index": cell["index"],
        "turn": cell["turn"],
        "phase": cell["phase"],
        "stdout": whole(cell["stdout"]),
        "error": whole(error) if error is not None else None,
        "asked": cell["asked"],
        "failed": cell["failed"],
        "refused": cell["refused"],
        "lost": cell["lost"],
        "report": cell["report"],
        "code": whole(cell["code"]),
        "context": cell["context"],
        "question": cell["question"],
    }


def _answer(state: State, depth: int) -> Answer:
    values: dict[str, Any] = dict(state)
    more: dict[str, Any] = {name: values[name] for name in ("citations", "coverage") if name in values}
    if "structured_response" in values:
        more["structured_response"] = to_jsonable_python(values["structured_response"], serialize_unknown=True)
    return cast(
        Answer,
        {
            **_said(state, depth),
            "event": "answer",
            "answer": whole(state["answer"] or ""),
            "stop_reason": state["stop_reason"],
            "usage": state["usage"],
            "warnings": list(state.get("warnings") or []),
            **more,
        },
    )


class _Tokens(TypedDict):
    input_tokens: int
    output_tokens: int
    cost: float | None


def _tokens(spent: Spent | None) -> _Tokens:
    if spent is None:
        return {"input_tokens": 0, "output_tokens": 0, "cost": None}
    return {"input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens, "cost": spent.cost}
