"""Pieces: texts that know where they are from; and the texts of whatever a tool is given, with their places.

This runs in the kernel and on the host alike, so that both call an item of a context by one name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, SupportsIndex, overload

_raw = str.__getitem__


class Piece(str):
    """A part of a text that remembers where it is from; otherwise a `str`.

    What is cut out of a piece is a piece too: slices without a step, `strip`, `lstrip`, `rstrip`, `removeprefix`,
    `removesuffix`, `split`, `rsplit`, `splitlines`, `partition`, `rpartition`. A match of `re` gives plain texts, so
    take its group by place: `piece[m.start(1):m.end(1)]`. What is made anew (`lower`, `+`, an f-string) is a `str`.

    Attributes:
        source: The item's name (file, key, the document's source) or its index; "text" for a lone text.
        start, end: Characters into that item's text: `piece == text[piece.start:piece.end]`.
    """

    __slots__ = ("end", "source", "start")
    source: str | int
    start: int
    end: int

    def __new__(cls, text: str, source: str | int = "text", start: int = 0) -> Piece:
        piece = super().__new__(cls, text)
        piece.source, piece.start, piece.end = source, start, start + len(text)
        return piece

    def __reduce__(self) -> tuple[Any, ...]:
        return Piece, (str(self), self.source, self.start)

    @overload  # type: ignore[override]
    def __getitem__(self, at: slice) -> Piece | str: ...
    @overload
    def __getitem__(self, at: SupportsIndex) -> str: ...
    def __getitem__(self, at: SupportsIndex | slice) -> str:
        part = super().__getitem__(at)
        if not isinstance(at, slice) or at.step not in (None, 1):
            return part
        return self._part(part, at.indices(len(self))[0])

    def _part(self, text: str, at: int) -> Piece:
        return Piece(text, self.source, self.start + at)

    def _parts(self, texts: Iterable[str]) -> list[Piece]:
        """Texts that stand in this one in order, each found behind the one before."""
        parts: list[Piece] = []
        at = 0
        for text in texts:
            at = self.find(text, at)
            parts.append(self._part(text, at))
            at += len(text)
        return parts

    def lstrip(self, chars: str | None = None, /) -> Piece:
        text = super().lstrip(chars)
        return self._part(text, len(self) - len(text))

    def rstrip(self, chars: str | None = None, /) -> Piece:
        return self._part(super().rstrip(chars), 0)

    def strip(self, chars: str | None = None, /) -> Piece:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> Piece:
        text = super().removeprefix(prefix)
        return self._part(text, len(self) - len(text))

    def removesuffix(self, suffix: str, /) -> Piece:
        return self._part(super().removesuffix(suffix), 0)

    def splitlines(self, keepends: bool = False) -> list[Piece]:  # type: ignore[override]
        lines = super().splitlines(keepends=True)
        parts, at = [], 0
        for line, bare in zip(lines, super().splitlines(), strict=True):
            parts.append(self._part(line if keepends else bare, at))
            at += len(line)
        return parts

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Piece]:  # type: ignore[override]
        texts = super().split(sep, maxsplit)
        return self._parts(texts) if sep is None else self._between(texts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Piece]:  # type: ignore[override]
        texts = super().rsplit(sep, maxsplit)
        return self._parts(texts) if sep is None else self._between(texts, len(sep))

    def _between(self, texts: Iterable[str], gap: int) -> list[Piece]:
        parts: list[Piece] = []
        at = 0
        for text in texts:
            parts.append(self._part(text, at))
            at += len(text) + gap
        return parts

    def partition(self, sep: str, /) -> tuple[Piece, Piece, Piece]:
        first, middle, last = self._between(super().partition(sep), 0)
        return first, middle, last

    def rpartition(self, sep: str, /) -> tuple[Piece, Piece, Piece]:
        first, middle, last = self._between(super().rpartition(sep), 0)
        return first, middle, last


def place_of(*texts: Any) -> list[Any] | None:
    """Source, start and end of the part that texts are from; None where that is not known, or sources are several."""
    pieces = [text for text in texts if isinstance(text, Piece)]
    if not pieces or len(pieces) < len(texts) or any(piece.source != pieces[0].source for piece in pieces):
        return None
    return [pieces[0].source, min(piece.start for piece in pieces), max(piece.end for piece in pieces)]


class View(str):
    """A text that a cell's last line shows as it is, without quotes and escapes."""

    __slots__ = ()
    __repr__ = str.__str__


