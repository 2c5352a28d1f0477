"""How much a run may do."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Limit = Literal["max_calls", "max_tokens", "max_cost", "max_seconds"]
"""A limit of the whole tree."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a run may do. All are for one question; None: not limited.

    Attributes:
        max_depth: 0: no sub-calls; 1: plain calls; 2: RLMs one level deeper, whose calls are plain; and so on (as in
            arXiv 2512.24601). At the last depth an `rlm_query` becomes a plain call.
        max_breadth: Calls that one `dispatch` lets go. More than that go in several waves.
        max_calls: Calls in the whole tree: plain ones, nested RLMs and the user's tools. The root's own turns are not
            among them.
        max_tokens: Tokens of all model calls in the whole tree, root turns included, input and output together.
        max_cost: The same in US dollars. It needs the price of every model.
        max_seconds: Wall-clock of the question, in seconds; waiting for a human does not count. Model calls in flight
            are cut off when it ends.
        max_concurrency: Model calls in flight at once in the whole tree, roots included.
        max_turns: Root turns of each RLM in the tree.
        max_errors: Turns in a row without a cell, or with a failed one, that end an RLM.
        max_retries: How often a call is asked again whose answer failed its check, and a transient failure of a model
            that has no `max_retries` of its own is tried again.
        cell_seconds: Computing time of one cell in seconds; the clock stops while it waits for answers.
        cell_output: Characters of a cell's output that the root is shown: head and tail; the middle is counted.
        kernel_memory: Bytes that one kernel, all its processes together, may hold.

    Raises:
        TypeError: One of them is no number, or a fraction where something is counted.
        ValueError: One of them is below 1 (below 0 for `max_depth`, `max_calls` and `max_retries`).

    Example:
        >>> Limits(max_calls=200).max_calls
        200
        >>> Limits(max_turns=0)
        Traceback (most recent call last):
        ...
        ValueError: Limits(max_turns=0): it must be at least 1
    """

    max_depth: int = 2
    max_breadth: int = 1000
    max_calls: int = 1000
    max_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None
    max_concurrency: int = 64
    max_turns: int = 30
    max_errors: int = 3
    max_retries: int = 2
    cell_seconds: float = 120.0
    cell_output: int = 10_000
    kernel_memory: int = 4_000_000_000

    def __post_init__(self) -> None:
        zero_is_fine = {"max_depth", "max_calls", "max_retries"}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            counts = field.name not in {"max_cost", "max_seconds", "cell_seconds"}
            if isinstance(value, bool) or not isinstance(value, int if counts else int | float):
                wanted = "a whole number" if counts else "a number"
                raise TypeError(f"Limits({field.name}={value!r}): it must be {wanted}")
            if field.name in {"max_cost", "max_seconds"}:
                if not value > 0:
                    raise ValueError(f"Limits({field.name}={value}): it must be above 0")
                continue
            least = 0 if field.name in zero_is_fine else 1
            if value < least:
                raise ValueError(f"Limits({field.name}={value}): it must be at least {least}")
