"""What comes next: pure functions of the state, which every edge of the graph follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from langgraph.types import Send

from rlm_graph.ledger import Limits
from rlm_graph.state import Phase, State, StopReason, SubCall

Next = Literal["plan", "probe", "filter", "chunk", "dispatch", "compose", "__end__"]
_LAST_STEPS = range(3, 7)
"""Supersteps left at which the run must end: a wave of calls takes three, its cell one, `compose` one. Two are what
`update_state` always pretends to have, so they say nothing."""


def is_direct(state: State, depth: int, direct_below: int) -> bool:
    """Whether the whole context goes into one prompt."""
    fresh = not state.get("journal")
    return depth == 0 and fresh and state["sources"][-1]["tokens"] < direct_below


def ending(state: State, limits: Limits) -> StopReason | None:
    """Why the run ends now; None while it goes on.

    A limit that has been reached gives its name to the end, also where the root still composed an answer.
    """
    draft = state.get("draft")
    if draft and draft["ready"]:
        return state.get("limit") or "answered"
    if state.get("steps", 0) in _LAST_STEPS:
        return "max_steps"
    if state.get("running") or state.get("queue"):
        return None
    if over := state.get("over"):
        return over
    if max(state["errors"], len(state.get("misfits") or [])) >= limits.max_errors:
        return state.get("limit") or "errors"
    if len(state.get("turns") or []) - state["start"]["turn"] >= limits.max_turns:
        return state.get("limit") or "max_turns"
    return None


def in_a_run(state: State) -> State:
    """The state as a node sees it, to whom even the very last steps are real."""
    return {**state, "steps": max(_LAST_STEPS.start, state["steps"])}


def after_load(depth: int, direct_below: int) -> Callable[[State], Literal["plan", "compose"]]:
    def edge(state: State) -> Literal["plan", "compose"]:
        return "compose" if is_direct(state, depth, direct_below) else "plan"

    return edge


def next_step(limits: Limits) -> Callable[[State], Next]:
    """The edge behind `plan` and behind every node that runs cells."""

    def edge(state: State) -> Next:
        if state.get("stop_reason"):
            return "__end__"
        if ending(state, limits):
            return "compose"
        if state.get("running"):
            return "dispatch"
        if queue := state.get("queue"):
            phase: Phase = queue[0]["phase"]
            return phase
        return "plan"

    return edge


def let_go(state: State) -> list[Send] | str:
    """The edge behind `dispatch`: a `Send` for each batch and each nested RLM, else back to the waiting cell."""
    wave, running = state["wave"], state["running"]
    assert wave is not None and running is not None
    if not wave["calls"]:
        return running["phase"]
    to: SubCall = {
        "run": state["run"],
        "tree": state["tree"],
        "cell": len(state.get("journal") or []),
        "kernel": wave["kernel"],
    }
    sends = [Send("sub_call", {**to, "batch": key}) for key in wave["batches"]]
    pump: SubCall = {**to, "allowance": wave["allowance"]}
    sends[:1] = [Send("sub_call", {**pump, "batch": wave["batches"][0]} if wave["batches"] else pump)]
    sends += [Send("sub_call", {**to, "batch": key, "alone": True}) for key in wave["alone"]]
    return sends + [Send("sub_call", {**to, "nested": key}) for key in wave["nested"]]


def after_verify(state: State) -> str:
    """Back to the waiting cell, or to `dispatch` with answers that are in doubt."""
    wave, running = state["wave"], state["running"]
    assert wave is not None and running is not None
    return "dispatch" if wave["uncertain"] else running["phase"]
