"""Reading what a model names, below folders that its user allowed, and nothing else.

A path is walked part by part, each opened relative to the folder before it and never through a link, and what is read
is what was opened: nothing that is moved or linked meanwhile leads outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from rlm_graph.describe import plain
from rlm_graph.errors import ContextError
from rlm_graph.files import Unreadable, clutter, left_out, text_of, why

MOST_BYTES = 200_000_000
"""Bytes that are read for one question; a larger text is taken in beforehand, with `hold()`."""

_DEEPEST = 64
"""Folders below one another that are walked; each is open meanwhile."""

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Found:
    """What stood there: a text, or the texts of a folder by their relative paths, and what of it was no text."""

    context: str | dict[str, str]
    left_out: list[str] = field(default_factory=list)


def allowed(roots: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> tuple[Path, ...]:
    """The folders below which may be read: one, or several.

    Raises:
        ContextError: One of them is no folder.
    """
    if isinstance(roots, str | os.PathLike):
        given: Sequence[str | os.PathLike[str]] = [roots]
    else:
        given = roots
    found = []
    for root in given:
        path = Path(root).expanduser().absolute()
        if not path.is_dir():
            raise ContextError(f"{path} is no folder, and below nothing else can be read")
        found.append(path)
    return tuple(found)


def read_beneath(roots: Sequence[Path], named: str) -> Found:
    """Reads a file, or the texts of a folder, below one of the roots.

    Args:
        roots: What `allowed` gave. A relative path is looked for in each, in order.
        named: A path, as a model writes it. Links are not followed, wherever they lead.

    Raises:
        ContextError: There is no such file or folder below them, it is no text, or it is too large.
    """
    if "\0" in named or not named.isprintable():
        raise ContextError(f"{plain(named)!r:.200} is no path")
    trouble = "is not below an allowed folder"
    for root, parts in _places(roots, PurePath(named)):
        try:
            with _opened(root, parts) as descriptor:
                return _read(descriptor, named)
        except OSError as error:
            trouble = _why(error)
    raise ContextError(f"{plain(named)!r:.200} {trouble}")


def _places(roots: Sequence[Path], path: PurePath) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Below which roots a path may lie, and its parts from there. One that goes up lies below none."""
    if ".." in path.parts:
        return
    for root in roots:
        if not path.is_absolute():
            yield root, path.parts
        elif path.is_relative_to(root):
            yield root, path.relative_to(root).parts


@contextmanager
def _opened(root: Path, parts: Sequence[str]) -> Iterator[int]:
    # The root itself is the user's own choice: it may be, or lie behind, a link.
    descriptor = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for part in parts:
            deeper = os.open(part, _FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = deeper
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int, named: str) -> Found:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        return _Folder(named).read(descriptor)
    try:
        return Found(text_of(_content(descriptor, MOST_BYTES)))
    except Unreadable as error:
        raise ContextError(f"{plain(named)!r:.200} cannot be read as a text: {error}") from error


def _content(descriptor: int, room: int) -> bytes:
    """The bytes of an open file.

    Raises:
        Unreadable: It is no regular file.
        ContextError: It has more bytes than there is room for.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Unreadable("not a regular file")
    with open(os.dup(descriptor), "rb") as file:  # noqa: PTH123 - a descriptor has no path, and that is the point
        content = file.read(room + 1)
    if len(content) > room:
        raise ContextError(f"more than {MOST_BYTES:,} bytes to read for one question: name a part of it")
    return content


class _Folder:
    """The texts of a folder and all below it, as far as they have been read."""

    def __init__(self, named: str) -> None:
        self.named = named
        self.texts: dict[str, str] = {}
        self.skipped: list[tuple[str, str]] = []
        self.room = MOST_BYTES

    def read(self, descriptor: int) -> Found:
        self._walk(descriptor, "", 0)
        missing = [plain(line) for line in left_out(self.skipped, 0, ())]
        if not self.texts:
            raise ContextError(f"{plain(self.named)!r:.200} has no readable text file ({'; '.join(missing[:5])})")
        return Found(self.texts, missing)

    def _walk(self, folder: int, prefix: str, depth: int) -> None:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            name = prefix + entry.name
            if reason := clutter(entry):
                self.skipped.append((name, reason))
                continue
            try:
                descriptor = os.open(entry.name, _FLAGS, dir_fd=folder)
            except OSError as error:
                self.skipped.append((name, _why(error)))
                continue
            try:
                self._take(descriptor, name, depth)
            except Unreadable as error:
                self.skipped.append((name, str(error)))
            finally:
                os.close(descriptor)

    def _take(self, descriptor: int, name: str, depth: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            content = _content(descriptor, self.room)
            self.room -= len(content)
            self.texts[plain(name)] = text_of(content)
        elif depth == _DEEPEST:
            self.skipped.append((name, f"more than {_DEEPEST} folders deep"))
        else:
            self._walk(descriptor, f"{name}/", depth + 1)


def _why(error: OSError) -> str:
    # What Linux and macOS say where O_NOFOLLOW meets a link.
    return "is a link, and links are not followed" if error.errno == errno.ELOOP else why(error)
