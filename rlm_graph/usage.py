"""What model calls came to, one by one and together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spent:
    """What one model call came to. `cost` is in US dollars, None where the model's price is not known."""

    model: str
    depth: int
    input_tokens: int
    output_tokens: int
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens, input and output together, and US dollars."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.cost + other.cost)

    def __mul__(self, times: int) -> Amount:
        return Amount(self.tokens * times, self.cost * times)


NOTHING = Amount()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model call wants room for.

    Attributes:
        most: What it can come to.
        less: Smaller amounts that do as well where `most` no longer fits, the largest first.
        at_once: So many of `less` do as well where the call would have to wait for larger ones.
    """

    most: Amount
    less: tuple[Amount, ...] = ()
    at_once: int = 0

    @property
    def least(self) -> Amount:
        """What there has to be room for so that the call starts."""
        return (self.most, *self.less)[-1]


def amount_of(spent: Spent) -> Amount:
    """What counts against the limits of one model call."""
    return Amount(spent.input_tokens + spent.output_tokens, spent.cost or 0.0)


@dataclass(frozen=True, slots=True)
class Replied:
    """How many replies a model has given, and the tokens of its longest one."""

    count: int = 0
    longest: int = 0


def total_cost(costs: Iterable[float | None]) -> float | None:
    """US dollars in all; None where one cost is not known."""
    total = 0.0
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return round(total, 9)


@dataclass(slots=True)
class Sum:
    """What many model calls came to. `cost` is in US dollars, None once the cost of one of them is not known."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = 0.0

    def add(self, spent: Spent) -> None:
        self.calls += 1
        self.input_tokens += spent.input_tokens
        self.output_tokens += spent.output_tokens
        self.cost = None if self.cost is None or spent.cost is None else self.cost + spent.cost


def grouped(sums: Iterable[tuple[str, Sum]], remote: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Calls, tokens and cost by name.

    Args:
        sums: What calls came to, with the name that they count for.
        remote: Such groups of runs elsewhere.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for name, each in sums:
        parts.setdefault(name, []).append(asdict(each))
    for groups in remote:
        for name, group in groups.items():
            parts.setdefault(name, []).append(group)
    return {
        name: {k: sum(p[k] for p in group) for k in ("calls", "input_tokens", "output_tokens")}
        | {"cost": total_cost(p.get("cost") for p in group)}
        for name, group in parts.items()
    }
