"""What an answer rests on, as the caller gets it."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict


class Citation(TypedDict):
    """A passage that the answer rests on: `quote` is what stands in the item `source` from `start` to `end`."""

    source: str | int
    """The item's name (file, key, the document's source) or its index; "text" for a lone text."""
    start: int
    end: int
    quote: str


class CoverageMap(TypedDict):
    """Where in a text something was: 200 digits, one for each equal part of it, 0 for nothing to 9 for all of it.

    Several texts stand one behind the other, in the context's own order.
    """

    scanned: str
    read: str


class Coverage(TypedDict):
    """How much of the text was looked at.

    `scanned` and `read` are shares of its `chars` characters, from 0 to 1: what the toolkit searched, and what a
    sub-model or a nested RLM was given and replied to, be it by a refusal. Both are estimates that are rather too low:
    code that goes through `context` by itself is not seen, nor are prompts whose text does not stand in it line by
    line.
    """

    chars: int
    scanned: float
    read: float
    unread: list[dict[str, Any]]
    """The longest parts that no model read: `{"source", "start", "end"}`, at most 20."""
    unread_more: int
    """How many further parts there are."""
    map: CoverageMap
