"""Where a quote stands in a text: exactly, but for typesetting, or nearly; and where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_graph.checks import read_results, validator
from rlm_graph.evidence import place, places

TEXT = (
    "“We won’t pay,” said  the\r\nowner — and the com-\nmittee agreed: the efﬁcient, well-known café 🦊 gets $4,200 "
    "on 3 May. It was not the intention of the parties to exclude repairs caused by ordinary wear."
)


def stands(quote: str) -> str | None:
    found = place(quote, TEXT)
    return found and TEXT[found.start : found.end]


@pytest.mark.parametrize(
    ("quote", "passage"),
    [
        ("on 3 May", "on 3 May"),
        ('"We won\'t pay," said the owner', "“We won’t pay,” said  the\r\nowner"),
        ("the owner - and the committee agreed", "the\r\nowner — and the com-\nmittee agreed"),
        ("the efficient, well-known cafe\u0301 🦊", "the efﬁcient, well-known café 🦊"),
        ("THE  WELLKNOWN", None),
        ("it was not the intention", "It was not the intention"),
        (
            "It was not the intention of both parties to exclude repairs",
            "It was not the intention of the parties to exclude repairs",
        ),
    ],
)
def test_a_quote_is_found_where_it_stands(quote: str, passage: str | None) -> None:
    assert stands(quote) == passage


@pytest.mark.parametrize(
    "quote",
    [
        "",
        "the owner paid",
        "well-known café 🦊 gets $4,300 on 3 May. It was not",
        "It was the intention of the parties to exclude repairs caused by ordinary wear",
        "an agreement of the owners that nobody pays for repairs at all",
    ],
)
def test_a_quote_that_says_something_else_is_not_found(quote: str) -> None:
    assert stands(quote) is None


def test_a_quote_that_leaves_something_out_stands_in_two_places() -> None:
    found = [TEXT[p.start : p.end] for p in places("“We won’t pay,” … the intention of the parties", TEXT)]
    assert found == ["“We won’t pay,”", "the intention of the parties"]
    assert places("“We won’t pay,” … forever and ever", TEXT) == []


@given(st.text(max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_a_slice_of_a_text_is_found_in_it_as_it_stands(text: str, start: int, end: int) -> None:
    quote = text[start:end].strip()
    found = place(quote, text)
    assert (found is None) == (not quote)
    assert found is None or text[found.start : found.end] == quote


@given(
    st.text("ab 1é\n", max_size=80), st.integers(0, 80), st.integers(0, 80), st.sampled_from([" ", "\n", "\u00a0\t"])
)
def test_white_space_makes_no_difference(text: str, start: int, end: int, space: str) -> None:
    quote = space.join(text[start:end].split())
    found = place(quote, text)
    assert (found is None) == (not quote)
    assert found is None or text[found.start : found.end].split() == quote.split()


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        ('{"results": [{"id": "1", "answer": 1}]}', [1]),
        ('Here you are:\n```json\n[{"id": "1", "answer": 1}]\n```', [1]),
        ("{'results': [{'id': '1', 'answer': 'a',}, {'id': '2', 'answer': 'b'", ["a", "b"]),
        ("I cannot say.", []),
        ("[" * 100_000, []),
        ('{"results": 7}', []),
    ],
)
def test_a_reply_is_read_as_far_as_it_can_be(reply: str, answers: list[object]) -> None:
    assert [row["answer"] for row in read_results(reply)] == answers


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1:1/x"}, {"$ref": "file:///etc/passwd"}, 7]
)
def test_a_schema_that_is_none_or_leads_elsewhere_is_refused(schema: object) -> None:
    with pytest.raises(ValueError, match="not a JSON schema"):
        validator(schema)


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not validator({"pattern": "^(a+)+$"}).is_valid("a" * 50_000 + "b")
