"""What a caller grants a run: at most so much, and never more than the graph's own limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from rlm_graph.ledger import Limits


class Budget(TypedDict, total=False):
    """Limits on one question and its whole tree, with the meaning that they have in `Limits`."""

    max_calls: int
    max_tokens: int
    max_cost: float
    max_seconds: float


Granted = Annotated[
    Budget | None,
    Field(
        title="Budget",
        description=(
            "The most that the question may come to: `max_calls`, `max_tokens`, `max_cost` (US dollars) and "
            "`max_seconds`, each as far as it is below the graph's own limit. Left empty, the graph's own limits."
        ),
    ),
]


def within(limits: Limits, budget: Budget) -> Limits:
    """The limits, where the budget is narrower that of the budget.

    Raises:
        ValueError: The budget has a name or a value that means nothing here.

    Example:
        >>> narrow = within(Limits(max_calls=100), {"max_calls": 1_000, "max_seconds": 30})
        >>> narrow.max_calls, narrow.max_seconds
        (100, 30)
    """
    if not isinstance(budget, dict) or set(budget) - set(Budget.__annotations__):
        raise ValueError(f"budget {budget!r:.200} is not a mapping with some of {', '.join(Budget.__annotations__)}")
    try:
        granted = replace(limits, **budget)
    except (TypeError, ValueError) as error:
        raise ValueError(f"budget {budget!r:.200}: {error}") from error
    wider = [name for name in budget if _value(granted, name) > _value(limits, name)]
    return replace(granted, **{name: getattr(limits, name) for name in wider})


def _value(limits: Limits, name: str) -> float:
    value = getattr(limits, name)
    return math.inf if value is None else value
