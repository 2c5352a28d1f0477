"""Where a text is cut, and the lines in which a pattern is found: spans only, no text is copied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .pieces import raw

REACH = 1_000
"""Characters shown on either side of a match in a line that is longer than that."""

PACKED = {"paragraph": ("\n\n", "\n", " "), "line": ("\n", " "), "tokens": ()}
"""Boundaries of pieces that are filled as far as they fit, the best first."""

_DEFINED = (
    r"(?:(?:export|default|pub(?:\([^)\n]*\))?|public|private|protected|internal|static|async|abstract|final"
    r"|unsafe|inline|extern)[ \t]+)*(?:def|class|function|func|fn|struct|enum|trait|impl|interface)\b"
)
_CHAPTER = (
    r"chapter|book|part|volume|act|canto|letter|prologue|epilogue|preface|introduction|appendix"
    r"|kapitel|teil|chapitre|livre|capítulo|capitolo|глава|часть"
)
SECTIONS = {
    "chapter": re.compile(rf"^[ \t]*(?:#{{1,2}}[ \t]+)?(?:{_CHAPTER})\b[^\n]{{0,100}}$", re.M | re.I),
    "heading": re.compile(
        r"^(?:#{1,6}[ \t]+\S|(?=\S)[^\n]{1,120}\n(?:={3,}|-{3,}|~{3,})[ \t]*$"
        r"|\d+(?:\.\d+)+\.?[ \t]+\S[^\n]{0,100}$|[A-Z][A-Z0-9 ,.:;&'’()-]{3,80}$)",
        re.M,
    ),
    "record": re.compile(r"^(?![\s\]})])", re.M),
    "function": re.compile(
        rf"^(?:@[^\n]*\n)*{_DEFINED}|^[A-Za-z_][\w \t*&:<>,~]*\([^;{{}}\n]*\)[^;{{}}\n]{{0,40}}\{{[ \t]*$", re.M
    ),
    "item": None,
    "file": None,
}
"""What a section begins with; each is a piece of its own, however short. None: at the beginning of a text alone."""


def spans(text: str, by: str, most: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `most` characters that cover a text.

    Args:
        text: The text.
        by: A key of `PACKED` or `SECTIONS`.
        most: Characters of a span, the overlap included.
        overlap: Characters that a span repeats of the text before it.
    """
    if by in PACKED:
        yield from cuts(text, 0, len(text), 1, most, PACKED[by], overlap)
        return
    begins = SECTIONS[by]
    at = 0
    starts = (match.start() for match in begins.finditer(text)) if begins else iter(())
    for start in [*filter(None, starts), len(text)]:
        for first, last in cuts(text, at, start, 1, most - overlap, PACKED["paragraph"]):
            yield max(0, first - overlap), last
        at = start


def cuts(
    text: str, start: int, stop: int, least: int, most: int, separators: Iterable[str], overlap: int = 0
) -> Iterator[tuple[int, int]]:
    """Spans of `least` to `most` characters from `start` to `stop`, each ended after a separator if it can be."""
    while start < stop:
        end = start + most
        if end < stop:
            floor = start + max(least, overlap + 1)
            ends = (at + len(mark) for mark in separators if (at := text.rfind(mark, floor, end)) >= 0)
            end = min(end, next(ends, end))
        end = min(end, stop)
        yield start, end
        start = end if end == stop else end - overlap


def matches(regex: re.Pattern[str], text: str, before: int, after: int) -> Iterator[tuple[int, int]]:
    """Spans of the lines that match, with the lines around them; spans that touch become one."""
    held: tuple[int, int] | None = None
    at = 0
    while at <= len(text) and (match := regex.search(text, at)):
        last = match.end() - (match.end() > match.start())
        start, end = line_start(text, match.start()), line_end(text, last)
        at = end + 1
        for _ in range(before):
            start = line_start(text, start - 1) if start else 0
        for _ in range(after):
            end = line_end(text, end + 1) if end < len(text) else end
        if held and (before or after) and start <= held[1] + 1:
            held = held[0], max(end, held[1])
            continue
        if held:
            yield held
        held = start, end
    if held:
        yield held


def line_start(text: str, at: int) -> int:
    """Where the line at a position begins; at most `REACH` characters before it."""
    floor = max(0, at - REACH)
    return max(floor, text.rfind("\n", floor, at) + 1)


def line_end(text: str, at: int) -> int:
    """Where the line at a position ends, its newline left out; at most `REACH` characters after it."""
    ceiling = min(len(text), at + REACH)
    end = text.find("\n", at, ceiling)
    return ceiling if end < 0 else end


def is_blank(text: str, start: int, end: int) -> bool:
    """Whether a span is white space alone."""
    return raw(text, start, end).isspace()
