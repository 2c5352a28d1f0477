"""Whether a quote stands in a text, and where. Pure functions; what they find is verbatim in the text, always."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rapidfuzz import fuzz

FUZZY = 90.0
"""Likeness, in percent, from which a passage counts as what a quote means (see `place`)."""
FUZZY_FROM = 24
"""Characters that a quote has at least to be matched by likeness: a short one is nearly like too much."""

_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011]\s*(?=[^\W\d_])")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_SIGNS = str.maketrans(dict.fromkeys("“”„«»″", '"') | dict.fromkeys("‘’‚′`", "'") | dict.fromkeys("–—−‐‑", "-"))
_GAP = re.compile(r"\s*\[?(?:\.\.\.|…)\]?\s*")
_NUMBER = re.compile(r"\d+")
_DENIED = re.compile(r"\b(?:not?|never|none|nor|without|cannot)\b|n't\b")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a quote stands: `text[start:end]`; and how it was found."""

    start: int
    end: int
    how: Literal["exact", "folded", "fuzzy"]


@dataclass(frozen=True, slots=True)
class Folded:
    """A text for comparison, and for each of its characters the place in the original."""

    text: str
    at: list[int]


def places(quote: str, text: str) -> list[Place]:
    """Where a quote stands; several places for one that leaves something out (`…`), none if a part does not stand."""
    if (whole := place(quote, text)) is not None:
        return [whole]
    parts = [part for part in _GAP.split(quote) if part.strip()]
    found = [place(part, text) for part in parts] if len(parts) > 1 else []
    return [each for each in found if each is not None] if all(found) else []


def place(quote: str, text: str) -> Place | None:
    """Where a quote stands in a text: exactly; else but for white space, hyphens, Unicode forms and case; else nearly.

    Nearly means a likeness of `FUZZY` percent by rapidfuzz, of a quote of `FUZZY_FROM` characters, with the same
    numbers and the same denials: one digit or one "not" changes what was said, however like the rest is.
    """
    quote = quote.strip()
    if not quote:
        return None
    if (start := text.find(quote)) >= 0:
        return Place(start, start + len(quote), "exact")
    wanted, whole = folded(quote).text, folded(text)
    if not wanted:
        return None
    if (start := whole.text.find(wanted)) >= 0:
        return _in_original(whole, start, start + len(wanted), text, "folded")
    return _nearly(wanted, whole, text)


def _nearly(wanted: str, whole: Folded, text: str) -> Place | None:
    if len(wanted) < FUZZY_FROM:
        return None
    found = fuzz.partial_ratio_alignment(wanted, whole.text, score_cutoff=FUZZY)
    if found is None:
        return None
    start, end = _to_words(whole.text, found.dest_start, found.dest_end)
    passage = whole.text[start:end]
    same = all(sorted(p.findall(wanted)) == sorted(p.findall(passage)) for p in (_NUMBER, _DENIED))
    if not same or fuzz.ratio(wanted, passage) < FUZZY:
        return None
    return _in_original(whole, start, end, text, "fuzzy")


def _to_words(text: str, start: int, end: int) -> tuple[int, int]:
    """A span widened so that it cuts no word or number, and without white space at its ends."""
    while start and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    passage = text[start:end]
    return start + len(passage) - len(passage.lstrip()), end - len(passage) + len(passage.rstrip())


def _in_original(whole: Folded, start: int, end: int, text: str, how: Literal["folded", "fuzzy"]) -> Place:
    last = whole.at[end - 1] + 1
    while last < len(text) and unicodedata.combining(text[last]):
        last += 1
    return Place(whole.at[start], last, how)


def folded(text: str) -> Folded:
    """A text without what typesetting and copying change: line breaks, hyphenation, quotation marks, case."""
    characters: list[str] = []
    at: list[int] = []
    for character, index in _kept(text):
        if character.isspace():
            if characters and characters[-1] != " ":
                characters.append(" ")
                at.append(index)
            continue
        for part in unicodedata.normalize("NFKD", character.translate(_SIGNS)).casefold():
            characters.append(part)
            at.append(index)
    if characters and characters[-1] == " ":
        characters.pop(), at.pop()
    return Folded("".join(characters), at)


def _kept(text: str) -> Iterator[tuple[str, int]]:
    """The characters that count, with their places: no hyphens inside words, nothing invisible."""
    skipped = [match.span() for match in _HYPHEN.finditer(text)]
    skipped += [match.span() for match in _INVISIBLE.finditer(text)]
    at = 0
    for start, end in [*sorted(skipped), (len(text), len(text))]:
        yield from ((text[index], index) for index in range(at, start))
        at = max(at, end)
