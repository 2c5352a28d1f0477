"""What of the context was looked at: by the toolkit's search, and by models. Spans are kept, never texts.

A model has read what it answered, or refused to answer: a call that failed or was never made has shown it nothing.

A piece knows its place. Of a prompt that was put together from plain texts, the lines that stand in the context are
looked up; what cannot be found there counts as not read, so the shares are rather too low than too high.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .calls import Request
from .pieces import items

_LINE = re.compile(r"[^\n]{16,}")
_INDEXED = 30_000_000
"""Characters of a context up to which prompts are looked up in it."""
_HELD = 2_000
"""Spans of a source after which they are joined."""
_TOLD = 20
PARTS = 200
"""Equal parts of the context in its map."""
_SHORT_GAP = 2
"""Characters between two read spans that do not count as unread: a line's end."""

Span = tuple[int, int]


class Reading:
    """The spans of the context that code has scanned, and those that went to models. For one question."""

    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context
        self._texts: dict[str | int, str] = {}
        self._of: Any = None
        self._lines: dict[int, tuple[str | int, int]] | None = None
        self._given: list[Any] = []
        """What models were given since the last report, as the calls hold it: to be looked up in the context."""
        self.reset()

    def reset(self) -> None:
        """Forgets what was looked at: a new question begins."""
        self._scanned: dict[str | int, list[Span]] = {}
        self._read: dict[str | int, list[Span]] = {}
        self._asked = False
        self._given.clear()

    def scanned(self, source: str | int, start: int, end: int) -> None:
        """Notes what code has searched."""
        _note(self._scanned, source, start, end)

    def read(self, source: str | int, start: int, end: int) -> None:
        """Notes what a model has read."""
        _note(self._read, source, start, end)

    def heard(self, request: Request, got: bool) -> None:
        """Notes that a call has ended, and, where a model had got it, what a plain or nested one brought with it."""
        if request.kind == "tool":
            return
        self._asked = True
        if got and request.kind == "llm":
            self._given.append(request.prompt)
        elif got and request.kind == "rlm":
            self._given.append(request.context if request.context is not None else request.prompt)

    def report(self) -> dict[str, Any] | None:
        """Characters in all, scanned and read; the longest parts that no model has read, in order; None for nothing."""
        if not (self._asked or self._scanned):
            return None
        self._look_up_given()
        texts = self._all()
        sizes = {source: len(text) for source, text in texts.items()}
        unread = [
            (source, start, end)
            for source, size in sizes.items()
            for start, end in gaps(self._read.get(source, []), size)
            if end - start > _SHORT_GAP
        ]
        longest = sorted(unread, key=lambda part: part[1] - part[2])[:_TOLD]
        told = set(longest)
        return {
            "chars": sum(sizes.values()),
            "scanned": sum(covered(self._scanned.get(source, []), size) for source, size in sizes.items()),
            "read": sum(covered(self._read.get(source, []), size) for source, size in sizes.items()),
            "unread": [list(part) for part in unread if part in told],
            "unread_more": len(unread) - len(longest),
            "map": {"scanned": mapped(self._scanned, sizes), "read": mapped(self._read, sizes)},
        }

    def _all(self) -> dict[str | int, str]:
        context = self._context()
        if self._of is not context:
            self._of, self._lines = context, None
            self._texts = dict(items(context))
        return self._texts

    def _look_up_given(self) -> None:
        given, self._given = self._given, []
        texts = self._all()
        if not given or sum(map(len, texts.values())) > _INDEXED:
            return
        if self._lines is None:
            self._lines = {}
            for source, text in texts.items():
                for match in _LINE.finditer(text):
                    self._lines.setdefault(hash(match[0]), (source, match.start()))
        for prompt in _strings(given):
            for source, start, end in found(prompt, self._lines, texts):
                self.read(source, start, end)


def found(
    prompt: str, lines: dict[int, tuple[str | int, int]], texts: dict[str | int, str]
) -> Iterator[tuple[str | int, int, int]]:
    """The parts of a prompt that stand in a text: from a line that is known there, as far as both agree."""
    done = 0
    for match in _LINE.finditer(prompt):
        at = match.start()
        if at < done or (known := lines.get(hash(match[0]))) is None:
            continue
        source, start = known
        text = texts[source]
        if not text.startswith(match[0], start):
            continue
        size = agreement(prompt, at, text, start)
        before = agreement(prompt[max(done, at - 4000) : at][::-1], 0, text[max(0, start - 4000) : start][::-1], 0)
        done = at + size
        yield source, start - before, start + size


def agreement(one: str, at: int, other: str, start: int) -> int:
    """How many characters two texts have in common from these places on."""
    same, step = 0, 64
    while step:
        part = one[at + same : at + same + step]
        if part and part == other[start + same : start + same + step]:
            same += len(part)
            step = step * 2 if len(part) == step else step // 2
        else:
            step = min(step, len(one) - at - same) // 2 if step > 1 else 0
    return same


def _note(spans: dict[str | int, list[Span]], source: str | int, start: int, end: int) -> None:
    held = spans.setdefault(source, [])
    if held and held[-1][0] <= start <= held[-1][1]:
        held[-1] = (held[-1][0], max(end, held[-1][1]))
    else:
        held.append((start, end))
    if len(held) % _HELD == 0:
        held[:] = joined(held)


def joined(spans: Sequence[Span]) -> list[Span]:
    """The same characters in spans that neither touch nor overlap, in order."""
    whole: list[Span] = []
    for start, end in sorted(spans):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        elif end > start:
            whole.append((start, end))
    return whole


def mapped(spans: Mapping[str | int, Sequence[Span]], sizes: Mapping[str | int, int]) -> str:
    """Where in the texts, one behind the other, the spans are: `PARTS` digits, from 0 for nothing to 9 for all."""
    total, at = sum(sizes.values()), 0
    held = [0.0] * PARTS
    for source, size in sizes.items():
        for start, end in joined([(max(0, start), min(end, size)) for start, end in spans.get(source, ())]):
            for part in range((at + start) * PARTS // total, min(PARTS, -(-(at + end) * PARTS // total))):
                low, high = part * total / PARTS, (part + 1) * total / PARTS
                held[part] += max(0.0, min(at + end, high) - max(at + start, low))
        at += size
    return "".join(_digit(characters * PARTS / total) if characters else "0" for characters in held)


def _digit(share: float) -> str:
    return str(max(1, min(9, int(share * 9 + 0.001))))


def covered(spans: Sequence[Span], size: int) -> int:
    """How many of a text's characters are in the spans."""
    return size - sum(end - start for start, end in gaps(spans, size))


def gaps(spans: Sequence[Span], size: int) -> list[Span]:
    """What of a text of this size is in none of the spans."""
    free: list[Span] = []
    at = 0
    for start, end in joined([(max(0, start), min(end, size)) for start, end in spans]):
        if start > at:
            free.append((at, start))
        at = end
    return [*free, (at, size)] if at < size else free


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
