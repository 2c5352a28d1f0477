"""On arbitrary Unicode, every operation on a piece gives what `str` gives, and says truly where it is from."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_graph.kernel.inside.cutting import PACKED, SECTIONS
from rlm_graph.kernel.inside.pieces import Piece
from rlm_graph.kernel.inside.reading import PARTS, mapped
from rlm_graph.kernel.inside.toolkit import names

ALPHABET = st.one_of(
    st.characters(),  # astral characters and, below, what is special to cutting
    st.sampled_from("ab \t\n\r\v\f\x1c\x85  .#=-0é𝔸🦊"),
    st.sampled_from(["\ud800"]),
)
TEXT = st.text(ALPHABET, max_size=120)
SHORT = st.text(ALPHABET, max_size=3)
BEFORE = st.integers(0, 30)

MORE = settings(max_examples=150)


class Kernel:
    def __init__(self, value: Any) -> None:
        self.value = value

    def context(self) -> Any:
        return self.value

    def scanned(self, source: str | int, start: int, end: int) -> None: ...


def check(results: Any, expected: Any, whole: str) -> None:
    """The same texts as those of a plain `str`, each a piece whose place is true."""
    results, expected = ([*r] if isinstance(r, list | tuple) else [r] for r in (results, expected))
    assert [str(r) for r in results] == expected
    for result in results:
        assert isinstance(result, Piece) and result.source == "s"
        assert whole[result.start : result.end] == result


@MORE
@given(TEXT, BEFORE, st.integers(-130, 130), st.integers(-130, 130))
def test_slices(text: str, before: int, start: int, end: int) -> None:
    piece = Piece(text, "s", before)
    whole = "x" * before + text
    for at in (slice(start, end), slice(start, None), slice(None, end), slice(None), slice(start, end, 1)):
        check(piece[at], text[at], whole)


OPERATIONS: dict[str, Callable[[str, str], Any]] = {
    "strip": lambda text, chars: text.strip(chars or None),
    "lstrip": lambda text, chars: text.lstrip(chars or None),
    "rstrip": lambda text, chars: text.rstrip(chars or None),
    "removeprefix": lambda text, chars: text.removeprefix(chars),
    "removesuffix": lambda text, chars: text.removesuffix(chars),
    "split": lambda text, chars: text.split(chars or None),
    "split at most": lambda text, chars: text.split(chars or None, 2),
    "rsplit": lambda text, chars: text.rsplit(chars or None),
    "rsplit at most": lambda text, chars: text.rsplit(chars or None, 2),
    "splitlines": lambda text, chars: text.splitlines(),
    "splitlines with ends": lambda text, chars: text.splitlines(True),
    "partition": lambda text, chars: text.partition(chars or "\n"),
    "rpartition": lambda text, chars: text.rpartition(chars or "\n"),
}


@pytest.mark.parametrize("name", OPERATIONS)
@MORE
@given(text=TEXT, chars=SHORT, before=BEFORE)
def test_operations(name: str, text: str, chars: str, before: int) -> None:
    operate = OPERATIONS[name]
    check(operate(Piece(text, "s", before), chars), operate(text, chars), "x" * before + text)


@MORE
@given(TEXT, BEFORE, st.sampled_from([r"(\w)(\W?)", r"(?s)a(.*)", r"^(.*)$", r"([^a])"]))
def test_groups_of_a_match_by_place(text: str, before: int, pattern: str) -> None:
    piece, whole = Piece(text, "s", before), "x" * before + text
    for match in re.finditer(pattern, piece, re.M):
        for group in range(match.re.groups + 1):
            check(piece[slice(*match.span(group))], match[group], whole)


@pytest.mark.parametrize("by", [*PACKED, *SECTIONS])
@MORE
@given(text=TEXT, tokens=st.integers(1, 12), overlap=st.integers(0, 3), before=BEFORE)
def test_split_pieces_cover_the_text(by: str, text: str, tokens: int, overlap: int, before: int) -> None:
    overlap = min(overlap, tokens - 1)
    split: Any = names(Kernel(text))["split"]
    pieces = split(Piece(text, "s", before), tokens=tokens, by=by, overlap=overlap)
    check(pieces, [str(p) for p in pieces], "x" * before + text)
    assert all(len(p) <= tokens * 4 for p in pieces)
    covered = {at - before for p in pieces for at in range(p.start, p.end)}
    assert all(text[at].isspace() for at in set(range(len(text))) - covered)
    if not overlap:
        assert sum(map(len, pieces)) == len(covered)


@MORE
@given(TEXT, SHORT, BEFORE, st.integers(0, 2), st.integers(0, 2))
def test_grep_finds_the_lines_that_hold_a_text(text: str, needle: str, start: int, before: int, after: int) -> None:
    grep: Any = names(Kernel(text))["grep"]
    found = grep(re.escape(needle), Piece(text, "s", start), before, after)
    check(found, [str(p) for p in found], "x" * start + text)
    if not (before or after) and "\n" not in needle:
        assert [str(p) for p in found] == [line for line in text.split("\n") if needle in line]


@MORE
@given(st.lists(TEXT, max_size=4), st.sampled_from(["fox", "a", "é 0"]))
def test_search_says_where_its_passages_are(texts: list[str], query: str) -> None:
    texts = [*texts, f"Here is {query}."]
    search: Any = names(Kernel(texts))["search"]
    found = search(query)
    assert found and all(texts[p.source][p.start : p.end] == p for p in found)


@MORE
@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 900), min_size=1), st.data())
def test_the_map_of_spans_counts_characters(sizes: dict[str, int], data: st.DataObject) -> None:
    place = st.tuples(st.integers(0, 900), st.integers(0, 900))
    spans = data.draw(st.dictionaries(st.sampled_from("abc"), st.lists(place, max_size=5)))
    inside = [any(s <= at < e for s, e in spans.get(name, ())) for name, size in sizes.items() for at in range(size)]
    for part, digit in enumerate(mapped(spans, sizes)):
        low, high = part * len(inside) / PARTS, (part + 1) * len(inside) / PARTS
        share = sum(
            max(0.0, min(at + 1, high) - max(at, low))
            for at in range(int(low), min(len(inside), int(high) + 1))
            if inside[at]
        ) / (high - low)
        assert (digit == "0") == (share < 1e-9)
        assert digit == "0" or abs(int(digit) - max(1, share * 9)) <= 1.01
