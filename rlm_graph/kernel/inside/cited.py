"""Which passages an answer rests on: those that the cell names, else those of verified results that are used in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .checked import Result
from .pieces import Piece

MOST = 2_000
"""Citations that are handed over; the rest is counted."""
_DEPTH = 8
_SHORTEST = 3
_COMPARED = 1_000_000_000
"""Characters of the answer that are compared with results' answers; beyond, no result is looked for in it."""


def citations(answer: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """What the answer cites: `{"passages": [[source, start, end, text], …], "more": int}`.

    `answer["citations"]`, where the cell has set it, is all: pieces, results (their quotes), lists of them. Else it is
    the pieces and verified results in `answer["content"]`, and the quotes of those verified results whose answer is
    said in it.
    """
    if answer.get("citations") is not None:
        pieces = list(pieces_in(answer["citations"]))
    else:
        content = answer.get("content")
        pieces = [*pieces_in(content), *used_in("\n".join(texts_in(content)), results)]
    unique = {(p.source, p.start, p.end): p for p in pieces if p.strip()}
    rows = [[source, start, end, str(piece)] for (source, start, end), piece in list(unique.items())[:MOST]]
    return {"passages": rows, "more": len(unique) - len(rows)}


def pieces_in(value: Any, depth: int = _DEPTH) -> Iterator[Piece]:
    """The pieces in a value, and the quotes of the verified results in it."""
    if isinstance(value, Piece):
        yield value
    elif isinstance(value, Result):
        if value.verified:
            yield from (quote for quote in value.quotes if isinstance(quote, Piece))
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from pieces_in(item, depth - 1)
    elif depth and isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from pieces_in(item, depth - 1)


def used_in(text: str, results: Sequence[Result]) -> Iterator[Piece]:
    """The quotes of verified results whose answer, or a text in it, is said in this text."""
    found = [result for result in results if result.verified and result.status == "found" and result.quotes]
    if not text or len(text) * len(found) > _COMPARED:
        return
    for result in found:
        if any(said in text for said in texts_in(result.answer) if len(said.strip()) >= _SHORTEST):
            yield from pieces_in(result)


def texts_in(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """The texts in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Result):
        yield from texts_in(value.answer, depth)
    elif hasattr(type(value), "model_fields"):
        yield from texts_in(vars(value), depth)
    elif depth and isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_in(key, depth - 1)
            yield from texts_in(item, depth - 1)
    elif depth and isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from texts_in(item, depth - 1)
