"""The content store: texts and replies as files, one a key.

Every `BaseStore[str, bytes]` of LangChain's will do as a content store. This one is the default, because a
kernel can read its files directly: a large text is then never copied.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import platformdirs
from langchain_core.stores import BaseStore

HOME_VARIABLE = "RLM_GRAPH_HOME"

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]{1,200}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
# Not in a key's alphabet: what is being written can never be taken for a value.
_UNFINISHED = "~"


class FolderStore(BaseStore[str, bytes]):
    """A key-value store in a folder: the key `blob/ab12` is the file `blob/ab12`.

    A value appears whole or not at all, to other processes too. It is not forced to the disk: what a power
    cut takes away was a cache. On a file system that ignores case, keys must not differ in case alone.

    Args:
        root: The folder. It is made, readable by its owner only, when something is first written.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def path(self, key: str) -> Path:
        """The file of a key, whether it exists or not.

        Raises:
            ValueError: If the key has other characters than `A-Z a-z 0-9 . _ - /`, an empty part, a part of
                more than 200 characters, or `.` or `..` as a part.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a key of a FolderStore: {key[:300]!r} (allowed: A-Z a-z 0-9 . _ - and / between)")
        return self.root / key

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of these keys, None where there is none."""
        return [_read(self.path(key)) for key in keys]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Writes each value, replacing what was there.

        Raises:
            ValueError: If a key is not allowed, or is both a value and the folder of other keys.
        """
        for key, value in key_value_pairs:
            file = self.path(key)
            try:
                self._write(file, value)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise ValueError(f"{key!r} cannot be a value and the folder of other keys") from error

    def mdelete(self, keys: Sequence[str]) -> None:
        """Deletes these keys; one that is not there is no error."""
        for key in keys:
            try:
                self.path(key).unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that start with `prefix`, in order. Only the folders that the prefix names are read."""
        prefix = prefix or ""
        folder = prefix.rpartition("/")[0]
        if folder and not _KEY.fullmatch(folder):
            return iter(())
        return (key for key in _keys(self.root, folder) if key.startswith(prefix))

    def _write(self, file: Path, value: bytes) -> None:
        unfinished = file.with_name(f"{file.name}{_UNFINISHED}{secrets.token_hex(8)}")
        try:
            descriptor = _create(unfinished)
        except FileNotFoundError:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _create(unfinished)
        try:
            try:
                _write_all(descriptor, value)
            finally:
                os.close(descriptor)
            unfinished.replace(file)
        except BaseException:
            unfinished.unlink()
            raise


def default_store() -> FolderStore:
    """The store that is used where none is given: `$RLM_GRAPH_HOME`, or else the user's cache folder."""
    home = os.environ.get(HOME_VARIABLE) or platformdirs.user_cache_dir("rlm-graph")
    return _store_at(home)


@lru_cache
def _store_at(folder: str) -> FolderStore:
    return FolderStore(folder)


def _create(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, value: bytes) -> None:
    # One write stops at 2 GB on Linux.
    rest = memoryview(value)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _keys(root: Path, folder: str) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        key = f"{folder}/{entry.name}" if folder else entry.name
        if not _KEY.fullmatch(key):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _keys(root, key)
        else:
            yield key
