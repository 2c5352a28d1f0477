"""What a cell finds beside `context`: tools that look, find, rank and cut, and know where a piece is from.

This runs inside the kernel, so it imports nothing of rlm_graph, and bm25s only when something is ranked.

Every tool takes the same `what`: a text, a list of texts, documents (`page_content`, `metadata`), a dict of
texts, JSON-like data (each element rendered as JSON), or the pieces that another tool returned. Without it:
`context`.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex, overload

PASSAGE = (1_000, 2_000)
"""Characters that a passage of `search` has at least and at most."""
RANKED = 2_000
"""How many passages BM25 sees; the rest are known to share fewer, or commoner, words with the query."""
NAMED = 3
"""How often the name of a passage's source counts as said in it."""
REACH = 1_000
"""Characters shown on either side of a match in a line that is longer than that."""
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about after all also an and any are as at be because been before but by can could did do
        does doing done each for from get give had has have he her him his how i if in into is it
        its many may me might more most much must my no not of off on only or other our out over say
        shall she should show so some such tell than that the their them then there these they this
        those to up us use used uses using very was we were what when where whether which while who
        whom whose why will with would you your
        """,
    )
)


class Env(Protocol):
    """What the kernel tells the toolkit."""

    def context(self) -> Any:
        """The current value of `context`."""


class Piece(str):
    """A part of a text that remembers where it is from; otherwise a `str`, and its slices are pieces too.

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
        return Piece(part, self.source, self.start + at.indices(len(self))[0])


class View(str):
    """A text that a cell's last line shows as it is, without quotes and escapes."""

    __slots__ = ()
    __repr__ = str.__str__


def items(what: Any) -> Iterator[Piece | tuple[str | int, str]]:
    """The texts of `what`, each a piece or a pair of its source and its text."""
    if isinstance(what, Piece):
        yield what
    elif isinstance(what, str):
        yield "text", what
    elif isinstance(what, dict) and not isinstance(what.get("page_content"), str):
        yield from ((str(key), rendered(value)) for key, value in what.items())
    elif isinstance(what, (list, tuple)):
        times = Counter(map(named, what))
        for index, item in enumerate(what):
            name = named(item)
            source = index if name is None else f"{name}[{index}]" if times[name] > 1 else name
            yield item if isinstance(item, Piece) else (source, rendered(item))
    else:
        yield named(what) or "text", rendered(what)


def texts(what: Any) -> Iterator[tuple[str | int, str, int]]:
    """Source, text and offset (in that source) of every text of `what`."""
    for item in items(what):
        if isinstance(item, Piece):
            yield item.source, str(item), item.start
        else:
            yield (*item, 0)


def named(item: Any) -> str | None:
    """What a document calls itself."""
    metadata = item.get("metadata") if isinstance(item, dict) else getattr(item, "metadata", None)
    if not isinstance(metadata, dict):
        return None
    keys = ("source", "file_path", "path", "title")
    return next((str(metadata[key]) for key in keys if metadata.get(key)), None)


def rendered(item: Any) -> str:
    """An item's text: itself, its `page_content`, or its JSON."""
    if isinstance(item, str):
        return item
    content = item.get("page_content") if isinstance(item, dict) else getattr(item, "page_content", None)
    if isinstance(content, str):
        return content
    return json.dumps(item, ensure_ascii=False, indent=1, default=str)


def terms(text: str) -> list[str]:
    """The words of a text for matching: folded, `snake_case` and `camelCase` taken apart, endings off."""
    found: list[str] = []
    for word in re.findall(r"[^\W_]+", text):
        parts = [word] if word.islower() else re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+", word)
        found += [stem(folded(part)) for part in parts]
    return found


def folded(text: str) -> str:
    """Lower case without accents, so that "Natasha" finds "Natásha"; the length may change."""
    low = text.lower()
    return low if low.isascii() else re.sub("[\u0300-\u036f]+", "", unicodedata.normalize("NFD", low))


