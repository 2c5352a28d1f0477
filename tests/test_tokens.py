"""Token counts: a vocabulary that is on the disk already, else an estimate; never the network, never an error."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public

from rlm_graph import tokens
from rlm_graph.tokens import LONG, Sample, count_tokens, estimate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as tiktoken's cache, and a tiktoken that fails the test when it wants to load something."""

    def loads(name: str) -> Any:
        raise AssertionError(f"tiktoken was asked to load {name}")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", loads)
    return tmp_path


@pytest.fixture
def vocabulary(cache: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """A cached vocabulary in which each byte is a token."""
    url = tokens._FILES["o200k_base"][0]
    (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(b"ranks")
    monkeypatch.setitem(tokens._FILES, "o200k_base", (url, hashlib.sha256(b"ranks").hexdigest()))
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"(?s).", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    return encoding


def test_without_a_vocabulary_four_characters_are_a_token() -> None:
    assert count_tokens("a" * 401) == 101 == estimate(401)


def test_without_a_vocabulary_each_chinese_character_is_a_token() -> None:
    assert count_tokens("漢字" * 10 + "abcd") == 21


def test_the_empty_text_has_no_token() -> None:
    assert count_tokens("") == 0 == estimate(0)


def test_a_damaged_vocabulary_is_not_downloaded_again(cache: Path) -> None:
    url = tokens._FILES["o200k_base"][0]
    (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(b"half a vocab")
    assert count_tokens("abcd") == 1


def test_the_files_looked_for_are_those_that_tiktoken_would_download() -> None:
    for name, (url, sha256) in tokens._FILES.items():
        source = inspect.getsource(getattr(tiktoken_ext.openai_public, name))
        assert url in source and sha256 in source


def test_the_cache_is_where_tiktoken_looks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens._cache_folder() == cache
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken: no cache at all
    assert tokens._cache_folder() is None
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(cache))
    assert tokens._cache_folder() == cache


@pytest.mark.usefixtures("vocabulary")
def test_a_cached_vocabulary_counts_exactly() -> None:
    assert count_tokens("abcdé") == 6
    assert count_tokens("abcd", "gpt-4o") == count_tokens("abcd", "openai:gpt-4o") == 4


@pytest.mark.usefixtures("vocabulary")
def test_for_another_makers_model_a_vocabulary_is_an_approximation() -> None:
    assert count_tokens("abcd", "claude-sonnet") == 4


@pytest.mark.usefixtures("vocabulary")
def test_a_lone_surrogate_is_counted_like_any_character() -> None:
    assert count_tokens("\ud800") > 0


@pytest.mark.usefixtures("vocabulary")
def test_a_long_text_is_counted_by_a_sample() -> None:
    text = "a" * LONG + "é" * LONG
    assert count_tokens(text) == pytest.approx(3 * LONG, rel=0.02)


def test_a_tokenizer_that_fails_ends_no_run(vocabulary: tiktoken.Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, text: str) -> list[int]:
        raise ValueError("no")

    monkeypatch.setattr(tiktoken.Encoding, "encode_ordinary", fails)
    assert count_tokens("abcd") == 1


@pytest.mark.usefixtures("vocabulary")
def test_a_sample_of_little_is_all_of_it() -> None:
    sample = Sample()
    for piece in ("abc", "", "é"):
        sample.add(piece)
    assert (sample.chars, sample.tokens()) == (4, 5)


@pytest.mark.usefixtures("vocabulary")
def test_a_sample_of_much_is_taken_from_all_over() -> None:
    sample = Sample()
    for _ in range(500):
        sample.add("a" * 1_000)
    for _ in range(500):
        sample.add("é" * 1_000)
    assert sample.tokens() == pytest.approx(1_500_000, rel=0.02)
    assert sum(len(bit) for bit in sample._bits) <= 400_000
