"""What model calls came to, one by one and together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spent:
    """What one model call came to. `cost` is in US dollars, None where the model's price is not known."""

    model: str
    depth: int
    input_tokens: int
    output_tokens: int
    cost: float | None = None


def total_cost(costs: Iterable[float | None]) -> float | None:
    """US dollars in all; None where one cost is not known."""
    total = 0.0
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return round(total, 9)


def grouped(spent: Iterable[tuple[str, Spent]], remote: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Calls, tokens and cost by name.

    Args:
        spent: What single calls came to, with the name that each counts for.
        remote: Such groups of runs elsewhere.
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    for name, s in spent:
        one = {"calls": 1, "input_tokens": s.input_tokens, "output_tokens": s.output_tokens, "cost": s.cost}
        parts.setdefault(name, []).append(one)
    for groups in remote:
        for name, group in groups.items():
            parts.setdefault(name, []).append(group)
    return {
        name: {k: sum(p[k] for p in group) for k in ("calls", "input_tokens", "output_tokens")}
        | {"cost": total_cost(p.get("cost") for p in group)}
        for name, group in parts.items()
    }
