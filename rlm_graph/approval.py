"""What a human is asked before a large wave of calls, and what the answer means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlm_graph.state import Call
from rlm_graph.tokens import estimate

_SAMPLES = 3
_SAMPLE_CHARS = 300
HOW = "Resume with 'approve', with a smaller number of calls, or with 'refuse'."


def request(calls: Mapping[str, Call], model: str, nested: int, made: int) -> dict[str, Any]:
    """What `dispatch` is about to do, as the value of its interrupt.

    Args:
        calls: The waiting calls.
        model: Name of the model that would answer them.
        nested: How many of them are whole RLMs one level deeper, whose own calls are not counted here.
        made: Calls made so far in the tree.
    """
    prompts = [_shown(call) for call in calls.values()]
    return {
        "kind": "approve_calls",
        "calls": len(prompts),
        "nested": nested,
        "calls_made": made,
        "model": model,
        "tokens": sum(estimate(len(p)) for p in prompts),
        "cost": None,
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
