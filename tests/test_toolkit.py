"""The tools that a cell finds: what they find, and that each piece knows where it is from."""

from __future__ import annotations

import copy
import pydoc
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from rlm_graph.kernel.inside.pieces import Piece
from rlm_graph.kernel.inside.toolkit import names

PLAY = "ROMEO\nBut soft, what light\nthrough yonder window breaks?\n\nJULIET\nO Romeo, Romeo!\nDeny thy father\n"
FILES = {"a.py": "def load():\n    return escape_ascii\n", "b/c.py": "import a\n\n\ndef dump():\n    pass\n"}


@dataclass
class Document:
    page_content: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Kernel:
    value: Any

    def context(self) -> Any:
        return self.value

    def scanned(self, source: str | int, start: int, end: int) -> None: ...


def tool(name: str, context: Any = PLAY) -> Callable[..., Any]:
    found = names(Kernel(context))[name]
    assert callable(found)
    return found


def long_text(paragraphs: int = 200) -> str:
    return "\n\n".join(f"Paragraph {i} speaks of topic{i}. " + "Filling words follow. " * 20 for i in range(paragraphs))


# Pieces


def test_a_slice_of_a_piece_knows_its_own_place() -> None:
    piece: Any = Piece(PLAY, "play")[6:26][4:8]
    assert (piece, piece.source, piece.start, piece.end) == ("soft", "play", 10, 14)


def test_a_slice_counted_from_the_end_knows_its_own_place() -> None:
    piece: Any = Piece(PLAY[6:26], "play", 6)[-5:]
    assert piece == PLAY[piece.start : piece.end] == "light"


def test_a_slice_with_a_step_is_a_plain_text() -> None:
    assert type(Piece("abcdef")[::2]) is str


def test_a_copied_piece_keeps_its_place() -> None:
    piece = copy.deepcopy(Piece("soft", "play", 10))
    assert (piece, piece.source, piece.start, piece.end) == ("soft", "play", 10, 14)


# grep


def test_grep_returns_the_matching_lines() -> None:
    assert tool("grep")("Romeo") == ["O Romeo, Romeo!"]


def test_grep_says_where_each_line_is() -> None:
    found = tool("grep", FILES)(r"^def ")
    assert [(piece.source, piece) for piece in found] == [("a.py", "def load():"), ("b/c.py", "def dump():")]
    assert all(piece == FILES[piece.source][piece.start : piece.end] for piece in found)


def test_grep_shows_lines_around_a_match() -> None:
    (piece,) = tool("grep")("light", before=1, after=1)
    assert piece == "ROMEO\nBut soft, what light\nthrough yonder window breaks?" == PLAY[piece.start : piece.end]


def test_grep_joins_neighbouring_matches_that_show_the_same_lines() -> None:
    assert tool("grep")("light|window", after=1) == ["But soft, what light\nthrough yonder window breaks?\n"]


def test_grep_keeps_the_lines_of_adjacent_matches_apart_without_context() -> None:
    assert len(tool("grep")("light|window")) == 2


def test_grep_stops_at_its_limit() -> None:
    assert tool("grep")("o", limit=2) == ["But soft, what light", "through yonder window breaks?"]


def test_grep_takes_flags_and_compiled_patterns() -> None:
    assert tool("grep")("romeo", flags=re.I) == tool("grep")(re.compile("romeo", re.I))


def test_grep_finds_empty_lines() -> None:
    assert [piece.start for piece in tool("grep")("^$", "a\n\nb")] == [2]


def test_grep_of_one_endless_line_returns_the_part_around_the_match() -> None:
    text = "x" * 50_000 + "needle" + "y" * 50_000
    (piece,) = tool("grep", text)("needle")
    assert "needle" in piece
    assert len(piece) <= 2_006
    assert piece == text[piece.start : piece.end]


def test_grep_in_pieces_gives_places_in_the_original() -> None:
    (paragraph,) = [piece for piece in tool("split")(tokens=20) if "JULIET" in piece]
    (line,) = tool("grep")("father", [paragraph])
    assert line == PLAY[line.start : line.end] == "Deny thy father"


