"""What an answer rests on, checked against the source itself: a citation is verbatim there, or it is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.stores import BaseStore

from rlm_graph.context import binding
from rlm_graph.kernel.inside.load import decoded
from rlm_graph.kernel.inside.pieces import items
from rlm_graph.kernel.intake import NOWHERE
from rlm_graph.outcome import Citation, Coverage, CoverageMap
from rlm_graph.state import Cell, Source

EVERYWHERE = "9" * len(NOWHERE)
"""The map of a text that was looked at whole."""


def standing(passages: Sequence[Sequence[Any]], source: Source, store: BaseStore[str, bytes]) -> list[Citation]:
    """Those of the passages that stand in the source as they are, each where it says, or else where it first stands.

    Args:
        passages: `[source, start, end, text]` each, as the kernel gave them.
        source: The context that the question is about. Its files are read again, in their own encoding.
        store: Where it is kept.

    Raises:
        ContextError: The source is gone, or has changed since.
    """
    if not passages:
        return []
    texts = texts_of(source, store, {str(passage[0]) for passage in passages})
    found = (_standing(p[0], p[1], p[2], p[3], texts.get(str(p[0]))) for p in passages)
    unique = {(c["source"], c["start"], c["end"]): c for c in found if c is not None}
    return list(unique.values())


def _standing(name: str | int, start: int, end: int, quote: str, text: str | None) -> Citation | None:
    if text is None or not _is_writable(quote):
        return None
    if text[start:end] != quote:
        start = text.find(quote)
        end = start + len(quote)
    return None if start < 0 else {"source": name, "start": start, "end": end, "quote": quote}


def texts_of(source: Source, store: BaseStore[str, bytes], names: set[str] | None = None) -> dict[str, str]:
    """The texts of a source by the names that pieces have for them, as far as they are among `names`; None: all."""
    bound = binding(source, store)
    content = Path(bound["path"]).read_bytes()
    if bound["kind"] == "files":
        manifest = json.loads(content)
        root = Path(manifest["root"])
        wanted = ((name, encoding) for name, encoding in manifest["files"] if names is None or name in names)
        return {name: decoded((root / name).read_bytes(), encoding) for name, encoding in wanted}
    text = decoded(content, bound.get("encoding", "utf-8"))
    value = text if bound["kind"] == "text" else json.loads(text)
    return {str(name): text for name, text in items(value) if names is None or str(name) in names}


def coverage_of(journal: Iterable[Cell], source: Source, *, direct: bool) -> Coverage:
    """How much of the text was looked at for a question.

    Args:
        journal: The question's cells; each says how much had been until its end.
        source: The context.
        direct: Whether a model read the whole in one prompt.
    """
    if direct:
        map: CoverageMap = {"scanned": NOWHERE, "read": EVERYWHERE}
        chars = source.get("chars", 0)
        return {"chars": chars, "scanned": 0.0, "read": 1.0, "unread": [], "unread_more": 0, "map": map}
    told: Mapping[str, Any] = {}
    nowhere: CoverageMap = {"scanned": NOWHERE, "read": NOWHERE}
    for cell in journal:
        told = cell["report"].get("coverage") or told
    chars = told.get("chars") or source.get("chars") or 0
    unread = told.get("unread", []) if told else []
    return {
        "chars": chars,
        "scanned": _share(told.get("scanned", 0), chars),
        "read": _share(told.get("read", 0), chars),
        "unread": [{"source": name, "start": start, "end": end} for name, start, end in unread],
        "unread_more": told.get("unread_more", 0) if told else source.get("items", 1),
        "map": told.get("map", nowhere),
    }


def _share(part: int, whole: int) -> float:
    return min(1.0, part / whole) if whole else 0.0


def _is_writable(text: str) -> bool:
    """Whether a checkpoint and a message can hold a text: half of a surrogate pair they cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
