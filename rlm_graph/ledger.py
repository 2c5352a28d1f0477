"""The limits of a run, and the one ledger of its whole recursion tree: reserve, then spend."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a run may do. All counts are for one question.

    Attributes:
        max_depth: 0: no sub-calls; 1: plain calls; 2: RLMs one level deeper, whose calls are plain; and so on (as in
            arXiv 2512.24601). At the last depth an `rlm_query` becomes a plain call.
        max_breadth: Calls that one `dispatch` lets go. More than that go in several waves.
        max_calls: Calls in the whole tree: plain ones, nested RLMs and the user's tools. The root's own turns are not
            among them.
        max_concurrency: Model calls in flight at once in the whole tree, roots included.
        max_turns: Root turns of each RLM in the tree.
        max_errors: Turns in a row without a cell, or with a failed one, that end an RLM.
        max_retries: How often a call is asked again that came back without an answer or an error, or failed its check.
        cell_seconds: Computing time of one cell in seconds; the clock stops while it waits for answers.
        cell_output: Characters of a cell's output that the root is shown: head and tail; the middle is counted.
        kernel_memory: Bytes of data that one kernel may hold.

    Raises:
        TypeError: One of them is no number.
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
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Limits({field.name}={value!r}): it must be a number")
            least = 0 if field.name in zero_is_fine else 1
            if value < least:
                raise ValueError(f"Limits({field.name}={value}): it must be at least {least}")


@dataclass(frozen=True, slots=True)
class Spent:
    """What one model call came to."""

    model: str
    depth: int
    input_tokens: int
    output_tokens: int


class Ledger:
    """Counts what the tree has reserved and spent. Safe to use from any thread.

    Everything goes by call id, so that doing it twice is harmless: a resumed run reserves and settles again what it
    finds on record, and the counts stay what they were.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._reserved: set[str] = set()
        self._settled: set[str] = set()
        self._spent: dict[str, Spent] = {}
        self._failed: set[str] = set()
        self._refused: set[str] = set()
        self._short = False
        """Whether calls were refused and none has been let go since: what was wanted was not got another way."""
        self._turns: set[str] = set()

    def reserve(self, ids: Sequence[str], most: int | None = None) -> Literal["reserved", "over", "unasked"]:
        """Takes room for these calls, for all of them or for none.

        Args:
            ids: Call ids; those that have room already count once.
            most: Calls that a human has approved, where one is to be asked.

        Returns:
            `over` where they exceed `max_calls`, `unasked` where they exceed `most`.
        """
        with self._lock:
            new = set(ids) - self._reserved
            reserved = len(self._reserved) + len(new)
            if reserved > self._limits.max_calls:
                self._refused.update(new)
                self._short = True
                return "over"
            if most is not None and reserved > most:
                return "unasked"
            self._short = self._short and not new
            self._reserved |= new
            return "reserved"

    def note_reserved(self, ids: Iterable[str]) -> None:
        """Notes calls that an earlier process had reserved room for before it ended."""
        with self._lock:
            self._reserved.update(ids)

    def note_refused(self, ids: Iterable[str]) -> None:
        """Notes calls that were refused, by a human or before this process."""
        with self._lock:
            self._refused.update(ids)

    def settle(self, id: str, spent: Spent | None, *, failed: bool = False) -> None:
        """Notes what a reserved call came to."""
        with self._lock:
            self._reserved.add(id)
            self._settled.add(id)
            if spent is not None:
                self._spent[id] = spent
            if failed:
                self._failed.add(id)

    def turn(self, id: str, spent: Spent) -> None:
        """Notes a root turn, which counts tokens but is no call."""
        with self._lock:
            self._turns.add(id)
            self._spent[id] = spent

    def with_these(self, ids: Iterable[str]) -> int:
        """How many calls would be reserved with these among them."""
        with self._lock:
            return len(self._reserved.union(ids))

    def calls_left(self) -> int:
        """Calls that still fit."""
        with self._lock:
            return self._limits.max_calls - len(self._reserved)

    def limit_reached(self) -> Literal["max_calls"] | None:
        """The limit that has cost this tree calls, unless it then made do with fewer."""
        with self._lock:
            return "max_calls" if self._short else None

    def progress(self) -> dict[str, int]:
        """Calls asked, done and failed so far in the whole tree."""
        with self._lock:
            return {"asked": len(self._reserved), "done": len(self._settled), "failed": len(self._failed)}

    def usage(self) -> dict[str, Any]:
        """The tree's totals, `seconds` aside."""
        with self._lock:
            spent = list(self._spent.values())
            return {
                "turns": len(self._turns),
                "calls": len(self._reserved),
                "failed": len(self._failed),
                "refused": len(self._refused),
                "input_tokens": sum(s.input_tokens for s in spent),
                "output_tokens": sum(s.output_tokens for s in spent),
                "cost": None,
                "by_model": _grouped((s.model, s) for s in spent),
                "by_depth": _grouped((str(s.depth), s) for s in spent),
            }


def _grouped(spent: Iterable[tuple[str, Spent]]) -> dict[str, dict[str, int]]:
    groups: dict[str, dict[str, int]] = {}
    for name, s in spent:
        group = groups.setdefault(name, {"calls": 0, "input_tokens": 0, "output_tokens": 0})
        group["calls"] += 1
        group["input_tokens"] += s.input_tokens
        group["output_tokens"] += s.output_tokens
    return groups
