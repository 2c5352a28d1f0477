"""Where a quote stands in a text: exactly, but for typesetting, or nearly; and where it does not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_graph.checks import read_results
from rlm_graph.evidence import place, places
from rlm_graph.schemas import takes_too_long, validator

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
        ("EFFICIENT,  WELLKNOWN", "efﬁcient, well-known"),
        ("it was not the intention", "It was not the intention"),
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
        "It was not the intention of both parties to exclude repairs",
        "an agreement of the owners that nobody pays for repairs at all",
    ],
)
def test_a_quote_that_says_something_else_is_not_found(quote: str) -> None:
    assert stands(quote) is None


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("It was not the intention of the parties", "It was not the intentlon of the parties."),
        ("agreed by the committee of the owners", "And it was agreed by the comrnittee of the owners, who"),
        ("agreed by the administration itself", "It was agreed by the adminstration itself."),
        ("Agreed by the committee, the owners said", "AGREED BY THE COMMITTEE -- THE OWNERS SAID"),
        ("the valve stays closed; then the pump is started", "the valve stays closed, then the pump\nis started"),
        ("他没有付钱", "合同规定，他没有付钱。"),
    ],
)
def test_a_slip_in_a_long_word_and_punctuation_make_no_difference(quote: str, text: str) -> None:
    assert place(quote, text) is not None


OPPOSITE = [
    ("Revenue increased by 12 percent in the fourth quarter", "Revenue decreased by 12 percent in the fourth quarter."),
    ("the defendant is guilty of all charges here", "the defendant is not-guilty of all charges here"),
    ("guilty of all the charges", "the defendant is not-guilty of all the charges"),
    ("The patient is allergic to penicillin and sulfa", "The patient isnt allergic to penicillin and sulfa"),
    ("The patient is allergic to penicillin and sulfa", "The patient isn't allergic to penicillin and sulfa"),
    ("the seller can", "the seller can’t pay"),
    ("The board approved three of the seven proposals", "The board approved four of the seven proposals"),
    ("payment is due from Mr. Miller before the end", "payment is due from Mr. Moller before the end"),
    ("payment is due from Mr. Moller before the end", "payment is due from Mr. Möller before the end"),
    ("payment is due from Mr. Sonnenberg before the end", "payment is due from Mr. Sonmenberg before the end"),
    ("The loss of the company was 1.5 million euros in all", "The loss of the company was 15 million euros in all"),
    ("The loss was -5 percent over the whole of the year", "The loss was 5 percent over the whole of the year"),
    ("The loss was 5 percent over the whole of the year", "The loss was -5 percent over the whole of the year"),
    ("5 percent over the year", "the change was −5 percent over the year"),
    ("5 percent over the year", "the change was 1.5 percent over the year"),
    ("a loss of 15 in the year", "a loss of 15,000 in the year"),
    ("about a loss of 15", "about a loss of 15,000 in the year"),
    ("Paid: €200 from A to B, and 300 from B to A", "Paid: €300 from A to B, and 200 from B to A"),
    ("Paid: €200 from A to B in the month of May", "Paid: $200 from A to B in the month of May"),
    ("an area of 102 metres", "an area of 10² metres"),
    ("the valve must be opened before the pump is started", "the valve must be closed before the pump is started"),
    ("It is possible to withdraw the consent", "It is impossible to withdraw the consent"),
    ("possible to withdraw the consent", "It is impossible to withdraw the consent"),
    ("a refundable deposit is paid", "a non-refundable deposit is paid"),
    ("refundable deposit is paid", "a non-\nrefundable deposit is paid"),
    ("The employer gives notice a month before the end", "The employee gives notice a month before the end"),
    ("a typical course of the illness was observed", "atypical course of the illness was observed"),
    ("it was a symptomatic infection that was observed", "it was asymptomatic infection that was observed"),
    ("the drug is prescribed for children under twelve", "the drug is proscribed for children under twelve"),
    ("the abduction of the shoulder was measured again", "the adduction of the shoulder was measured again"),
    ("the buyer … pays for all repairs", "The seller pays for all repairs; the buyer must not pay anything."),
    ("The buyer shall … pay for all repairs", "The buyer shall not, whatever happens, pay for all repairs."),
    ("The buyer … pays for it all", f"The buyer was there. {'It rained. ' * 40} Whoever loses pays for it all."),
]


@pytest.mark.parametrize(("quote", "text"), OPPOSITE)
def test_a_quote_that_says_the_opposite_does_not_stand(quote: str, text: str) -> None:
    assert places(quote, text) == []


def test_a_quote_that_leaves_something_out_stands_in_two_places() -> None:
    found = [TEXT[p.start : p.end] for p in places("“We won't pay,” … the committee agreed", TEXT)]
    assert found == ["“We won’t pay,”", "the com-\nmittee agreed"]
    assert places("“We won’t pay,” … forever and ever", TEXT) == []
    assert [TEXT[p.start : p.end] for p in places("… the intention of the parties …", TEXT)] == [
        "the intention of the parties"
    ]


@given(st.text(st.characters(exclude_categories=["M", "Cs"], exclude_characters="-‐‑"), max_size=80), st.data())
def test_words_of_a_text_are_found_in_it_as_they_stand(text: str, data: st.DataObject) -> None:
    words = [(0, 0), *(word.span() for word in re.finditer(r"\S+", text))]
    first = data.draw(st.integers(0, len(words) - 1))
    quote = text[words[first][0] : words[data.draw(st.integers(first, len(words) - 1))][1]].strip()
    found = place(quote, text)
    assert (found is None) == (not quote)
    assert found is None or text[found.start : found.end] == quote


@given(
    st.text("ab 1é\n", max_size=80), st.integers(0, 80), st.integers(0, 80), st.sampled_from([" ", "\n", "\u00a0\t"])
)
def test_white_space_makes_no_difference(text: str, start: int, end: int, space: str) -> None:
    quote = space.join(text.split()[start:end])
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
        ("{ " * 50_000, []),
        ("{ ] " * 50_000, []),
        ("{ , " * 40 + "word " * 10_000, []),
        (("{ " * 40 + "}" * 40) * 500, []),
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


def doubling(levels: int, within: str) -> dict[str, Any]:
    """A small schema each part of which refers twice to the part before: in place, or one level deeper."""
    parts: dict[str, Any] = {"l0": {"type": "string"}}
    for n in range(1, levels):
        twice = {"allOf": [{"$ref": f"#/$defs/l{n - 1}"}] * 2}
        parts[f"l{n}"] = twice if within == "place" else {within: twice}
    return {"$ref": f"#/$defs/l{levels - 1}", "$defs": parts}


@pytest.mark.parametrize(
    "schema",
    [
        doubling(32, "place"),
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$id": "http://x/", "$ref": "#/$defs/a"}}},
        {"$dynamicRef": "#/$defs/a", "$defs": {"a": {"type": "string"}}},
    ],
)
def test_a_schema_that_unfolds_without_end_is_refused(schema: object) -> None:
    with pytest.raises(ValueError, match="not a JSON schema"):
        validator(schema)


def nested(levels: int) -> Any:
    value: Any = "leaf"
    for _ in range(levels):
        value = [value]
    return value


def test_an_answer_is_not_checked_by_a_schema_that_unfolds_as_deep_as_the_answer() -> None:
    itself = {"items": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}
    for schema in (doubling(32, "items"), itself):
        assert validator(schema).is_valid(nested(3))
        assert not takes_too_long(schema, nested(3))
        assert takes_too_long(schema, nested(31))


def test_a_schema_of_trees_and_of_expressions_is_fine() -> None:
    sides = {side: {"$ref": "#/$defs/E"} for side in ("left", "right")}
    both = [{"type": "object", "properties": {"kind": {"const": kind}, **sides}} for kind in ("add", "mul")]
    schema = {"$ref": "#/$defs/E", "$defs": {"E": {"anyOf": [*both, {"type": "number"}]}}}
    value: Any = 1
    for _ in range(10):
        value = {"kind": "add", "left": value, "right": 2}
    assert validator(schema).is_valid(value) and not takes_too_long(schema, value)
