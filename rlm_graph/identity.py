"""Names that do not change when a process dies, a thread forks or calls come in another order.

Run id, call id and digest are defined in one place, because everything durable hangs on them: replies are kept
under call ids, kernels under run ids, and a kernel is reused only where its digest is that of the journal.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from rlm_graph.state import Cell, Source


def new_run() -> str:
    """A run id, minted once by `load` and kept in the state."""
    return uuid.uuid4().hex


def content_hash(value: Any) -> str:
    """Hash of JSON-like data or bytes: 32 hex digits, the same on every machine and in every process."""
    data = value if isinstance(value, bytes) else _canonical(value)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def call_id(run: str, cell: int, payload: str, nth: int) -> str:
    """The durable name of a call.

    Args:
        run: Run id of the RLM whose cell calls.
        cell: Index of the cell in the run's journal.
        payload: `content_hash` of what is asked, model and settings included.
        nth: How many equal payloads came before it in that cell. Equal payloads are the only calls that order
            can tell apart, and between equals it does not matter which gets which answer.
    """
    return content_hash([run, cell, payload, nth])


NOTHING = ""
"""The digest of a kernel that has run no cell."""


def extended(digest: str, code: str, source: str) -> str:
    """The digest after one more cell, run on the context with the id `source`."""
    return content_hash([digest, code, source])


def digest(journal: Iterable[Cell], sources: Sequence[Source]) -> str:
    """What a kernel has run when it has run this journal; cells that ended their kernel are not part of it."""
    past = NOTHING
    for cell in journal:
        if not cell["lost"]:
            past = extended(past, cell["code"], sources[cell["context"]]["id"] if sources else NOTHING)
    return past


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
