"""The log of one recursion tree: what its trajectory is made of, as part of the record.

Of a run that has a thread it is kept in the content store, beside the replies: a trajectory can be written long after
the run, on another machine. While a recording is open, it goes there as well, line by line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.stores import BaseStore

from rlm_graph.identity import content_hash
from rlm_graph.ledger import Spent
from rlm_graph.state import Asked, Call, Reply
from rlm_graph.trace import events, recording, said


class Log:
    """What is said of one tree.

    Args:
        tree: The tree's id, `<run>.<number>`.
        store: Where the record is kept.
        lasting: Whether it is kept: the run has a thread.
    """

    def __init__(self, tree: str, store: BaseStore[str, bytes], *, lasting: bool) -> None:
        self.tree = tree
        self.progress_told = 0.0
        """When who watches last heard how far the calls are (seconds, monotonic)."""
        self._run = tree.rpartition(".")[0]
        self._store = store
        self._lasting = lasting
        self._made: dict[str, events.Made] = {}

    async def note(self, entry: events.Entry) -> None:
        """Takes in what was said of a node's work."""
        if self._lasting:
            data = json.dumps(entry, separators=(",", ":")).encode("ascii")
            name = f"{int(entry['at'] * 1e6):020d}-{content_hash(data)[:8]}"
            await self._store.amset([(f"run/{self._run}/trace/{name}", data)])
        self._write([entry])

    def asks(self, by: events.AtCell, calls: Mapping[str, Call | Asked]) -> None:
        """Takes in what a cell asks, until its replies come."""
        for id, call in calls.items():
            if id in self._made:
                continue
            if isinstance(call, Call):
                self._made[id] = said.made(by, call.kind, call.prompt, call.context)
            else:
                self._made[id] = said.made(by, call["kind"], call["prompt"], call["context"])

    def answered(self, replies: Mapping[str, Reply], spent: Spent | None) -> dict[str, events.Answered]:
        """Takes in replies, and returns what is to be kept beside each."""
        now = time.time()
        known = {id: (self._made.pop(id), reply) for id, reply in replies.items() if id in self._made}
        entries = {id: said.answered(id, call, reply, spent, now) for id, (call, reply) in known.items()}
        self._write(list(entries.values()))
        return entries

    async def open(self) -> None:
        """Begins the file where the present run is recorded and is not yet in one: with what the record has of it."""
        file = recording.present()
        if file is not None and file.open(self.tree):
            file.write(self.tree, await past(self._store, self._run) if self._lasting else [])

    def _write(self, entries: Sequence[events.Entry]) -> None:
        file = recording.present()
        if file is not None and entries:
            file.add(self.tree, entries)


async def past(store: BaseStore[str, bytes], run: str) -> list[events.Entry]:
    """All that the record has of a run's trajectory, earlier questions and nested runs included, in order of time."""
    entries: list[Any] = [json.loads(data) for data in await _under(store, f"run/{run}/trace/")]
    for data in await _under(store, f"run/{run}/reply/"):
        reply = json.loads(data)
        if beside := reply.get("said"):
            text = None if reply["text"] is None else events.whole(reply["text"])
            entries.append({**beside, "reply": text, "message": reply["message"]})
    return sorted(entries, key=lambda entry: float(entry["at"]))


async def _under(store: BaseStore[str, bytes], prefix: str) -> list[bytes]:
    keys = [key async for key in store.ayield_keys(prefix=prefix)]
    return [data for data in await store.amget(keys) if data is not None]
