"""Whether a quote stands in a text, and where. Pure functions; what they find is verbatim in the text, always."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal

from rapidfuzz.distance import Levenshtein

SLIPS_FROM = 24
"""Characters that a quote has at least to stand with a slip of a letter: a short one is nearly like too much."""
SLIPS_TO = 500
"""Characters that it has at most: looking for slips takes time."""
WORDS_A_SLIP = 8
"""A quote may have one word with a slip, and another for every so many words."""
LOOKALIKE_FROM, TYPO_FROM = 8, 10
"""Letters of a word in which one letter may look like another; in which one in its middle may be any other, or missing.

Shorter words, and the ends of long ones, are where one letter makes another word of it (failing, falling; employer,
employee; typical, atypical).
"""
PARTS = 8
"""Parts that a quote may have which leaves something out."""
GAP = 300
"""Characters that it may leave out between two parts, no denial among them."""
SHORT = 8
"""Columns from which one word shows something: `a` stands in every text. Characters of East Asia take two."""

_HITS, _NEAR = 1_000, 200
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011]\s*(?=[^\W\d_])")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_SIGNS = str.maketrans(dict.fromkeys("“”„«»″", '"') | dict.fromkeys("‘’‚′`", "'") | dict.fromkeys("–—−‐‑", "-"))
_ELLIPSIS = re.compile(r"\s*(?:\[(?:\.{3}|…)\]|\((?:\.{3}|…)\)|\.{3}|…)\s*")
_DENIED = re.compile(
    r"\b(?:not?|never|none|nor|neither|nobody|nothing|without|cannot|except|unless|only)\b|n['’]t\b", re.I
)
_WORD = re.compile(r"[^\W_]+")
_TOKEN = re.compile(
    r"""[-+]?\d+(?:[.,:/⁄^]+\d+)*[^\W_]*"""  # a number, with its sign and what is written to it
    r"""|[^\W\d_](?:[\w\u0300-\u036f]|'(?=\w))*"""  # a word
    r"""|[^\w\s.,;:!"'()\[\]{}*|\#-]"""  # any other sign that is no mere punctuation
)
_BEFORE = re.compile(r"[^\W\d_][-\u2010\u2011]\s{0,9}\Z|[-+−–][$€£¥]?\Z|\d[.,:/⁄^]\Z")
_AFTER = re.compile(r"[-\u2010\u2011]\s{0,9}[^\W\d_]|['’]t\b|[-–.,:/⁄^]\d", re.I)
_LOOKALIKES = [
    ("rn", "m"), ("nn", "m"), ("in", "m"), ("ri", "n"), ("ii", "u"), ("li", "h"), ("cl", "d"), ("vv", "w"),
    ("l", "i"), ("l", "1"), ("i", "1"), ("l", "t"), ("i", "j"), ("o", "0"), ("o", "c"), ("c", "e"), ("n", "u"),
    ("h", "b"), ("v", "y"), ("f", "s"), ("g", "q"),
]  # fmt: skip


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
    at: Sequence[int]


def places(quote: str, text: str) -> list[Place]:
    """Where a quote stands; several places for one that leaves something out (`…`), none if it does not stand.

    Its parts stand in order, `GAP` characters apart at most, and nothing that is left out denies anything.
    """
    if (whole := place(quote, text)) is not None:
        return [whole]
    parts = [part for part in _ELLIPSIS.split(quote, PARTS) if part.strip()]
    if len(parts) < 2:
        alone = place(parts[0], text) if parts and parts[0] != quote else None
        return [alone] if alone is not None else []
    if len(parts) > PARTS or any(is_short(part) for part in parts):
        return []
    firsts = islice(_standing(parts[0], text), _NEAR)
    return next((found for first in firsts if (found := _followed(first, parts[1:], text))), [])


