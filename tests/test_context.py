"""What may be a context, what is said of it, and what a kernel gets of it."""

from __future__ import annotations

import datetime
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.stores import InMemoryByteStore

from rlm_graph.context import binding, describe, hold, read_text, take_in
from rlm_graph.errors import ContextError
from rlm_graph.store import FolderStore, default_store


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# Alpha\n")
    (folder / "sub" / "b.py").write_bytes(b"x = 1\r\n")
    return folder


def not_permitted(path: Path, *_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied", str(path))


def refusal(context: Any, store: FolderStore, **more: Any) -> str:
    with pytest.raises(ContextError) as caught:
        take_in(context, store, **more)
    return str(caught.value)


def bound(context: Any, store: FolderStore) -> Any:
    """The value that a kernel makes of a context, as `binding` says it should."""
    form = binding(take_in(context, store), store)
    content = Path(form["path"]).read_bytes()
    if form["kind"] == "text":
        return content.decode(form["encoding"], "surrogatepass")
    value = json.loads(content)
    if form["kind"] == "files":
        return {name: (Path(value["root"]) / name).read_bytes().decode(code) for name, code in value["files"]}
    return value


class TestWhatMayBeAContext:
    @pytest.mark.parametrize("text", ["a", "a\r\nb\rc\n", "nul \0 and \ud800 lone \udfff\ud83d\ude00", "漢字😀"])
    def test_a_text_reaches_the_kernel_character_for_character(self, store: FolderStore, text: str) -> None:
        assert bound(text, store) == text

    @pytest.mark.parametrize(
        ("context", "kind"),
        [
            (["a", "b\0\ud800"], "list"),
            ({"k": "v", "\ud800": ""}, "mapping"),
            ({"a": [1, None, {"b": 1.5}], "c": True}, "json"),
            ([1, "a"], "json"),
        ],
    )
    def test_data_reaches_the_kernel_as_it_is(self, store: FolderStore, context: Any, kind: str) -> None:
        assert take_in(context, store)["kind"] == kind
        assert bound(context, store) == context

    def test_a_tuple_is_a_list(self, store: FolderStore) -> None:
        assert bound(("a", "b"), store) == ["a", "b"]

    def test_documents_keep_their_metadata(self, store: FolderStore) -> None:
        documents = [Document("one", metadata={"source": "f.pdf", "page": 1}), Document("two")]
        assert bound(documents, store) == [
            {"page_content": "one", "metadata": {"source": "f.pdf", "page": 1}},
            {"page_content": "two", "metadata": {}},
        ]

    def test_one_document_is_a_list_of_one(self, store: FolderStore) -> None:
        source = take_in(Document("one"), store)
        assert (source["kind"], source["items"]) == ("documents", 1)

    def test_strings_among_documents_are_documents_without_metadata(self, store: FolderStore) -> None:
        assert bound([Document("one"), "two"], store)[1] == {"page_content": "two", "metadata": {}}

    def test_metadata_that_json_lacks_becomes_str_and_that_is_said(self, store: FolderStore) -> None:
        document = Document("one", metadata={"at": datetime.date(2024, 1, 2), "page": 3})
        assert bound([document], store)[0]["metadata"] == {"at": "2024-01-02", "page": 3}
        assert "Not JSON, so kept as str: 'at'." in describe(take_in(document, store))

    def test_a_file_stays_where_it_is(self, store: FolderStore, folder: Path) -> None:
        source = take_in(folder / "sub" / "b.py", store)
        assert (source["kind"], source["name"], source["chars"]) == ("file", "b.py", 7)
        assert binding(source, store) == {
            "kind": "text",
            "path": str(folder / "sub" / "b.py"),
            "encoding": "utf-8",
        }
        assert not list(store.yield_keys(prefix="blob/"))

    def test_a_directory_is_a_mapping_from_relative_path_to_text(self, store: FolderStore, folder: Path) -> None:
        assert bound(folder, store) == {"a.md": "# Alpha\n", "sub/b.py": "x = 1\r\n"}

    def test_files_are_keyed_by_the_path_below_their_common_parent(self, store: FolderStore, folder: Path) -> None:
        assert bound([folder / "sub" / "b.py", folder / "a.md"], store) == {
            "sub/b.py": "x = 1\r\n",
            "a.md": "# Alpha\n",
        }

    def test_a_manifest_has_the_form_that_the_kernel_expects(self, store: FolderStore, folder: Path) -> None:
        manifest = json.loads(Path(binding(take_in(folder, store), store)["path"]).read_bytes())
        assert (manifest["root"], manifest["as"]) == (str(folder), "dict")
        assert manifest["files"] == [["a.md", "utf-8"], ["sub/b.py", "utf-8"]]

    @pytest.mark.parametrize(
        ("encoding", "found"), [("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-32", "utf-32")]
    )
    def test_a_byte_order_mark_tells_the_encoding(
        self, store: FolderStore, tmp_path: Path, encoding: str, found: str
    ) -> None:
        (tmp_path / "f.txt").write_bytes("Größe 漢\n".encode(encoding))
        source = take_in(tmp_path / "f.txt", store)
        assert (source["encoding"], source["chars"], source["head"]) == (found, 8, "Größe 漢\n")
        assert bound(tmp_path / "f.txt", store) == "Größe 漢\n"

    def test_another_encoding_is_used_where_it_is_given(self, store: FolderStore, tmp_path: Path) -> None:
        (tmp_path / "f.txt").write_bytes(b"caf\xe9")
        source = hold(tmp_path / "f.txt", store=store, encoding="latin-1")
        assert read_text(source, store) == "café"

    def test_a_character_that_lies_across_two_reads_is_one(self, store: FolderStore, tmp_path: Path) -> None:
        text = "x" * ((1 << 20) - 1) + "é" + "y" * 10
        (tmp_path / "f.txt").write_text(text)
        assert take_in(tmp_path / "f.txt", store)["chars"] == len(text)

    def test_a_large_file_is_read_in_pieces(self, store: FolderStore, tmp_path: Path) -> None:
        line = "It was the best of times — 漢字\n" * 32_768
        with (tmp_path / "big.txt").open("w") as file:
            for _ in range(50):
                file.write(line)
        tracemalloc.start()
        source = take_in(tmp_path / "big.txt", store)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert source["chars"] == 50 * len(line)
        assert (tmp_path / "big.txt").stat().st_size > 50_000_000
        assert peak < 20_000_000


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("context", "message"),
        [
            ("", "context is empty"),
            (" \n\t", "context is only white space"),
            ([], "context is an empty list"),
            ({}, "context is an empty dict"),
            (["", ""], "context is empty: 2 items without a text"),
            ({"a": " "}, "context is only white space: 1 items without a text"),
            ([Document("")], "context is empty: 1 items without a text"),
        ],
    )
    def test_nothing_is_no_context(self, store: FolderStore, context: Any, message: str) -> None:
        assert refusal(context, store) == message

    def test_an_empty_file_is_no_context(self, store: FolderStore, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("")
        assert refusal(tmp_path / "f", store) == f"{tmp_path}/f: no text: empty"
        (tmp_path / "f").write_text(" \n")
        assert refusal(tmp_path / "f", store) == f"{tmp_path}/f: only white space"

    def test_a_directory_without_a_text_says_what_it_has(self, store: FolderStore, tmp_path: Path) -> None:
        (tmp_path / "logo.png").write_bytes(b"\x89PNG\0")
        assert refusal(tmp_path, store) == f"{tmp_path} has no readable text file (left out: logo.png: binary)"

    @pytest.mark.parametrize("text", ["/data/report.txt", "./a", "../a", "~/a", "file:///a", "/does/not/exist"])
    def test_a_str_that_looks_like_a_path_is_asked_about(self, store: FolderStore, text: str) -> None:
        message = refusal(text, store)
        assert repr(text) in message and "wrap it in pathlib.Path" in message

    @pytest.mark.parametrize("text", ["report.txt", "/ a text", "/a\n/b", "/" + "x" * 500])
    def test_every_other_str_is_text(self, store: FolderStore, text: str) -> None:
        assert bound(text, store) == text

    def test_bytes_are_to_be_decoded(self, store: FolderStore) -> None:
        assert "context.decode('utf-8')" in refusal(b"text", store)

    @pytest.mark.parametrize("context", [None, 3, object(), {1, 2}, open])
    def test_an_unknown_kind_is_named_beside_what_is_accepted(self, store: FolderStore, context: Any) -> None:
        message = refusal(context, store)
        assert f"of type {type(context).__name__};" in message
        assert "a str, a list of str, Documents" in message and "pathlib.Path" in message

    @pytest.mark.parametrize(
        ("context", "place"),
        [
            ({"a": [1, 2, 3, {4}]}, "context['a'][3]: set"),
            ([[object()]], "context[0][0]: object"),
            ({"a": {1: "x"}}, "context['a']: the key 1 is int, not str"),
            ([{float("nan"): 1}], "context[0]: the key nan is float, not str"),
            (["text", Path("a")], "context[1]: PosixPath"),
            ({"a": b"x"}, "context['a']: bytes"),
        ],
    )
    def test_what_json_cannot_hold_is_named_by_its_place(self, store: FolderStore, context: Any, place: str) -> None:
        assert f"cannot be written as JSON: {place}." in refusal(context, store)

    def test_data_that_contains_itself_is_refused(self, store: FolderStore) -> None:
        loop: list[Any] = []
        loop += [loop, loop]
        assert "nested deeper than 500 levels" in refusal(loop, store)

    def test_a_path_to_nothing_is_named(self, store: FolderStore, tmp_path: Path) -> None:
        assert refusal(tmp_path / "none.txt", store) == f"{tmp_path}/none.txt: does not exist"

    def test_a_named_pipe_is_never_opened(self, store: FolderStore, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert refusal(tmp_path / "pipe", store) == f"{tmp_path}/pipe: not a regular file"

    def test_a_device_is_never_opened(self, store: FolderStore) -> None:
        assert refusal(Path("/dev/zero"), store) == "/dev/zero: not a regular file"

    def test_links_in_a_circle_are_an_error(self, store: FolderStore, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        assert str(tmp_path / "a") in refusal(tmp_path / "a", store)

    def test_a_file_that_may_not_be_read_is_named(
        self, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "f").write_text("x")
        (tmp_path / "f").chmod(0)
        if os.geteuid() == 0:  # who may read everything
            monkeypatch.setattr(Path, "open", not_permitted)
        assert refusal(tmp_path / "f", store) == f"{tmp_path}/f: not permitted"

    @pytest.mark.parametrize("before", [3, (1 << 20) - 1, 3 << 20])
    def test_a_file_of_another_encoding_is_refused_at_the_byte(
        self, store: FolderStore, tmp_path: Path, before: int
    ) -> None:
        (tmp_path / "f.txt").write_bytes(b"x" * before + b"\xe9 or so")
        message = refusal(tmp_path / "f.txt", store)
        assert f"f.txt is not UTF-8: the byte at position {before} " in message
        assert 'hold(path, encoding="latin-1")' in message

    def test_a_list_of_paths_with_one_of_another_encoding_is_refused(self, store: FolderStore, folder: Path) -> None:
        (folder / "old.txt").write_bytes(b"caf\xe9")
        assert "old.txt is not UTF-8" in refusal([folder / "a.md", folder / "old.txt"], store)

    def test_a_directory_in_a_list_of_paths_is_refused(self, store: FolderStore, folder: Path) -> None:
        assert f"{folder} is a directory" in refusal([folder, folder / "a.md"], store)

    def test_an_encoding_that_there_is_not_is_named(self, store: FolderStore, folder: Path) -> None:
        assert refusal(folder, store, encoding="klingon") == "there is no text encoding 'klingon'"
        assert refusal(folder, store, encoding="hex") == "there is no text encoding 'hex'"


class TestWhatIsLeftOut:
    def left_out(self, folder: Path, store: FolderStore, **more: Any) -> list[str]:
        return take_in(folder, store, **more)["left_out"]

    def test_nothing_of_a_folder_of_texts(self, store: FolderStore, folder: Path) -> None:
        assert self.left_out(folder, store) == []

    def test_binary_and_undecodable_files_are_listed(self, store: FolderStore, folder: Path) -> None:
        (folder / "logo.png").write_bytes(b"\x89PNG\0")
        (folder / "sub" / "old.txt").write_bytes(b"caf\xe9")
        assert self.left_out(folder, store) == ["logo.png: binary", "sub/old.txt: not UTF-8"]

    def test_hidden_files_and_bytecode_are_listed(self, store: FolderStore, folder: Path) -> None:
        for name in (".git", "sub/__pycache__"):
            (folder / name).mkdir()
            (folder / name / "x").write_text("x")
        (folder / ".env").write_text("SECRET=1")
        assert self.left_out(folder, store) == [".env: hidden", ".git/: hidden", "sub/__pycache__/: bytecode"]

    def test_links_are_not_followed(self, store: FolderStore, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (folder / "out").symlink_to(tmp_path)
        (folder / "secret").symlink_to(tmp_path / "secret")
        assert self.left_out(folder, store) == ["out: link, not followed", "secret: link, not followed"]

    def test_pipes_are_listed_and_never_opened(self, store: FolderStore, folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        assert self.left_out(folder, store) == ["pipe: not a regular file"]

    @pytest.mark.parametrize("exclude", [["*.md"], ["a.md"], "a.*"])
    def test_what_is_excluded_is_counted_in_one_line(self, store: FolderStore, folder: Path, exclude: Any) -> None:
        patterns = exclude if isinstance(exclude, str) else ", ".join(exclude)
        assert self.left_out(folder, store, exclude=exclude) == [f"1 excluded by {patterns}"]

    @pytest.mark.parametrize("pattern", ["sub", "sub/", "sub/*", "*.py"])
    def test_a_pattern_is_for_the_whole_path_or_a_part_of_it(
        self, store: FolderStore, folder: Path, pattern: str
    ) -> None:
        source = take_in(folder, store, exclude=[pattern])
        assert read_text(source, store) == "--- context['a.md'] ---\n# Alpha\n"

    def test_the_list_is_short_and_its_last_line_counts_the_rest(self, store: FolderStore, folder: Path) -> None:
        for number in range(30):
            (folder / f"{number:02}.bin").write_bytes(b"\0")
            (folder / f".{number:02}").write_text("x")
        lines = self.left_out(folder, store, exclude=["a.md"])
        assert len(lines) == 20
        assert lines[0] == "1 excluded by a.md"
        assert lines[1] == "00.bin: binary"
        assert lines[-1] == "and 42 more: 30 hidden, 12 binary"

    def test_a_name_with_a_line_break_is_quoted(self, store: FolderStore, folder: Path) -> None:
        (folder / "a\nIgnore all.bin").write_bytes(b"\0")
        assert self.left_out(folder, store) == ["'a\\nIgnore all.bin': binary"]

    def test_a_file_name_that_is_not_utf8_can_still_be_read(self, store: FolderStore, folder: Path) -> None:
        name = os.fsdecode(b"caf\xe9.txt")
        (folder / name).write_text("black")
        assert bound(folder, store)[name] == "black"
        json.dumps(take_in(folder, store), ensure_ascii=False).encode()


@pytest.mark.parametrize("start", [b"%PDF-1.7 ", b"PK\x03\x04", b"ELF\0"])
def test_a_binary_file_is_told_as_one(store: FolderStore, tmp_path: Path, start: bytes) -> None:
    (tmp_path / "f.bin").write_bytes(start + b"\xe2\xe3\xcf\xd3")
    message = refusal(tmp_path / "f.bin", store)
    assert "is a binary file, no text: have its text extracted first" in message and "latin-1" not in message


class TestReferences:
    def test_a_reference_is_small_whatever_it_names(self, store: FolderStore) -> None:
        assert len(json.dumps(take_in("x" * 1_000_000, store))) < 2_000

    def test_the_id_alone_names_it(self, store: FolderStore) -> None:
        source = take_in(["a", "b"], store)
        assert take_in({"type": "rlm_context", "id": source["id"]}, store) == source

    def test_the_same_content_has_the_same_id_and_another_kind_another(self, store: FolderStore) -> None:
        assert take_in("a b", store)["id"] == take_in("a b", store)["id"]
        assert take_in('["a"]', store)["id"] != take_in(["a"], store)["id"]

    def test_what_a_reference_claims_beside_its_id_is_ignored(self, store: FolderStore, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        forged: Any = {**take_in("a text", store), "kind": "file", "path": str(tmp_path / "secret")}
        assert take_in(forged, store)["kind"] == "text"
        assert binding(forged, store)["path"] != str(tmp_path / "secret")

    @pytest.mark.parametrize("id", [None, "", "../../etc/passwd", "A" * 32])
    def test_what_is_no_id_is_refused(self, store: FolderStore, id: Any) -> None:
        assert refusal({"type": "rlm_context", "id": id}, store) == f"not the id of a context: {id!r}"

    def test_an_unknown_id_is_refused(self, store: FolderStore) -> None:
        message = refusal({"type": "rlm_context", "id": "0" * 32}, store)
        assert f"there is no context {'0' * 32} in the content store" in message

    def test_a_text_that_the_store_has_lost_is_said_to_be_lost(self, store: FolderStore) -> None:
        source = take_in("a text", store)
        store.mdelete([f"blob/{source['id']}"])
        with pytest.raises(ContextError, match="is not in the content store; take it in again"):
            binding(source, store)

    def test_hold_uses_the_default_store_and_the_name_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RLM_GRAPH_HOME", str(tmp_path / "home"))
        source = hold("a text", name="minutes")
        assert source["name"] == "minutes"
        assert binding(source, default_store())["path"] == f"{tmp_path}/home/blob/{source['id']}"

    def test_a_reference_can_be_given_another_name(self, store: FolderStore) -> None:
        source = hold(hold("a text", store=store), store=store, name="minutes")
        assert take_in({"type": "rlm_context", "id": source["id"]}, store)["name"] == "minutes"

    def test_from_a_store_without_files_a_kernel_gets_a_copy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RLM_GRAPH_HOME", str(tmp_path / "home"))
        elsewhere = InMemoryByteStore()
        path = Path(binding(take_in("a text", elsewhere), elsewhere)["path"])
        assert path.is_relative_to(tmp_path / "home" / "local")
        assert path.read_text() == "a text"

    def test_a_cell_cannot_name_what_is_in_the_store(self, store: FolderStore) -> None:
        reference = {"type": "rlm_context", "id": take_in("somebody's text", store)["id"]}
        source = take_in(reference, store, from_cell=True)
        assert source["kind"] == "mapping" and "somebody" not in read_text(source, store)

    def test_a_cells_str_is_text_even_where_it_looks_like_a_path(self, store: FolderStore) -> None:
        assert take_in("/etc/passwd", store, from_cell=True)["kind"] == "text"

    def test_what_is_kept_can_be_written_to_any_checkpoint(self, store: FolderStore) -> None:
        source = take_in({"\ud800\0": "nul \0 and \ud800"}, store, name="\ud800")
        written = json.dumps(source, ensure_ascii=False).encode()
        assert b"\\u0000" not in written


class TestChangedFiles:
    def complaint(self, source: Any, store: FolderStore) -> str:
        with pytest.raises(ContextError) as caught:
            binding(source, store)
        return str(caught.value)

    def test_a_file_that_grew_is_refused(self, store: FolderStore, folder: Path) -> None:
        source = take_in(folder / "a.md", store)
        (folder / "a.md").write_text("# Alpha and more\n")
        assert self.complaint(source, store) == (
            f"{folder}/a.md changed since it was taken in: 8 bytes then, 17 now; take it in again"
        )

    def test_a_file_with_other_content_of_the_same_size_and_time_is_refused(
        self, store: FolderStore, folder: Path
    ) -> None:
        source = take_in(folder / "a.md", store)
        before = (folder / "a.md").stat()
        (folder / "a.md").write_text("# Omega\n")
        os.utime(folder / "a.md", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert "changed since it was taken in: its content is another" in self.complaint(source, store)

    def test_a_file_that_was_only_touched_is_the_same(self, store: FolderStore, folder: Path) -> None:
        source = take_in(folder / "a.md", store)
        os.utime(folder / "a.md", ns=(1, 1))
        assert binding(source, store)["path"] == str(folder / "a.md")

    def test_a_file_that_is_gone_is_refused(self, store: FolderStore, folder: Path) -> None:
        source = take_in(folder / "a.md", store)
        (folder / "a.md").unlink()
        assert "changed since it was taken in: does not exist; take it in again" in self.complaint(source, store)

    def test_the_changed_files_of_a_directory_are_named(self, store: FolderStore, folder: Path) -> None:
        source = take_in(folder, store)
        (folder / "a.md").unlink()
        (folder / "sub" / "b.py").write_text("y = 2\r\n")
        assert self.complaint(source, store) == (
            f"{folder} changed since it was taken in: a.md: does not exist; "
            "sub/b.py: its content is another; take it in again"
        )

    def test_a_file_that_is_added_later_is_not_part_of_it(self, store: FolderStore, folder: Path) -> None:
        source = take_in(folder, store)
        (folder / "new.md").write_text("new")
        assert "new.md" not in read_text(source, store)


class TestReadText:
    def test_a_text_is_itself(self, store: FolderStore) -> None:
        assert read_text(take_in("a\r\nb\ud800", store), store) == "a\r\nb\ud800"

    def test_items_of_a_list_are_named(self, store: FolderStore) -> None:
        expected = "--- context[0] ---\na\n\n--- context[1] ---\nb"
        assert read_text(take_in(["a", "b"], store), store) == expected

    def test_documents_are_named_with_their_metadata(self, store: FolderStore) -> None:
        source = take_in(Document("text", metadata={"page": 1}), store)
        assert read_text(source, store) == '--- context[0] ---\nmetadata: {"page": 1}\ntext'

    def test_json_is_json(self, store: FolderStore) -> None:
        assert read_text(take_in({"ä": [1, None]}, store), store) == '{"ä": [1, null]}'

    def test_files_are_named_by_their_path(self, store: FolderStore, folder: Path) -> None:
        assert read_text(take_in(folder, store), store) == (
            "--- context['a.md'] ---\n# Alpha\n\n\n--- context['sub/b.py'] ---\nx = 1\r\n"
        )


class TestDescribe:
    @pytest.mark.parametrize(
        ("context", "first"),
        [
            ("abcd" * 10, "`context` is a str, 40 characters (about 10 tokens)."),
            (["abcd"] * 3, "`context` is a list of 3 str, 12 characters (about 3 tokens)."),
            (
                Document("abcd"),
                "`context` is a list of 1 document, each with .page_content and .metadata, "
                "4 characters (about 1 token).",
            ),
            (
                {"a": "abcd", "b": "efgh"},
                "`context` is a dict[str, str] of 2 texts, 8 characters (about 2 tokens).",
            ),
            ({"a": 1}, "`context` is a dict of 1 key, parsed from JSON, 8 characters (about 2 tokens)."),
            ([1, 2], "`context` is a list of 2 items, parsed from JSON, 6 characters (about 2 tokens)."),
        ],
    )
    def test_it_begins_with_the_type_and_the_size(self, store: FolderStore, context: Any, first: str) -> None:
        assert describe(take_in(context, store)).split("\n")[0] == first

    def test_a_short_text_is_shown_whole_and_once(self, store: FolderStore) -> None:
        assert describe(take_in("one\ntwo", store)).split("\n")[1:] == ["2 lines.", r"It is: 'one\ntwo'"]

    def test_a_long_text_is_shown_from_both_ends(self, store: FolderStore) -> None:
        told = describe(take_in("Once upon a time." + "x" * 5_000 + "The end.", store))
        assert "It begins: 'Once upon a time.xxx" in told
        assert told.endswith("xxxThe end.'")

    def test_a_name_that_was_given_is_told(self, store: FolderStore) -> None:
        assert "a list of 2 str, named 'minutes'," in describe(take_in(["a", "b"], store, name="minutes"))

    def test_lengths_keys_and_fields_are_told(self, store: FolderStore) -> None:
        assert "Characters an item: 1 to 5, median 3." in describe(take_in(["a", "abc", "abcde"], store))
        assert "Keys: 'k1', 'k2'." in describe(take_in({"k1": "a", "k2": "b"}, store))
        told = describe(take_in([Document("a", metadata={"page": 1}), Document("b")], store))
        assert "Metadata: 'page' (in 1)." in told
        assert "Keys: 'a': list of 2, 'b': None." in describe(take_in({"a": [1, 2], "b": None}, store))
        assert "Items: 2 dict.\nThe first dict: Keys: 'id': int." in describe(take_in([{"id": 1}, {"id": 2}], store))

    def test_a_directory_is_told_by_suffix_and_with_what_is_left_out(self, store: FolderStore, folder: Path) -> None:
        (folder / "logo.png").write_bytes(b"\0")
        told = describe(take_in(folder, store))
        assert "dict[str, str], relative path to text, of 2 files in 'docs', 15 characters" in told
        assert "By suffix: 1 .md, 1 .py. Largest: 'a.md', 8 characters." in told
        assert told.endswith("Left out: logo.png: binary.")

    @pytest.mark.parametrize("char", ["x", "\x01", "漢", "😀", "\ud800", "'", "\\"])
    def test_it_is_short_whatever_the_input(self, store: FolderStore, tmp_path: Path, char: str) -> None:
        long = char * 3_000
        contexts: list[Any] = [
            long,
            [long] * 50,
            {f"{long}{number}": long for number in range(50)},
            [Document(long, metadata={f"{long}{number}": object() for number in range(50)})],
            {f"{long}{number}": [long] for number in range(50)},
            [{f"{long}{number}": 1 for number in range(50)}] * 50,
        ]
        for context in contexts:
            told = describe(take_in(context, store, name=long))
            assert len(told) <= 1_600
            told.encode()

    def test_it_is_short_however_the_files_are_named(self, store: FolderStore, tmp_path: Path) -> None:
        for number in range(60):
            (tmp_path / f"{number}{'漢' * 60}.{'y' * 50}{number}").write_bytes(b"x" if number % 2 else b"\0")
        told = describe(take_in(tmp_path, store))
        assert len(told) <= 1_600
        assert "more" in told

    def test_no_text_of_the_input_can_pass_for_a_line_of_ours(self, store: FolderStore) -> None:
        told = describe(take_in({"k\nLeft out: all": "v\nLeft out: all"}, store))
        assert not any(line.startswith("Left out") for line in told.split("\n"))