def stem(word: str) -> str:
    """Takes off the commonest English endings, so that `escaping`, `escaped` and `escapes` are one."""
    for ending, least in (("ing", 4), ("ed", 4), ("es", 4), ("s", 3), ("e", 4)):
        if word.endswith(ending) and len(word) - len(ending) >= least and not word.endswith("ss"):
            return word[: -len(ending)]
    return word


def keywords(query: str) -> list[str]:
    """The stems that a query is about, in order, each once; all its words where it has only stop words."""
    words = [word for word in re.findall(r"[^\W_]+", query) if word.lower() not in STOP_WORDS and len(word) > 1]
    return list(dict.fromkeys(terms(" ".join(words)) or terms(query)))


def cuts(text: str, least: int, most: int, separators: Iterable[str], overlap: int = 0) -> Iterator[tuple[int, int]]:
    """Spans of `least` to `most` characters that cover a text, each ended after a separator if it can be."""
    start, size = 0, len(text)
    while start < size:
        end = start + most
        if end < size:
            floor = start + max(least, overlap + 1)
            ends = (at + len(mark) for mark in separators if (at := text.rfind(mark, floor, end)) >= 0)
            end = min(end, next(ends, end))
        end = min(end, size)
        yield start, end
        start = end if end == size else end - overlap