def _followed(first: Place, parts: Sequence[str], text: str) -> list[Place]:
    """The first part and the others, each near the one before; nothing where one is not."""
    found = [first]
    for part in parts:
        # Where what follows is written differently it is longer or shorter than the part, by white space above all.
        start = found[-1].end
        near = text[start : start + GAP + 2 * len(part) + 100]
        here = next((p for p in _standing(part, near, folded) if not _inside(text, start + p.end)), None)
        if here is None or here.start > GAP or _DENIED.search(near, 0, here.start):
            return []
        found.append(Place(start + here.start, start + here.end, here.how))
    return found


def is_short(quote: str) -> bool:
    """Whether a quote says too little to show anything: one word of fewer than `SHORT` columns."""
    columns = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in quote.strip())
    return columns < SHORT and len(_WORD.findall(quote)) < 2


def place(quote: str, text: str) -> Place | None:
    """Where a quote stands in a text: exactly; else but for white space, hyphens, Unicode forms and case; else nearly.

    It cuts no word and no number. Nearly means that the words, numbers and signs are the same, in order, and
    punctuation and slips alone differ: in lower-case words, rarely (`WORDS_A_SLIP`), one letter each that looks
    like another, or in the middle of a long word is any other. See `LOOKALIKE_FROM`.
    """
    if (found := next(_standing(quote, text), None)) is not None:
        return found
    return _with_slips(quote.strip(), text) if SLIPS_FROM <= len(quote.strip()) <= SLIPS_TO else None


def _standing(quote: str, text: str, fold: Callable[[str], Folded] | None = None) -> Iterator[Place]:
    """Where a quote stands exactly, or else folded, without a word or number cut."""
    quote = quote.strip()
    exact = [Place(start, start + len(quote), "exact") for start in _hits(quote, text)]
    if exact or not (wanted := folded(quote).text):
        yield from exact
        return
    whole = (fold or _held)(text)
    for start in _hits(wanted, whole.text):
        yield _in_original(whole, start, start + len(wanted), text, "folded")


def _hits(wanted: str, text: str) -> Iterator[int]:
    start = text.find(wanted) if wanted else -1
    for _ in range(_HITS):
        if start < 0:
            return
        if not _inside(text, start) and not _inside(text, start + len(wanted)):
            yield start
        start = text.find(wanted, start + 1)


