"""What a human is asked before a large wave of calls, and what the answer means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlm_graph.state import Call

_SAMPLES = 3
_SAMPLE_CHARS = 300
HOW = "Resume with 'approve', with a smaller number of calls, or with 'refuse'."


USUAL_REPLY = 500
"""Tokens that a reply is taken to have when the cost of calls is estimated for a human."""


@dataclass(frozen=True, slots=True)
class Approval:
    """What a question may do before a human is asked, and again between two such askings.

    Attributes:
        calls: Calls; None: as many as the limits allow.
        cost: US dollars, estimated for calls that are still to be made; None: as much as the limits allow. It needs the
            price of every model.

    Example:
        >>> Approval(calls=100, cost=2.50).within(calls=80, cost=3.00)
        False
    """

    calls: int | None = None
    cost: float | None = None

    def within(self, calls: int, cost: float) -> bool:
        """Whether so much may be done without a human's word."""
        return (self.calls is None or calls <= self.calls) and (self.cost is None or cost <= self.cost)

    def or_more(self, other: Approval) -> Approval:
        """The larger of two, of each kind."""
        return Approval(_larger(self.calls, other.calls), _larger(self.cost, other.cost))

    def after(self, calls: int, cost: float, *, more: bool) -> Approval:
        """What may be done in all where so much has been approved, and this much more before the next asking."""
        return Approval(
            None if self.calls is None else calls + more * self.calls,
            None if self.cost is None else cost + more * self.cost,
        )


def above(said: int | Approval | None) -> Approval | None:
    """What the parameter `approve_above` means: a number is one of calls."""
    if said is None or isinstance(said, Approval):
        return said
    if isinstance(said, bool) or not isinstance(said, int):
        raise TypeError(f"approve_above is a number of calls or an Approval(calls=…, cost=…), not {said!r}")
    return Approval(calls=said)


def _larger(one: Any, other: Any) -> Any:
    return None if one is None or other is None else max(one, other)


def request(
    calls: Mapping[str, Call], model: str, nested: int, made: int, tokens: int, cost: float | None
) -> dict[str, Any]:
    """What `dispatch` is about to do, as the value of its interrupt.

    Args:
        calls: The waiting calls.
        model: Name of the model that would answer them.
        nested: How many of them are whole RLMs one level deeper, whose own calls are not counted here.
        made: Calls made so far in the tree.
        tokens: Tokens that models would be given, roughly.
        cost: What they will cost in US dollars, roughly; None where the model's price is not known.
    """
    prompts = [_shown(call) for call in calls.values()]
    return {
        "kind": "approve_calls",
        "calls": len(prompts),
        "nested": nested,
        "calls_made": made,
        "model": model,
        "tokens": tokens,
        "cost": cost,
        "samples": [p if len(p) <= _SAMPLE_CHARS else p[:_SAMPLE_CHARS] + "…" for p in prompts[:_SAMPLES]],
        "how": HOW,
    }


def _shown(call: Call) -> str:
    return f"{call.prompt}({json.dumps(call.context, ensure_ascii=False)})" if call.kind == "tool" else call.prompt


def not_understood(said: Any) -> str:
    """What a human is told who answered something else; the question is then put again."""
    return f"{str(said)[:60]!r} is no answer. {HOW}"


def calls_allowed(said: Any, asked: int) -> int | None:
    """How many of the calls asked for may be made; None where the answer is none that we know.

    Args:
        said: What the run was resumed with: `"approve"` or True, `"refuse"` or False, a number of calls, or
            `{"max_calls": number}`.
        asked: Calls asked for.
    """
    if isinstance(said, dict):
        said = said.get("max_calls")
    if said is True or said == "approve":
        return asked
    if said is False or said == "refuse":
        return 0
    if isinstance(said, int) and said >= 0:
        return min(said, asked)
    return None
