"""What a recursion tree has on this host: its ledger, its stored replies, and the bound on its model calls.

All of it is rebuilt from the record when another process goes on with the run. This is the only module that knows how
replies and turns are stored.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from langchain_core.messages import AIMessage
from langchain_core.stores import BaseStore

from rlm_graph.approval import Approval
from rlm_graph.budget import Budget, within
from rlm_graph.errors import RLMError
from rlm_graph.identity import content_hash
from rlm_graph.ledger import Amount, Ledger, Limit, Limits, Spent, Wanted
from rlm_graph.state import Reply, Source
from rlm_graph.sweep import ENDED_DAYS, LIVE_DAYS
from rlm_graph.trace.events import Answered
from rlm_graph.trace.log import Log
from rlm_graph.trace.said import kept_beside

INLINE = 4_000
"""Characters up to which a value may stand in the state itself."""

MOST_KEPT = 1_000_000_000
"""Bytes (in memory) of the prompts and contexts that the calls of one tree may put into the store."""

_SWEPT = (
    "the content store no longer has {key}, which this run needs: ask the question again, on a new thread (a folder "
    "store keeps an unfinished run for {live:g} days after its last use, an ended one for {ended:g})"
)

T = TypeVar("T")


class NoRoom(Exception):
    """A model call did not start, or was cut off, because of a limit.

    Args:
        limit: Which.
        cut_off: Whether it had started.
        need: The least room that would have done, where there was none.
    """

    def __init__(self, limit: Limit, *, cut_off: bool = False, need: Amount | None = None) -> None:
        super().__init__(limit)
        self.limit = limit
        self.cut_off = cut_off
        self.need = need


class Tree:
    """One recursion tree on this host.

    Args:
        id: The tree's id: the run at its top and the number of the question, `<run>.<question>`. Replies are kept by
            run, so that a follow-up question can run the cells of the earlier ones again.
        limits: The limits of the whole tree.
        store: Where replies, turns and payloads are kept.
        most_at_once: Model calls in flight at once.
        lasting: Whether it can be resumed: there is a checkpointer.
    """

    def __init__(
        self, id: str, limits: Limits, store: BaseStore[str, bytes], most_at_once: int, *, lasting: bool
    ) -> None:
        self.id = id
        self.run = id.rpartition(".")[0]
        self.ledger = Ledger(limits)
        self.store = store
        self.log = Log(id, store, lasting=lasting)
        self.lasting = lasting
        self._most_at_once = most_at_once
        self._kept: set[str] = set()
        self._kept_bytes = 0
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._threads: ThreadPoolExecutor | None = None
        self._at_work = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A node begins to work for the tree: the clock goes."""
        with self._lock:
            self._at_work += 1
            self.ledger.go_on()

    def end(self) -> None:
        """A node has ended. While none works, the clock stands: a human is asked, or the run has been interrupted."""
        with self._lock:
            self._at_work -= 1
            if not self._at_work:
                self.ledger.pause()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[ThreadPoolExecutor]:
        """A place among the model calls in flight. Synchronous runs are bounded by the threads that it yields."""
        with self._lock:
            gate = self._gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._most_at_once))
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._most_at_once, thread_name_prefix="rlm-model")
        async with gate:
            yield self._threads

    @asynccontextmanager
    async def room(self, id: str, wanted: Callable[[], Wanted], keep: Amount | None = None) -> AsyncIterator[Amount]:
        """Holds room in the ledger for a model call, which has to be settled afterwards; waits where it may come.

        Args:
            id: The call's id, or the root turn's.
            wanted: What it can come to, as far as is known when it is asked: more replies may have come meanwhile.
            keep: See `Ledger.hold`.

        Yields:
            What it holds: one of the amounts wanted.

        Raises:
            NoRoom: A limit does not allow the call.
        """
        loop, some = asyncio.get_running_loop(), asyncio.Event()
        wake = partial(loop.call_soon_threadsafe, some.set)  # what gives room back may run on another loop
        want = wanted()
        try:
            while (verdict := self.ledger.hold(id, want.most, keep, want.less, want.at_once, wake)) == "later":
                with suppress(TimeoutError):
                    await asyncio.wait_for(some.wait(), self.ledger.left().seconds)
                some.clear()
                want = wanted()
            if verdict != "held":
                raise NoRoom(verdict, need=want.least)
            yield self.ledger.held(id)
        except BaseException:
            self.ledger.release(id)
            raise

    async def in_time(self, what: Awaitable[T]) -> T:
        """Waits for something until `max_seconds` is over, and no longer.

        Raises:
            NoRoom: It was cut off.
        """
        try:
            async with asyncio.timeout(self.ledger.left().seconds) as clock:
                return await what
        except TimeoutError:
            if not clock.expired():
                raise
        self.ledger.ran_into("max_seconds")
        raise NoRoom("max_seconds", cut_off=True)

    def close(self) -> None:
        """Lets go of the threads."""
        with self._lock:
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None

    async def replies(self, ids: Sequence[str]) -> dict[str, Reply]:
        """The replies on record among those of `ids`."""
        found = await self.store.amget([self._reply_key(id) for id in ids])
        return {id: _reply(json.loads(data)) for id, data in zip(ids, found, strict=True) if data is not None}

    async def record(self, id: str, reply: Reply, spent: Spent | None = None) -> Answered | None:
        """Keeps a reply, with what it cost, the moment that it arrives; returns what is to be said of it."""
        if reply.error == "BudgetExceeded":
            return (await self.refuse({id: reply}, self.ledger.limit_reached())).get(id)
        said = await self._keep({id: reply}, spent)
        self.ledger.settle(id, spent, failed=reply.error is not None)
        return said.get(id)

    async def record_remote(self, id: str, reply: Reply, usage: Mapping[str, Any], depth: int) -> Answered | None:
        """Keeps the reply of a run elsewhere, with its `usage`; `depth` is that of its root in this tree."""
        said = await self._keep({id: reply}, None, remote=[usage, depth])
        self.ledger.settle_remote(id, usage, depth, failed=reply.error is not None)
        return said.get(id)

    async def refuse(self, refusals: Mapping[str, Reply], limit: Limit | None = None) -> dict[str, Answered]:
        """Keeps refusals, so that a replayed cell is refused the same calls; `limit` where one is the reason."""
        self.ledger.refuse(refusals, limit)
        return await self._keep(refusals, None, refused=[limit])

    async def join(self, replies: Mapping[str, Reply]) -> None:
        """Keeps what the attempts at structured asks came to; they themselves are on record, and counted."""
        said = self.log.answered(replies, None)
        entries = {id: {**self._entry(reply, None, said.get(id)), "joined": True} for id, reply in replies.items()}
        await self.store.amset([(self._reply_key(id), _dump(entry)) for id, entry in entries.items()])

    async def turn(self, id: str) -> tuple[AIMessage, str] | None:
        """A root turn's reply, where it is on record, and what the host had said before it."""
        [data] = await self.store.amget([f"run/{self.run}/turn/{id}"])
        if data is None:
            return None
        entry = json.loads(data)
        self.ledger.turn(id, Spent(**entry["spent"]))
        reply = AIMessage(content=entry["text"], id=entry.get("id"), response_metadata=entry["metadata"])
        return reply, entry["note"]

    async def record_turn(self, id: str, reply: AIMessage, spent: Spent, note: str = "") -> None:
        """Keeps a root turn's reply before it is used."""
        metadata = _named(reply.response_metadata)
        entry = {
            "tree": self.id,
            "id": reply.id,
            "text": reply.text,
            "metadata": metadata,
            "note": note,
            "spent": asdict(spent),
            "seconds": self.ledger.seconds(),
        }
        await self.store.amset([(f"run/{self.run}/turn/{id}", _dump(entry))])
        self.ledger.turn(id, spent)

    async def approved(self, step: Approval) -> Approval:
        """What a human has let the tree do; `step` before one was asked."""
        [data] = await self.store.amget([f"run/{self.run}/approved/{self.id}"])
        return Approval(**json.loads(data)) if data is not None else step

    async def approve(self, approved: Approval) -> None:
        """Notes what the tree may do; what was approved before stays so."""
        approved = approved.or_more(await self.approved(approved))
        await self.store.amset([(f"run/{self.run}/approved/{self.id}", _dump(asdict(approved)))])

    async def known_asked(self, about: str) -> bool:
        """Whether a human has been asked about this wave."""
        [known] = await self.store.amget([f"run/{self.run}/asked/{about}"])
        return known is not None

    async def asking(self, ids: Sequence[str]) -> set[str]:
        """Which of these calls are tools that are known to ask a human."""
        found = await self.store.amget([f"run/{self.run}/asked/{id}" for id in ids])
        return {id for id, known in zip(ids, found, strict=True) if known is not None}

    async def note_asked(self, about: str) -> None:
        """Notes that a human is asked about this wave, or by this call's tool, before the interrupt that asks."""
        await self.store.amset([(f"run/{self.run}/asked/{about}", b"1")])

    async def mark(self, *, ended: bool) -> None:
        """Says whether the run has ended, for whoever bounds the store's growth."""
        if self.lasting:
            await self.store.amset([(f"run/{self.run}/state", _dump({"ended": ended}))])

    async def needs(self, sources: Sequence[Source]) -> None:
        """Says which contexts the run needs, those of its nested runs included."""
        if self.lasting:
            await self.store.amset([(f"run/{self.run}/source/{s['id']}", b"") for s in sources])

    async def put(self, value: Any) -> str:
        """Stores JSON-like data under its hash and returns the key."""
        data = _dump(value)
        key = f"run/{self.run}/blob/{content_hash(data)}"
        await self.store.amset([(key, data)])
        return key

    async def get(self, key: str) -> Any:
        """What `put` stored.

        Raises:
            RLMError: It is no longer there.
        """
        [data] = await self.store.amget([key])
        if data is None:
            raise RLMError(_SWEPT.format(key=key, live=LIVE_DAYS, ended=ENDED_DAYS))
        return json.loads(data)

    def has_space(self, weights: Mapping[str, int]) -> bool:
        """Whether the store may take what these calls carry, in bytes by call id; a call counts once."""
        with self._lock:
            return self._kept_bytes + self._new(weights) <= MOST_KEPT

    def take_space(self, weights: Mapping[str, int]) -> None:
        """Counts what calls carry into the store."""
        with self._lock:
            self._kept_bytes += self._new(weights)
            self._kept.update(weights)

    def _new(self, weights: Mapping[str, int]) -> int:
        return sum(weight for id, weight in weights.items() if id not in self._kept)

    async def grant(self, budget: Budget) -> None:
        """Narrows the limits to what the caller grants, here and in a process that goes on with the run.

        Raises:
            ValueError: See `budget.within`.
        """
        self.ledger.limits = within(self.ledger.limits, budget)
        await self.store.amset([(f"run/{self.run}/granted/{self.id}", _dump(budget))])

    async def rebuild(self) -> None:
        """Makes the ledger from the record: what was granted, reserved and spent before this process."""
        [granted] = await self.store.amget([f"run/{self.run}/granted/{self.id}"])
        if granted is not None:
            self.ledger.limits = within(self.ledger.limits, json.loads(granted))
        await self._settle([key async for key in self.store.ayield_keys(prefix=f"run/{self.run}/reply/")], turns=False)
        await self._settle([key async for key in self.store.ayield_keys(prefix=f"run/{self.run}/turn/")], turns=True)

    async def _settle(self, keys: Sequence[str], *, turns: bool) -> None:
        for key, data in zip(keys, await self.store.amget(list(keys)), strict=True):
            entry = json.loads(data) if data else {}
            if entry.get("tree") != self.id or entry.get("joined"):
                continue
            spent = Spent(**entry["spent"]) if entry["spent"] else None
            id = key.rpartition("/")[2]
            self.ledger.go_on(entry["seconds"])
            if turns and spent is not None:
                self.ledger.turn(id, spent)
            elif not turns and "refused" in entry:
                self.ledger.refuse([id], *entry["refused"])
            elif not turns and entry.get("remote"):
                self.ledger.settle_remote(id, *entry["remote"], failed=entry["error"] is not None)
            elif not turns:
                self.ledger.settle(id, spent, failed=entry["error"] is not None)

    def _reply_key(self, id: str) -> str:
        return f"run/{self.run}/reply/{id}"

    async def _keep(self, replies: Mapping[str, Reply], spent: Spent | None, **more: Any) -> dict[str, Answered]:
        said = self.log.answered(replies, spent)
        entries = {id: {**self._entry(reply, spent, said.get(id)), **more} for id, reply in replies.items()}
        await self.store.amset([(self._reply_key(id), _dump(entry)) for id, entry in entries.items()])
        return said

    def _entry(self, reply: Reply, spent: Spent | None, said: Answered | None) -> dict[str, Any]:
        return {
            "tree": self.id,
            "text": reply.text,
            "error": reply.error,
            "message": reply.message,
            "spent": asdict(spent) if spent else None,
            "said": kept_beside(said) if said else None,
            "seconds": self.ledger.seconds(),
        }


def _reply(entry: Mapping[str, Any]) -> Reply:
    return Reply(text=entry["text"], error=entry["error"], message=entry["message"])


def _named(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metadata.items() if k in {"model_name", "finish_reason", "note"}}


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")
