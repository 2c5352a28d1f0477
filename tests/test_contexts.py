"""Contexts that a caller names: the list of whoever serves the graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlm_graph import create_rlm, hold
from rlm_graph.offline import OfflineReader, OfflineRoot

QUESTION = "Which word is it?"


def test_a_name_means_what_stands_under_it(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("The word is kiwi.")
    contexts = {"words": tmp_path / "words.txt", "more": hold("The word is plum.")}
    rlm = create_rlm(OfflineRoot(), OfflineReader(), contexts=contexts)
    assert "kiwi" in rlm.invoke({"question": QUESTION, "context": "words"})["answer"]
    assert "plum" in rlm.invoke({"question": QUESTION, "context": "more"})["answer"]


def test_a_name_of_another_graph_is_a_text() -> None:
    rlm = create_rlm(OfflineRoot(), OfflineReader())
    out = rlm.invoke({"question": QUESTION, "context": "words"})
    assert out["stop_reason"] == "direct" and "kiwi" not in out["answer"] and out["warnings"] == []


@pytest.mark.parametrize(("text", "told"), [("wrods", 1), ("wrods, a text that is longer than names are", 0)])
def test_a_text_that_may_be_a_misspelt_name_is_told(text: str, told: int) -> None:
    rlm = create_rlm(OfflineRoot(), OfflineReader(), contexts={"words": "The word is kiwi."})
    warnings = rlm.invoke({"question": QUESTION, "context": text})["warnings"]
    assert sum("what can be named is: words" in line for line in warnings) == told == len(warnings)


@pytest.mark.parametrize("text", ["README.md", "notes/of-mine.txt", "https://example.org/page"])
def test_a_text_that_looks_like_a_file_or_a_url_is_told(text: str) -> None:
    out = create_rlm(OfflineRoot(), OfflineReader()).invoke({"question": QUESTION, "context": text})
    assert [line for line in out["warnings"] if f"context {text!r} is taken as text" in line] == out["warnings"] != []


@pytest.mark.parametrize("text", ["The word is kiwi.", "kiwi", "3.14", "see README.md"])
def test_a_text_that_looks_like_a_text_is_not(text: str) -> None:
    out = create_rlm(OfflineRoot(), OfflineReader()).invoke({"question": QUESTION, "context": text})
    assert out["warnings"] == []