# search


def test_search_puts_the_best_passage_first() -> None:
    text = long_text()
    found = tool("search", text)("topic137 paragraph", k=3)
    assert "topic137" in found[0]
    assert all(piece == text[piece.start : piece.end] for piece in found)


def test_search_returns_passages_of_a_readable_size() -> None:
    sizes = [len(piece) for piece in tool("search", long_text())("filling", k=5)]
    assert len(sizes) == 5 and all(900 <= size <= 2_000 for size in sizes)


def test_search_ignores_case_accents_and_endings() -> None:
    assert tool("search", ["Natásha's brothers", "nobody"])("NATASHA brother") == ["Natásha's brothers"]


def test_search_takes_identifiers_apart() -> None:
    assert [piece.source for piece in tool("search", FILES)("escaping ASCII")] == ["a.py"]


def test_search_finds_by_the_name_of_a_source() -> None:
    texts = {"json/encoder.py": "how it escapes", "html.py": "how it escapes"}
    assert tool("search", texts)("escapes in json")[0].source == "json/encoder.py"


def test_search_without_a_match_is_empty() -> None:
    assert tool("search")("zeppelin") == []


def test_search_prints_nothing() -> None:
    code = (
        "from rlm_graph.kernel.inside.toolkit import names\n"
        "class Kernel:\n    def context(self): return 'a soft light'\n    def scanned(self, *_): ...\n"
        "names(Kernel())['search']('soft')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# split


@pytest.mark.parametrize("by", ["paragraph", "line", "tokens", "item"])
def test_the_pieces_of_a_split_are_together_the_whole(by: str) -> None:
    text = long_text(40)
    pieces = tool("split", text)(tokens=300, by=by)
    assert "".join(pieces) == text
    assert all(len(piece) <= 1_200 and piece == text[piece.start : piece.end] for piece in pieces)


def test_split_by_paragraph_keeps_paragraphs_whole() -> None:
    pieces = tool("split", long_text(40))(tokens=300)
    assert len(pieces) > 5 and all(piece.startswith("Paragraph") for piece in pieces)


def test_split_by_line_keeps_lines_whole() -> None:
    pieces = tool("split")(tokens=10, by="line")
    assert len(pieces) > 1 and all(piece.endswith("\n") for piece in pieces)


def test_split_by_item_gives_one_piece_for_each_short_item() -> None:
    assert [piece.source for piece in tool("split", FILES)(by="item")] == ["a.py", "b/c.py"]


def test_split_with_overlap_repeats_the_end_of_the_piece_before() -> None:
    first, second, *_ = tool("split", long_text(5))(tokens=100, by="tokens", overlap=10)
    assert first[-40:] == second[:40]
    assert second.start == first.end - 40


NOVEL = "Title\n\nCHAPTER I. The Door\n\nIt opened.\n\nCHAPTER II\n\nIt closed.\n"
CODE = "import a\n\n@cached\ndef one():\n    def inner(): ...\n\nclass Two:\n    def three(self): ...\n"
RECORDS = "2024 start\n2024 fail\n  Traceback\n    line 3\n\n2025 stop\n"


@pytest.mark.parametrize(
    ("by", "text", "beginnings"),
    [
        ("chapter", NOVEL, ["Title", "CHAPTER I. The Door", "CHAPTER II"]),
        ("heading", "intro\n# One\na\n## Two\nb\nThree\n=====\nc\n", ["intro", "# One", "## Two", "Three"]),
        ("function", CODE, ["import a", "@cached", "class Two:"]),
        ("record", RECORDS, ["2024 start", "2024 fail", "2025 stop"]),
        ("record", [{"id": 1}, {"id": 2}], ["{", "{"]),
        ("file", FILES, ["def load():", "import a"]),
    ],
)
def test_split_begins_a_piece_at_each_section(by: str, text: Any, beginnings: list[str]) -> None:
    assert [piece.splitlines()[0] for piece in tool("split", text)(by=by)] == beginnings


def test_split_cuts_a_long_section_and_says_where_each_part_is() -> None:
    pieces = tool("split", NOVEL * 50)(by="chapter", tokens=10)
    assert all(len(piece) <= 40 and piece == (NOVEL * 50)[piece.start : piece.end] for piece in pieces)
    assert "".join(pieces).split() == (NOVEL * 50).split()


def test_an_item_taken_out_of_the_context_keeps_its_name() -> None:
    context = ["hay", "a needle", "hay and needle"]
    found = [piece.source for piece in tool("grep", context)("needle", context[1:])]
    assert found == [1, 2]


@pytest.mark.parametrize("name", ["peek", "grep", "search", "split", "count_tokens", "dedupe"])
def test_the_help_of_a_tool_fits_a_screen(name: str) -> None:
    lines = pydoc.plain(pydoc.render_doc(tool(name))).splitlines()
    assert 3 < sum(1 + len(line) // 100 for line in lines) <= 24


def test_a_tool_that_looks_through_a_large_piece_makes_no_copy_of_it() -> None:
    piece = Piece("x" * 30_000_000 + "needle", "text")
    grep, peek = tool("grep", ""), tool("peek", "")
    tracemalloc.start()
    grep("needle", piece), peek(piece), grep("needle", [piece])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_split_refuses_an_unknown_boundary() -> None:
    with pytest.raises(ValueError, match="paragraph, line, tokens, chapter"):
        tool("split")(by="chapterz")


def test_split_refuses_an_overlap_as_long_as_a_piece() -> None:
    with pytest.raises(ValueError, match="overlap"):
        tool("split")(tokens=10, overlap=10)


# What a context may be


@pytest.mark.parametrize(
    ("context", "source"),
    [
        ("a needle", "text"),
        (["hay", "a needle"], 1),
        ({"one": "hay", "two": "a needle"}, "two"),
        ([Document("hay"), Document("a needle", {"source": "two.pdf"})], "two.pdf"),
        ([{"page_content": "a needle", "metadata": {"source": "two.pdf"}}], "two.pdf"),
        ([{"id": 1}, {"id": 2, "text": "a needle"}], 1),
        ({"rows": [1, 2], "note": "a needle"}, "note"),
    ],
)
def test_every_kind_of_context_names_its_sources(context: Any, source: str | int) -> None:
    (piece,) = tool("grep", context)("needle")
    assert piece.source == source


def test_documents_of_one_source_are_told_apart() -> None:
    pages = [Document("needle 1", {"source": "a.pdf"}), Document("needle 2", {"source": "a.pdf"})]
    assert [piece.source for piece in tool("grep", pages)("needle")] == ["a.pdf[0]", "a.pdf[1]"]


# The rest


def test_peek_shows_sizes_head_and_tail() -> None:
    shown = tool("peek", "begin " + "x" * 9_000 + " end")(n=100)
    assert "9,010 characters" in shown
    assert "begin" in shown
    assert shown.endswith(" end")


def test_peek_of_many_items_names_first_and_last() -> None:
    shown = tool("peek", {f"file{i}": "text" for i in range(50)})()
    assert all(part in shown for part in ("50 texts", "file0", "44 more", "file49"))


def test_peek_reads_as_text_without_print() -> None:
    assert "\n" in repr(tool("peek")())


def test_tokens_are_estimated_from_characters() -> None:
    assert tool("count_tokens")("x" * 41) == 11


def test_dedupe_keeps_the_first_of_texts_that_differ_in_case_and_space() -> None:
    assert tool("dedupe")(["A  b", "a b", "c"]) == ["A  b", "c"]


def test_dedupe_takes_a_key() -> None:
    assert tool("dedupe")([{"id": 1, "n": 1}, {"id": 1, "n": 2}], key=lambda row: row["id"]) == [{"id": 1, "n": 1}]


def test_dedupe_compares_rows_that_cannot_be_hashed() -> None:
    assert tool("dedupe")([{"a": 1}, {"a": 1}, [2]]) == [{"a": 1}, [2]]
