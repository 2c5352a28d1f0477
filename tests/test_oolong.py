"""Nothing is lost between labels and answers: OOLONG-like questions score what the leaf's labels give, to the digit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import oolong
import oolong_tasks as tasks


@pytest.mark.parametrize(
    ("tokens", "packed", "calls"),
    [
        (8_000, True, 1),
        (8_000, False, 184),
        pytest.param(131_000, True, 11, marks=pytest.mark.slow),
        pytest.param(131_000, False, 3_180, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(1_000_000, True, 82, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(1_000_000, False, 24_348, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
async def test_with_true_labels_every_answer_is_right(tokens: int, packed: bool, calls: int) -> None:
    outcome = await oolong.ask(tokens, packed=packed)
    assert (outcome.score, outcome.pairs, outcome.whole, outcome.calls) == (1.0, 1.0, True, calls)
    assert tokens < 100_000 or outcome.pairs_longest > 20_000
    assert not oolong.is_lost(outcome, wrong=0)


async def test_with_wrong_labels_the_score_is_what_they_give() -> None:
    outcome = await oolong.ask(32_000, packed=True, wrong=0.05)
    assert outcome.score == outcome.expected < 1
    assert outcome.pairs == outcome.pairs_expected < 1 and outcome.whole
    assert not oolong.is_lost(outcome, wrong=0.05) and oolong.is_lost(outcome, wrong=0)
    assert oolong.is_lost(replace(outcome, score=outcome.score + 0.01), wrong=0.05)


@pytest.mark.parametrize(
    ("answer", "gold", "kind", "score"),
    [
        ("Label: entity", "Label: entity", "WORD", 1),
        ("It is so. Label: **entity**", "Label: entity", "WORD", 1),
        ("Label: location", "Label: entity", "WORD", 0),
        ("Answer: 42", "Answer: 44", "NUMERIC", 0.75**2),
        ("Answer: many", "Answer: 44", "NUMERIC", 0),
    ],
)
def test_answers_are_scored_as_oolong_does(answer: str, gold: str, kind: str, score: float) -> None:
    assert tasks.score(answer, gold, kind) == score


def test_records_come_from_their_seed_and_hold_no_label() -> None:
    rows = oolong.records(8_000, 1)
    assert rows == oolong.records(8_000, 1) != oolong.records(8_000, 2)
    assert len(oolong.records(131_072, 0)) == 3_182
    text = oolong.window(rows)
    assert f"Date: {oolong._spoken(rows[0].date)} || User: {rows[0].user} || Instance: {rows[0].text}\n" in text
    assert not any(label in row.text for row in rows for label in tasks.LABELS)


def test_a_pair_is_two_users_who_have_what_is_asked_of_them() -> None:
    rows = [("2023-01-01", "3", tasks.N), ("2023-01-02", "1", tasks.L), ("2023-01-02", "2", tasks.H)]
    assert tasks.pairs(1, rows) == "(1, 3)"
    assert tasks.f1("(1, 3)\n(1, 2)", "(1, 3)") == pytest.approx(2 / 3)
    assert tasks.f1("", "") == 1
