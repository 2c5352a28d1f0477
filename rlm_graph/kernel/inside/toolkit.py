"""What a cell finds beside `context`: tools that look, find, rank and cut, and know where a piece is from.

This runs inside the kernel, so it imports nothing of rlm_graph, and bm25s only when something is ranked.

Every tool takes the same `what`: a text, a list of texts, documents (`page_content`, `metadata`), a dict of
texts, JSON-like data (each element rendered as JSON), or the pieces that another tool returned. Without it:
`context`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from .cutting import PACKED, SECTIONS, cuts, is_blank, matches, spans
from .pieces import Piece, Placed, Places, View, raw
from .words import folded, keywords, ranked

PASSAGE = (1_000, 2_000)
"""Characters that a passage of `search` has at least and at most."""
RANKED = 2_000
"""How many passages BM25 sees; the rest are known to share fewer, or commoner, words with the query."""
TOKEN = 4
"""Characters that count as a token."""


class Env(Protocol):
    """What the kernel tells the toolkit."""

    def context(self) -> Any:
        """The current value of `context`."""

    def scanned(self, source: str | int, start: int, end: int) -> None:
        """Takes note of what was searched."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """The tools, as methods that know the kernel's `context`."""

    env: Env
    places: Places

    def _texts(self, what: Any) -> Iterator[Placed]:
        return self.places.of(what, self.env.context())

    def _note(self, placed: Placed, end: int) -> None:
        if placed.known:
            self.env.scanned(placed.source, placed.start, placed.start + end)

    def peek(self, what: Any = None, n: int = 500) -> str:
        """Sizes, and the head and tail of a text, or of the first and last items: about `2 * n` characters.

        peek()                    the context
        peek(context[7], n=2000)  more of one item
        """
        found = list(self._texts(what))
        size = sum(len(each.text) for each in found)
        count = f"{len(found):,} text{'s' * (len(found) != 1)}"
        lines = [f"{count}, {size:,} characters, about {-(-size // TOKEN):,} tokens"]
        shown = found if len(found) <= 6 else [*found[:4], *found[-2:]]
        share = max(80, n // max(1, len(shown)))
        for number, (source, text, start, _) in enumerate(shown):
            if number == 4 and len(found) > 6:
                lines.append(f"… {len(found) - 6:,} more …")
            length = len(text)
            middle = length - 2 * share
            ends = f"{raw(text, 0, share)}\n… {middle:,} characters …\n{raw(text, length - share, length)}"
            lines.append(f"── {source} ({length:,} characters{f' from {start:,}' * bool(start)})")
            lines.append(ends if middle > 0 else raw(text, 0, length))
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
        for placed in self._texts(what):
            source, text, offset, _ = placed
            for start, end in matches(regex, text, before, after):
                if limit is not None and len(found) >= limit:
                    self._note(placed, start)
                    return found
                found.append(Piece(raw(text, start, end), source, offset + start))
            self._note(placed, len(text))
        return found

    def search(self, query: str, what: Any = None, k: int = 10) -> list[Piece]:
        """The `k` passages (1,000 to 2,000 characters) that fit a query's words best, best first, by BM25.

        search("who pays for the repairs")       in the context
        search("max recursion depth", hits, 5)   in the pieces of an earlier grep or search

        It compares words (without endings and accents; the source's name counts as text) and knows no
        synonyms, so try several wordings. Nothing found is an empty list.
        """
        words = keywords(query)
        passages: list[tuple[Placed, int, int]] = []
        hits: list[tuple[str, ...]] = []
        total = 0
        for placed in self._texts(what):
            title, text = folded(str(placed.source)), placed.text
            self._note(placed, len(text))
            for start, end in cuts(text, 0, len(text), *PASSAGE, PACKED["paragraph"]):
                total += 1
                low = folded(raw(text, start, end))
                if hit := tuple(word for word in words if word in low or word in title):
                    passages.append((placed, start, end))
                    hits.append(hit)
        times = Counter(word for hit in hits for word in hit)
        weight = {word: math.log(1 + total / (1 + times[word])) for word in words}
        order = sorted(range(len(hits)), key=lambda at: -sum(weight[word] for word in hits[at]))
        chosen = (passages[at] for at in order[:RANKED])
        return ranked(words, [Piece(raw(p.text, start, end), p.source, p.start + start) for p, start, end in chosen], k)

    def split(self, what: Any = None, tokens: int = 2000, by: str = "paragraph", overlap: int = 0) -> list[Piece]:
        """Cuts into pieces of at most `tokens` tokens (4 characters each), that together are the whole.

        by="paragraph", "line"   whole paragraphs or lines, as many as fit a piece
        by="tokens"              anywhere
        by="chapter", "heading"  one piece for each, its heading first
        by="record"              one piece for each line, with the indented lines below it
        by="function"            one piece for each definition at the margin of source code
        by="file", "item"        one piece for each text of the context

        split(by="chapter", tokens=8000)
        split(overlap=50)        each piece also repeats the 50 tokens before it

        A piece never spans two items. What is longer than a piece is cut at the next smaller boundary. Pieces
        of white space alone are left out.
        """
        if by not in PACKED and by not in SECTIONS:
            raise ValueError(f"by={by!r}: one of {', '.join([*PACKED, *SECTIONS])}")
        if not 0 <= overlap < tokens:
            raise ValueError(f"overlap={overlap} must be from 0 to less than tokens={tokens}")
        return [
            Piece(raw(text, start, end), source, offset + start)
            for source, text, offset, _ in self._texts(what)
            for start, end in spans(text, by, tokens * TOKEN, overlap * TOKEN)
            if not is_blank(text, start, end)
        ]

    def count_tokens(self, what: Any = None) -> int:
        """About how many tokens: an estimate, characters / 4 rounded up."""
        return -(-sum(len(each.text) for each in self._texts(what)) // TOKEN)

    def dedupe(self, items: Iterable[Any], key: Callable[[Any], Any] | None = None) -> list[Any]:
        """The items without repetitions, the first of each kept, in order.

        dedupe(names)                      texts that differ in case or white space alone are the same
        dedupe(rows, key=lambda r: r["id"])  what is the same is yours to say
        """
        kept: dict[Any, Any] = {}
        for item in items:
            mark = key(item) if key else item
            mark = " ".join(str(mark).split()).casefold() if isinstance(mark, str) and not key else mark
            kept.setdefault(mark if mark.__hash__ else json.dumps(mark, default=repr, sort_keys=True), item)
        return list(kept.values())


def names(env: Env, places: Places | None = None) -> dict[str, object]:
    """What to put into a cell's namespace."""
    kit = Toolkit(env, places or Places())
    tools = (kit.peek, kit.grep, kit.search, kit.split, kit.count_tokens, kit.dedupe)
    return {tool.__name__: tool for tool in tools} | {"Piece": Piece}
