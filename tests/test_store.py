"""The content store: values as files, whole or not at all, and never outside their folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs
import pytest

from rlm_graph.store import FolderStore, default_store


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_a_value_comes_back_as_it_was(store: FolderStore) -> None:
    store.mset([("blob/ab12", b"\0\xff\r\n"), ("reply/tree/call", b"")])
    assert store.mget(["reply/tree/call", "blob/ab12", "blob/none"]) == [b"", b"\0\xff\r\n", None]


def test_a_later_value_replaces_an_earlier_one(store: FolderStore) -> None:
    store.mset([("a", b"long, long ago")])
    store.mset([("a", b"now")])
    assert store.mget(["a"]) == [b"now"]


def test_the_file_of_a_key_can_be_read_directly(store: FolderStore) -> None:
    store.mset([("blob/ab12", b"text")])
    assert store.path("blob/ab12").read_bytes() == b"text"


def test_a_deleted_key_is_gone_and_a_missing_one_no_error(store: FolderStore) -> None:
    store.mset([("a/b", b"1"), ("a/c", b"2")])
    store.mdelete(["a/b", "a/none", "none/b"])
    assert list(store.yield_keys()) == ["a/c"]


def test_keys_are_listed_in_order_below_any_prefix(store: FolderStore) -> None:
    store.mset([(key, b"") for key in ("reply/t1/b", "reply/t1/a", "reply/t2/a", "blob/x", "top")])
    assert list(store.yield_keys()) == ["blob/x", "reply/t1/a", "reply/t1/b", "reply/t2/a", "top"]
    assert list(store.yield_keys(prefix="reply/t1/")) == ["reply/t1/a", "reply/t1/b"]
    assert list(store.yield_keys(prefix="reply/t")) == ["reply/t1/a", "reply/t1/b", "reply/t2/a"]
    assert list(store.yield_keys(prefix="none/")) == []


def test_a_prefix_cannot_list_what_is_outside(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    store.mset([("a", b"")])
    assert list(store.yield_keys(prefix="../")) == []


@pytest.mark.parametrize(
    "key", ["", "..", "../a", "a/../b", "a/./b", "/a", "a/", "a//b", "a b", "a\0", "a\n", "é", "a~b", "x" * 201]
)
def test_a_key_that_could_leave_the_folder_or_name_no_file_is_refused(store: FolderStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a key of a FolderStore"):
        store.mset([(key, b"")])
    with pytest.raises(ValueError, match="not a key of a FolderStore"):
        store.mget([key])


@pytest.mark.parametrize("key", ["...", ".hidden", "a..b", "-", "A_b-c.d/0"])
def test_dots_within_a_name_are_allowed(store: FolderStore, key: str) -> None:
    store.mset([(key, b"1")])
    assert list(store.yield_keys()) == [key]


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c")])
def test_a_key_is_not_a_value_and_a_folder_at_once(store: FolderStore, first: str, second: str) -> None:
    store.mset([(first, b"1")])
    with pytest.raises(ValueError, match="cannot be a value and the folder of other keys"):
        store.mset([(second, b"2")])
    assert store.mget([first, second]) == [b"1", None]
    assert list(store.yield_keys()) == [first]


def test_what_was_cut_off_while_it_was_written_is_no_value(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.mset([("a", b"old")])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        store.mset([("a", b"new")])
    monkeypatch.undo()
    assert store.mget(["a"]) == [b"old"]
    assert [file.name for file in store.root.iterdir()] == ["a"]


def test_what_a_killed_process_left_half_written_is_not_listed(store: FolderStore) -> None:
    store.mset([("a", b"")])
    store.path("a").with_name("b~0123").write_bytes(b"ha")
    assert list(store.yield_keys()) == ["a"]


def test_only_the_owner_can_read_it(store: FolderStore) -> None:
    store.mset([("blob/a", b"")])
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path("blob/a").stat().st_mode) == 0o600


def test_reading_makes_no_folder(store: FolderStore) -> None:
    assert store.mget(["a"]) == [None]
    assert list(store.yield_keys()) == []
    assert not store.root.exists()


async def test_it_works_asynchronously(store: FolderStore) -> None:
    await store.amset([("a/b", b"1")])
    assert await store.amget(["a/b"]) == [b"1"]
    assert [key async for key in store.ayield_keys(prefix="a")] == ["a/b"]
    await store.amdelete(["a/b"])
    assert await store.amget(["a/b"]) == [None]


def test_the_default_store_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_GRAPH_HOME", str(tmp_path / "mine"))
    assert default_store().root == tmp_path / "mine"
    assert default_store() is default_store()


def test_the_default_store_is_else_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_GRAPH_HOME", "")
    assert default_store().root == Path(platformdirs.user_cache_dir("rlm-graph"))