class Placed(NamedTuple):
    """A text and where it is from: `text` stands in the item `source` from `start` on."""

    source: str | int
    text: str
    start: int
    known: bool
    """Whether the place is one in the context; else `source` only tells apart what a tool was given."""


class Places:
    """Where the items of the present context are known by."""

    def __init__(self) -> None:
        self._context: Any = None
        self._sources: dict[int, str | int] = {}

    def of(self, what: Any, context: Any) -> Iterator[Placed]:
        """The texts of `what`, those among them that are the context's own items under their names there."""
        if what is None or what is context:
            yield from (Placed(source, text, 0, True) for source, text in items(context))
            return
        known = self._known(context)
        for source, text in items(what):
            if isinstance(text, Piece):
                yield Placed(text.source, text, text.start, True)
            elif id(text) in known:
                yield Placed(known[id(text)], text, 0, True)
            else:
                yield Placed(source, text, 0, False)

    def _known(self, context: Any) -> dict[int, str | int]:
        if self._context is not context:
            # Only texts that the context itself keeps alive: what was rendered for us may be gone, its id reused.
            kept = kept_texts(context)
            pairs = zip(items(context), kept, strict=False) if kept else ()
            self._context, self._sources = context, {}
            for (source, text), own in pairs:
                if text is own:
                    self._sources.setdefault(id(own), source)
        return self._sources


def kept_texts(context: Any) -> list[Any]:
    """The texts that a context holds, one an item, None for an item whose text is made on demand."""
    if isinstance(context, str):
        return [context]
    if isinstance(context, dict) and not isinstance(context.get("page_content"), str):
        values: Iterable[Any] = context.values()
    else:
        values = context if isinstance(context, (list, tuple)) else [context]
    return [value if isinstance(value, str) else _content(value) for value in values]


def items(what: Any) -> Iterator[tuple[str | int, str]]:
    """The texts of `what`, each with its source; a piece is itself."""
    if isinstance(what, str):
        yield "text", what
    elif isinstance(what, dict) and not isinstance(what.get("page_content"), str):
        yield from ((str(key), rendered(value)) for key, value in what.items())
    elif isinstance(what, (list, tuple)):
        times = Counter(map(named, what))
        for index, item in enumerate(what):
            name = named(item)
            yield index if name is None else f"{name}[{index}]" if times[name] > 1 else name, rendered(item)
    else:
        yield named(what) or "text", rendered(what)


def named(item: Any) -> str | None:
    """What a document calls itself."""
    if isinstance(item, str):
        return None
    metadata = item.get("metadata") if isinstance(item, dict) else getattr(item, "metadata", None)
    if not isinstance(metadata, dict):
        return None
    keys = ("source", "file_path", "path", "title")
    return next((str(metadata[key]) for key in keys if metadata.get(key)), None)


def rendered(item: Any) -> str:
    """An item's text: itself, its `page_content`, or its JSON."""
    if isinstance(item, str):
        return item
    content = _content(item)
    return json.dumps(item, ensure_ascii=False, indent=1, default=str) if content is None else content


def raw(text: str, start: int, end: int) -> str:
    """A part of a text as a plain `str`, also where the text is a piece; only the part is copied."""
    return _raw(text, slice(start, end))


def _content(item: Any) -> str | None:
    content = item.get("page_content") if isinstance(item, dict) else getattr(item, "page_content", None)
    return content if isinstance(content, str) else None