def _inside(text: str, at: int) -> bool:
    """Whether what stands before a place and what stands after it are one word or one number."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if unicodedata.combining(after) or (_is_wordy(before) and _is_wordy(after)):
        return True
    if (_is_wordy(after) or after in "$€£¥") and (joined := _BEFORE.search(text[max(0, at - 11) : at])):
        return after.isdigit() or after in "$€£¥" or joined[0][0].isalpha()
    return _is_wordy(before) and _AFTER.match(text, at) is not None and _ends_open(text, at)


def _ends_open(text: str, at: int) -> bool:
    """Whether the word or number before a place goes on with the sign after it: `can|'t`, `non|-smoker`, `1|.5`."""
    before, sign = text[at - 1], text[at]
    if sign in "'’":
        return before in "nN"
    return before.isdigit() or (before.isalpha() and not text[at + 1].isdigit())


def _is_wordy(character: str) -> bool:
    """Whether it is part of words that white space parts: a letter with cases, a digit. Chinese has no such words."""
    return character == "_" or character.isdigit() or character.lower() != character.upper()


def _with_slips(quote: str, text: str) -> Place | None:
    """Where a quote stands but for slips. One of its longest words has none: that is where to look."""
    small, whole = folded(quote), _held(text)
    tokens = list(_TOKEN.finditer(small.text))
    allowed = 1 + (len(tokens) - 1) // WORDS_A_SLIP
    original = _original(small, quote)
    for anchor in sorted(tokens, key=lambda token: len(token[0]), reverse=True)[: allowed + 1]:
        nth = tokens.index(anchor)
        for _, at in zip(range(_NEAR), _hits(anchor[0], whole.text), strict=False):
            low = max(0, at - 2 * anchor.start() - 50)
            high = at + 2 * (len(small.text) - anchor.start()) + 50
            near = list(_TOKEN.finditer(whole.text, low, high))
            here = next((n for n, token in enumerate(near) if token.start() == at), -1)
            window = near[here - nth : here - nth + len(tokens)] if here >= nth else []
            if len(window) == len(tokens) and _are_the_same(tokens, window, original, _original(whole, text), allowed):
                return _in_original(whole, window[0].start(), window[-1].end(), text, "fuzzy")
    return None


def _original(small: Folded, text: str) -> Callable[[re.Match[str]], str]:
    return lambda token: text[small.at[token.start()] : small.at[token.end() - 1] + 1]


def _are_the_same(
    wanted: Sequence[re.Match[str]],
    found: Sequence[re.Match[str]],
    in_quote: Callable[[re.Match[str]], str],
    in_text: Callable[[re.Match[str]], str],
    allowed: int,
) -> bool:
    """Whether these words are those, but for so many slips in lower-case words."""
    for one, other in zip(wanted, found, strict=True):
        if one[0] == other[0]:
            continue
        allowed -= 1
        lower = in_quote(one).islower() and in_text(other).islower()
        if allowed < 0 or not lower or not is_slip(one[0], other[0]):
            return False
    return True


def is_slip(one: str, other: str) -> bool:
    """Whether two lower-case words are one, misread or mistyped once, rather than two words."""
    length = min(len(one), len(other))
    if length < LOOKALIKE_FROM or not (one[0].isalpha() and other[0].isalpha()):
        return False
    start = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), length)
    back = zip(reversed(one[start:]), reversed(other[start:]), strict=False)
    end = next((n for n, (a, b) in enumerate(back) if a != b), length - start)
    parts = (one[start : len(one) - end], other[start : len(other) - end])
    wide = (one[start : len(one) - end + 1], other[start : len(other) - end + 1])
    wider = (one[max(0, start - 1) : len(one) - end], other[max(0, start - 1) : len(other) - end])
    if any(pair in _LOOKALIKES or pair[::-1] in _LOOKALIKES for pair in (parts, wide, wider)):
        return True
    middle = start > 3 and end > 3 and length >= TYPO_FROM and (one + other).isalpha()
    return middle and Levenshtein.distance(one, other, score_cutoff=1) == 1


def _in_original(whole: Folded, start: int, end: int, text: str, how: Literal["folded", "fuzzy"]) -> Place:
    last = whole.at[end - 1] + 1
    while last < len(text) and unicodedata.combining(text[last]):
        last += 1
    return Place(whole.at[start], last, how)


def folded(text: str) -> Folded:
    """A text without what typesetting and copying change: line breaks, hyphenation, quotation marks, case.

    A raised digit after a digit is no digit of the same number: `10²` becomes `10^2`.
    """
    characters: list[str] = []
    at = array("L")
    for character, index in _kept(text):
        if character.isspace():
            if characters and characters[-1] != " ":
                characters.append(" ")
                at.append(index)
            continue
        new = unicodedata.normalize("NFKD", character.translate(_SIGNS)).casefold()
        if new[:1].isdigit() and not character.isdecimal() and characters and characters[-1].isdigit():
            new = "^" + new
        for part in new:
            characters.append(part)
            at.append(index)
    if characters and characters[-1] == " ":
        characters.pop(), at.pop()
    return Folded("".join(characters), at)


_held = lru_cache(maxsize=2)(folded)


def _kept(text: str) -> Iterator[tuple[str, int]]:
    """The characters that count, with their places: no hyphens inside words, nothing invisible."""
    skipped = [match.span() for match in _HYPHEN.finditer(text)]
    skipped += [match.span() for match in _INVISIBLE.finditer(text)]
    at = 0
    for start, end in [*sorted(skipped), (len(text), len(text))]:
        yield from ((text[index], index) for index in range(at, start))
        at = max(at, end)