@dataclass(frozen=True, slots=True)
class Toolkit:
    """The tools, as methods that know the kernel's `context`."""

    env: Env

    def _texts(self, what: Any) -> Iterator[tuple[str | int, str, int]]:
        return texts(self.env.context() if what is None else what)

    def peek(self, what: Any = None, n: int = 500) -> str:
        """Sizes, and the head and tail of a text, or of the first and last items: about `2 * n` characters.

        peek()                    the context
        peek(context[7], n=2000)  more of one item
        """
        found = list(self._texts(what))
        size = sum(len(text) for _, text, _ in found)
        count = f"{len(found):,} text{'s' * (len(found) != 1)}"
        lines = [f"{count}, {size:,} characters, about {-(-size // 4):,} tokens"]
        shown = found if len(found) <= 6 else [*found[:4], *found[-2:]]
        share = max(80, n // max(1, len(shown)))
        for number, (source, text, start) in enumerate(shown):
            if number == 4 and len(found) > 6:
                lines.append(f"… {len(found) - 6:,} more …")
            middle = len(text) - 2 * share
            body = text if middle <= 0 else f"{text[:share]}\n… {middle:,} characters …\n{text[-share:]}"
            lines.append(f"── {source} ({len(text):,} characters{f' from {start:,}' * bool(start)})\n{body}")
        return View("\n".join(lines))

    def grep(
        self,
        pattern: str | re.Pattern[str],
        what: Any = None,
        before: int = 0,
        after: int = 0,
        limit: int | None = None,
        flags: int = 0,
    ) -> list[Piece]:
        """The lines that match a regular expression, each a piece with `source`, `start` and `end`.

        grep(r"def \\w+_hook")                         the lines, in order
        grep("natasha", flags=re.I, before=2, after=2)  with lines around; neighbours become one piece
        grep("error", limit=20)                         the first 20 pieces

        `^` and `$` match at every line. Of a very long line the 1,000 characters on either side of the match
        are returned.
        """
        regex = re.compile(pattern, flags | re.MULTILINE) if isinstance(pattern, str) else pattern
        found: list[Piece] = []
        for source, text, offset in self._texts(what):
            for start, end in matches(regex, text, before, after):
                if limit is not None and len(found) >= limit:
                    return found
                found.append(Piece(text[start:end], source, offset + start))
        return found

    def search(self, query: str, what: Any = None, k: int = 10) -> list[Piece]:
        """The `k` passages (1,000 to 2,000 characters) that fit a query's words best, best first, by BM25.

        search("who pays for the repairs")       in the context
        search("max recursion depth", hits, 5)   in the pieces of an earlier grep or search

        It compares words (without endings and accents; the source's name counts as text) and knows no
        synonyms, so try several wordings. Nothing found is an empty list.
        """
        words = keywords(query)
        spans: list[tuple[str, int, int, str | int, int]] = []
        hits: list[tuple[str, ...]] = []
        total = 0
        for source, text, offset in self._texts(what):
            title = folded(str(source))
            for start, end in cuts(text, *PASSAGE, ("\n\n", "\n", " ")):
                total += 1
                low = folded(text[start:end])
                if hit := tuple(word for word in words if word in low or word in title):
                    spans.append((text, start, end, source, offset + start))
                    hits.append(hit)
        times = Counter(word for hit in hits for word in hit)
        weight = {word: math.log(1 + total / (1 + times[word])) for word in words}
        order = sorted(range(len(hits)), key=lambda at: -sum(weight[word] for word in hits[at]))
        chosen = (spans[at] for at in order[:RANKED])
        passages = [Piece(text[start:end], source, at) for text, start, end, source, at in chosen]
        return ranked(words, passages, k)

    def split(self, what: Any = None, tokens: int = 2000, by: str = "paragraph", overlap: int = 0) -> list[Piece]:
        """Cuts into pieces of at most `tokens` tokens (4 characters each), that together are the whole.

        split()                       whole paragraphs, as many as fit a piece
        split(by="line")              whole lines
        split(by="tokens", overlap=50)  anywhere, each piece repeating the last 50 tokens before it
        split(by="item")              one piece an item, however short; long ones cut at paragraphs

        A piece never spans two items. What is longer than a piece is cut at the next smaller boundary. Pieces
        of white space alone are left out.
        """
        marks = {
            "paragraph": ("\n\n", "\n", " "),
            "item": ("\n\n", "\n", " "),
            "line": ("\n", " "),
            "tokens": (),
        }
        if by not in marks:
            raise ValueError(f"by={by!r}: one of {', '.join(marks)}")
        if not 0 <= overlap < tokens:
            raise ValueError(f"overlap={overlap} must be from 0 to less than tokens={tokens}")
        return [
            Piece(text[start:end], source, offset + start)
            for source, text, offset in self._texts(what)
            for start, end in cuts(text, 1, tokens * 4, marks[by], overlap * 4)
            if not text[start:end].isspace()
        ]

    def count_tokens(self, what: Any = None) -> int:
        """About how many tokens: an estimate, characters / 4 rounded up."""
        return -(-sum(len(text) for _, text, _ in self._texts(what)) // 4)

    def dedupe(self, items: Iterable[Any], key: Callable[[Any], Any] | None = None) -> list[Any]:
        """The items without repetitions, the first of each kept, in order.

        dedupe(names)                      texts that differ in case or white space alone are the same
        dedupe(rows, key=lambda r: r["id"])  what is the same is yours to say
        """
        kept: dict[Any, Any] = {}
        for item in items:
            mark = key(item) if key else item
            mark = " ".join(mark.split()).casefold() if isinstance(mark, str) and not key else mark
            kept.setdefault(mark if mark.__hash__ else json.dumps(mark, default=repr, sort_keys=True), item)
        return list(kept.values())


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


def ranked(words: list[str], passages: list[Piece], k: int) -> list[Piece]:
    """The best `k` passages by BM25."""
    if not passages or not words or k < 1:
        return []
    # bm25s asks tqdm for a progress bar on import, which warns inside a kernel that has no widgets.
    os.environ.setdefault("DISABLE_TQDM", "1")
    import bm25s  # type: ignore[import-untyped]

    index = bm25s.BM25(backend="numpy")
    index.index([terms(f"{p.source} " * NAMED + p) for p in passages], show_progress=False)
    scores = index.get_scores([word for word in words if word in index.vocab_dict])
    best = sorted(range(len(passages)), key=lambda at: (-float(scores[at]), at))[:k]
    return [passages[at] for at in best if scores[at] > 0]


def names(env: Env) -> dict[str, object]:
    """What to put into a cell's namespace."""
    kit = Toolkit(env)
    tools = (kit.peek, kit.grep, kit.search, kit.split, kit.count_tokens, kit.dedupe)
    return {tool.__name__: tool for tool in tools} | {"Piece": Piece}
