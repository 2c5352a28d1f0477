"""The one ledger of a run's whole recursion tree: reserve, then spend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from rlm_graph.limits import Limit as Limit
from rlm_graph.limits import Limits as Limits
from rlm_graph.usage import NOTHING as NOTHING
from rlm_graph.usage import Amount as Amount
from rlm_graph.usage import Replied, Sum, amount_of, grouped, total_cost
from rlm_graph.usage import Spent as Spent
from rlm_graph.usage import Wanted as Wanted


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of the tree's limits; None: not limited."""

    calls: int
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def share(self, parts: int) -> dict[str, float]:
        """One of so many equal parts, as limits; seconds are not divided. 0 of something is no room to start with."""
        share: dict[str, float] = {"max_calls": max(0, self.calls) // parts}
        if self.tokens is not None:
            share["max_tokens"] = max(0, self.tokens) // parts
        if self.cost is not None:
            share["max_cost"] = max(0.0, self.cost) / parts
        if self.seconds is not None:
            share["max_seconds"] = max(0.0, self.seconds)
        return share

    def lacking(self, calls: int, need: Amount) -> Limit | None:
        """The limit that so many more calls, which need so much, would not fit."""
        if self.seconds is not None and self.seconds <= 0:
            return "max_seconds"
        if calls > self.calls:
            return "max_calls"
        if self.tokens is not None and need.tokens > self.tokens:
            return "max_tokens"
        if self.cost is not None and need.cost > self.cost:
            return "max_cost"
        return None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that waits for room: how much, and how to tell it that there may be some."""

    most: Amount
    wake: Callable[[], object]


class Ledger:
    """Counts what the tree has reserved and spent. Safe to use from any thread.

    Everything goes by call id, so that doing it twice is harmless: a resumed run reserves and settles again what it
    finds on record, and the counts stay what they were.

    Room among `max_calls` is reserved for all calls of a batch together, before any of it starts. Room among
    `max_tokens` and `max_cost` is held for the calls in flight: by each, when it starts, for as much as it can come to
    at most, until it is settled with what it came to.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._reserved: set[str] = set()
        self._settled: set[str] = set()
        self._failed: set[str] = set()
        self._refused: set[str] = set()
        self._turns: set[str] = set()
        self._spent: set[str] = set()
        self._sums: dict[tuple[str, int], Sum] = {}
        """What was spent, by model and depth: whoever watches asks often, and the calls may be tens of thousands."""
        self._replied: dict[tuple[str, bool], Replied] = {}
        """By model, and whether to a root's turn: code says nothing of how long a label is."""
        self._total = NOTHING
        self._held: dict[str, Amount] = {}
        self._queue: dict[str, Waiting] = {}
        """What calls wait for that came too early, in the order in which they came: none overtakes another."""
        self._lent: dict[str, int] = {}
        """Calls that remote runs may make, by the call that they answer."""
        self._remote: dict[str, Mapping[str, Any]] = {}
        self._kept = NOTHING
        """What calls leave to the top's next turn, so that it can compose when they have used up the rest."""
        self._cut_off: set[str] = set()
        self._short: Limit | None = None
        """The limit that refused calls, when none has been let go since: what was wanted was not got another way."""
        self._over: Limit | None = None
        """The limit that calls ran into in the middle of a wave."""
        self._seconds = 0.0
        self._since: float | None = None

    def reserve(
        self, ids: Sequence[str], most: int | None = None, need: Amount = NOTHING
    ) -> Literal["reserved", "unasked"] | Limit:
        """Takes room for these calls, for all of them or for none.

        Args:
            ids: Call ids; those that have room already count once.
            most: Calls that a human has approved, where one is to be asked.
            need: What they come to at least: their prompts.

        Returns:
            The limit that they exceed, where they do; `unasked` where they exceed `most`.
        """
        with self._lock:
            new = set(ids) - self._reserved
            lacking = self._left(held=False).lacking(len(new), need) if new else None
            if lacking:
                self._short = lacking
                return lacking
            if most is not None and self._calls() + len(new) > most:
                return "unasked"
            self._short = None if new else self._short
            self._reserved |= new
            return "reserved"

    def hold(
        self,
        id: str,
        most: Amount,
        keep: Amount | None = None,
        less: Sequence[Amount] = (),
        at_once: int = 0,
        wake: Callable[[], object] = lambda: None,
    ) -> Literal["held", "later"] | Limit:
        """Holds room for what a call that is about to start can come to at most.

        Args:
            id: Its id, or a root turn's.
            most: What it can come to.
            keep: For a turn of the root at the top of the tree: what the turn after it can come to, for which calls
                leave room, though never more than a quarter of a limit.
            less: See `Wanted`.
            at_once: The same; those who wait share what there is.
            wake: After `later`: called, in any thread, when it is this call's turn to ask again.

        Returns:
            `later` where it fits only if calls in flight come to less than they may; the limit in its way where it
            does not fit at all.
        """
        with self._lock:
            if keep is not None:
                self._kept = NOTHING
            left, free = self._left(held=False), self._left()
            fitting = [amount for amount in (most, *less[:at_once]) if not left.lacking(0, amount)]
            fitting = fitting or [amount for amount in less[at_once:] if not left.lacking(0, amount)][:1] or [most]
            those_waiting = len(self._queue.keys() | {id})
            amount = next((a for a in fitting if not free.lacking(0, a * those_waiting)), fitting[-1])
            if lacking := left.lacking(0, amount):
                self._over = lacking
            elif free.lacking(0, self._before(id) + amount):
                self._queue[id] = Waiting(amount, wake)
                return "later"
            else:
                self._kept = self._quarter(keep) if keep else self._kept
                self._held[id] = self._held.get(id, NOTHING) + amount
            self._queue.pop(id, None)
            self._wake_next()
            return lacking or "held"

    def held(self, id: str) -> Amount:
        """What a call in flight holds."""
        with self._lock:
            return self._held.get(id, NOTHING)

    def replied(self, model: str, *, turn: bool) -> Replied:
        """What this model's replies in the tree came to, those to a root's turns or to calls."""
        with self._lock:
            return self._replied.get((model, turn), Replied())

    def release(self, id: str) -> None:
        """Gives back what a call held that came to nothing."""
        with self._lock:
            self._held.pop(id, None)
            self._lent.pop(id, None)
            self._queue.pop(id, None)
            self._wake_next()

    def settle(self, id: str, spent: Spent | None, *, failed: bool = False) -> None:
        """Notes what a reserved call came to."""
        with self._lock:
            self._reserved.add(id)
            self._settled.add(id)
            self._spend(id, spent)
            if failed:
                self._failed.add(id)
            self._wake_next()

    def turn(self, id: str, spent: Spent) -> None:
        """Notes a root turn, which counts tokens but is no call."""
        with self._lock:
            self._turns.add(id)
            self._spend(id, spent, turn=True)
            if spent.depth == 0 and self._kept == NOTHING:
                self._kept = self._quarter(amount_of(spent))
            self._wake_next()

    def refuse(self, ids: Iterable[str], limit: Limit | None = None) -> None:
        """Notes calls that were refused before they started."""
        with self._lock:
            refused = set(ids)
            self._refused |= refused
            self._reserved -= refused
            for id in refused:
                self._held.pop(id, None)
                self._lent.pop(id, None)
            self._over = self._over or (limit if limit != "max_calls" else None)
            self._wake_next()

    def note_reserved(self, ids: Iterable[str]) -> None:
        """Notes calls that an earlier process had reserved room for before it ended."""
        with self._lock:
            self._reserved.update(set(ids) - self._refused)

    def ran_into(self, limit: Limit) -> None:
        """Notes that calls were refused by this limit, or cut off, in the middle of a wave."""
        with self._lock:
            self._over = self._over or limit

    def note_cut_off(self, id: str) -> None:
        """Notes a model call that was cut off in flight: what it came to is never told."""
        with self._lock:
            self._cut_off.add(id)

    def cut_off(self) -> int:
        """How many model calls were cut off in flight."""
        with self._lock:
            return len(self._cut_off)

    def lend(self, id: str, parts: int = 1, share: Mapping[str, float] | None = None) -> dict[str, float]:
        """Holds a share of what is left for a run that keeps a ledger of its own, elsewhere, to answer a call.

        Args:
            id: The call's id. The share is given back when it is settled (`settle_remote`) or released.
            parts: How many such runs are to share what is left, this one included.
            share: What an earlier process lent for this call, and is still lent; None: a new share.

        Returns:
            The share: see `Left.share`.
        """
        with self._lock:
            lent = self._left().share(parts) if share is None else dict(share)
            if id not in self._settled:
                self._lent[id] = int(lent["max_calls"])
                self._held[id] = Amount(int(lent.get("max_tokens", 0)), lent.get("max_cost", 0.0))
            return lent

    def settle_remote(self, id: str, usage: Mapping[str, Any], depth: int = 1, *, failed: bool = False) -> None:
        """Notes the `usage` of a run elsewhere, at this depth, that had a share; gives back the rest of it."""
        with self._lock:
            self._reserved.add(id)
            self._settled.add(id)
            self._held.pop(id, None)
            self._lent.pop(id, None)
            if id not in self._remote:
                deeper = {str(int(name) + depth): group for name, group in usage["by_depth"].items()}
                self._remote[id] = {**usage, "by_depth": deeper}
                self._add(Amount(usage["input_tokens"] + usage["output_tokens"], usage.get("cost") or 0.0))
            if failed:
                self._failed.add(id)
            self._wake_next()

    def with_these(self, ids: Iterable[str]) -> int:
        """How many calls would be reserved with these among them."""
        with self._lock:
            return self._calls() + len(set(ids) - self._reserved)

    def left(self, *, held: bool = True) -> Left:
        """What is left for calls, the top's next turn set aside.

        Args:
            held: Whether what those in flight may still come to counts as gone.
        """
        with self._lock:
            return self._left(held=held)

    def limit_reached(self) -> Limit | None:
        """The limit that has cost this tree calls, unless it then made do with fewer."""
        with self._lock:
            return self._over or self._short

    def cost_so_far(self) -> float:
        """What the tree has come to, in US dollars, as far as prices are known."""
        with self._lock:
            return self._total.cost

    def go_on(self, seconds: float = 0.0) -> None:
        """Starts the clock, where it stands; `seconds` have passed already."""
        with self._lock:
            self._seconds = max(self._seconds, seconds)
            if self._since is None:
                self._since = time.monotonic()

    def pause(self) -> None:
        """Stops the clock: a human is asked."""
        with self._lock:
            self._seconds, self._since = self._elapsed(), None

    def seconds(self) -> float:
        """Wall-clock of the question so far."""
        with self._lock:
            return self._elapsed()

    def progress(self) -> dict[str, int]:
        """Calls asked, done and failed so far in the whole tree."""
        with self._lock:
            return {"asked": len(self._reserved), "done": len(self._settled), "failed": len(self._failed)}

    def usage(self) -> dict[str, Any]:
        """The tree's totals."""
        with self._lock:
            spent, remote = self._sums.items(), list(self._remote.values())
            sums = [each for _, each in spent]
            totals = {
                "turns": len(self._turns),
                "calls": len(self._reserved),
                "failed": len(self._failed),
                "refused": len(self._refused),
                "input_tokens": sum(s.input_tokens for s in sums),
                "output_tokens": sum(s.output_tokens for s in sums),
            }
            for name in totals:
                totals[name] += sum(usage[name] for usage in remote)
            return {
                **totals,
                "cost": total_cost([s.cost for s in sums] + [usage.get("cost") for usage in remote]),
                "seconds": round(self._elapsed(), 3),
                "by_model": grouped([(model, s) for (model, _), s in spent], [u["by_model"] for u in remote]),
                "by_depth": grouped([(str(depth), s) for (_, depth), s in spent], [u["by_depth"] for u in remote]),
            }

    def _calls(self) -> int:
        remote = sum(int(usage["calls"]) for usage in self._remote.values())
        return len(self._reserved) + remote + sum(self._lent.values())

    def _left(self, *, held: bool = True) -> Left:
        taken = self._total + self._kept
        if held:
            taken = sum(self._held.values(), taken)
        limits = self.limits
        return Left(
            limits.max_calls - self._calls(),
            None if limits.max_tokens is None else limits.max_tokens - taken.tokens,
            None if limits.max_cost is None else limits.max_cost - taken.cost,
            None if limits.max_seconds is None else limits.max_seconds - self._elapsed(),
        )

    def _before(self, id: str) -> Amount:
        """What those wait for that came before this call."""
        return sum((w.most for _, w in takewhile(lambda entry: entry[0] != id, self._queue.items())), NOTHING)

    def _wake_next(self) -> None:
        """Lets the call ask again that has waited longest: what it then hears is the next one's turn."""
        while self._queue:
            id, waiting = next(iter(self._queue.items()))
            try:
                waiting.wake()
            except RuntimeError:  # its loop is closed: nobody waits there any more
                del self._queue[id]
            else:
                return

    def _spend(self, id: str, spent: Spent | None, *, turn: bool = False) -> None:
        self._held.pop(id, None)
        self._lent.pop(id, None)
        if spent is not None and id not in self._spent:
            self._spent.add(id)
            self._sums.setdefault((spent.model, spent.depth), Sum()).add(spent)
            before = self._replied.get((spent.model, turn), Replied())
            self._replied[spent.model, turn] = Replied(before.count + 1, max(before.longest, spent.output_tokens))
            self._add(amount_of(spent))

    def _add(self, amount: Amount) -> None:
        """Counts what came, and the limit that it exceeds: a server may not keep to what it is told."""
        self._total += amount
        limits = self.limits
        if limits.max_tokens is not None and self._total.tokens > limits.max_tokens:
            self._over = self._over or "max_tokens"
        if limits.max_cost is not None and self._total.cost > limits.max_cost:
            self._over = self._over or "max_cost"

    def _quarter(self, amount: Amount) -> Amount:
        """The amount, though at most a quarter of a limit: else a small one would go unused."""
        tokens, cost = self.limits.max_tokens, self.limits.max_cost
        return Amount(
            amount.tokens if tokens is None else min(amount.tokens, tokens // 4),
            amount.cost if cost is None else min(amount.cost, cost / 4),
        )

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._since if self._since is not None else 0.0)
