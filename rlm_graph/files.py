"""Files as contexts: which of a folder are taken, what is in them, and whether they are still what they were.

A file is read once, in pieces, whatever its size. Links inside a folder are never followed: what they name is
either in the folder, and taken from there, or outside, where nobody asked to look.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import xxhash

from rlm_graph.errors import ContextError
from rlm_graph.tokens import Sample

HEAD = 500
TAIL = 300
"""Characters of a text that are kept for its description."""
MAX_LEFT_OUT = 20
"""Lines of `Source["left_out"]`."""

_PIECE = 1 << 20
# So little is hashed again faster than one could notice, and a clock that ticks slowly hides no change.
_ALWAYS_HASHED = 16_000_000
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY = (b"%PDF-", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff", b"\x1f\x8b")
"""How common files that are no texts begin."""
_CLUTTER = ("hidden", "bytecode", "link, not followed")


class Unreadable(Exception):
    """A file that cannot be a text.

    Args:
        reason: In a few words.
        at: The first byte that is not of the encoding.
    """

    def __init__(self, reason: str, at: int | None = None) -> None:
        super().__init__(reason)
        self.at = at


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file was: bytes, time of change (ns), xxh3 of its content (hex)."""

    size: int
    changed: int
    digest: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file found. `tail` is what follows `head`, so a short text has none."""

    encoding: str
    chars: int
    lines: int
    head: str
    tail: str
    blank: bool
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder, as relative paths, and what was left out: (relative path, reason)."""

    files: list[str]
    skipped: list[tuple[str, str]]
    excluded: int


def scan(path: Path, encoding: str, sample: Sample, *, binary: bool = True) -> Scan:
    """Reads a file once: hashes it, counts its characters, keeps its head and tail.

    Args:
        path: The file.
        encoding: "utf-8" means UTF-8, or UTF-16 and UTF-32 where a byte order mark says so.
        sample: Takes the text, for the number of tokens.
        binary: Whether a NUL byte near the start is no obstacle.

    Raises:
        Unreadable: If it is no regular file or no text of this encoding, or changes while it is read.
        OSError: If it cannot be read.
    """
    # Opening a named pipe may wait for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("not a regular file")
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        piece = file.read(_PIECE)
        encoding, mark = _recognise(piece, encoding)
        if not binary and not encoding.startswith(("utf-16", "utf-32")) and b"\0" in piece[:8192]:
            raise Unreadable("binary")
        decoder = codecs.getincrementaldecoder("utf-8" if mark else encoding)()
        digest = xxhash.xxh3_128()
        chars = lines = 0
        head = tail = ""
        blank = True
        at = mark
        while True:
            digest.update(piece)
            body = piece[mark:]
            text = _decoded(decoder, body, at, encoding, final=not piece)
            at += len(body)
            mark = 0
            if text:
                chars += len(text)
                lines += text.count("\n")
                sample.add(text)
                blank = blank and text.isspace()
                rest = max(HEAD - len(head), 0)
                head, text = head + text[:rest], text[rest:]
                tail = text[-TAIL:] if len(text) >= TAIL else (tail + text)[-TAIL:]
            if not piece:
                break
            piece = file.read(_PIECE)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Unreadable("changed while it was read")
    lines += chars > 0 and not (tail or head).endswith("\n")
    stamp = Stamp(after.st_size, after.st_mtime_ns, digest.hexdigest())
    return Scan(encoding, chars, lines, head, tail, blank, stamp)


def looks_binary(path: Path) -> bool:
    """Whether a file that is no text of its encoding is none of any: by what stands at its start."""
    with path.open("rb") as file:
        start = file.read(8192)
    return b"\0" in start or start.startswith(_BINARY)


def text_of(content: bytes) -> str:
    """The text that a whole file's bytes are: UTF-8, or UTF-16 and UTF-32 where a byte order mark says so.

    Raises:
        Unreadable: If they are no text.
    """
    encoding, mark = _recognise(content, "utf-8")
    if not encoding.startswith(("utf-16", "utf-32")) and b"\0" in content[:8192]:
        raise Unreadable("binary")
    decoder = codecs.getincrementaldecoder("utf-8" if mark else encoding)()
    return _decoded(decoder, content[mark:], mark, encoding, final=True)


def check_encoding(encoding: str) -> str:
    """The codec's own name for an encoding.

    Raises:
        ContextError: If Python has no such text encoding.
    """
    try:
        b"0".decode(encoding, "ignore")
        codecs.getincrementaldecoder(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise ContextError(f"there is no text encoding {encoding!r}") from error


def walk(root: Path, exclude: Sequence[str]) -> Listing:
    """Lists a folder and all below it, in order, without opening a file.

    Args:
        root: The folder.
        exclude: Patterns as for `fnmatch`, each against the path relative to `root` and against each part of
            it.

    Raises:
        OSError: If `root` itself cannot be listed.
    """
    files: list[str] = []
    skipped: list[tuple[str, str]] = []
    patterns = [pattern.rstrip("/") for pattern in exclude]
    excluded = 0
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            if not folder:
                raise
            skipped.append((folder, why(error)))
            continue
        for entry in entries:
            name = folder + entry.name
            if any(fnmatchcase(name, pattern) or fnmatchcase(entry.name, pattern) for pattern in patterns):
                excluded += 1
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            reason = clutter(entry)
            if reason:
                skipped.append((f"{name}/" if is_folder else name, reason))
            elif is_folder:
                folders.append(f"{name}/")
            else:
                files.append(name)
    return Listing(sorted(files), sorted(skipped), excluded)


def left_out(skipped: Sequence[tuple[str, str]], excluded: int, exclude: Sequence[str]) -> list[str]:
    """What was not taken in, one line each; at most `MAX_LEFT_OUT`, of which the last counts the rest."""
    lines = [f"{excluded:,} excluded by {', '.join(exclude)}"] if excluded else []
    # Unreadable files first: hidden ones and links nobody misses.
    ordered = sorted(skipped, key=lambda item: (item[1] in _CLUTTER, item[0]))
    room = MAX_LEFT_OUT - len(lines)
    shown = ordered if len(ordered) <= room else ordered[: room - 1]
    # A name with a line break in it could pass for a line of ours.
    lines += [f"{name if name.isprintable() else repr(name)}: {reason}" for name, reason in shown]
    rest = Counter(reason for _, reason in ordered[len(shown) :])
    if rest:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rest.most_common(4))
        lines.append(f"and {rest.total():,} more: {reasons}")
    return lines


def change(path: Path, stamp: Stamp, *, hashed: bool) -> str | None:
    """What has changed in a file, in a few words, or None.

    Args:
        path: The file.
        stamp: What it was.
        hashed: Whether its content is looked at even where size and time are the same.
    """
    try:
        now = path.stat()
    except OSError as error:
        return why(error)
    if now.st_size != stamp.size:
        return f"{stamp.size:,} bytes then, {now.st_size:,} now"
    if now.st_mtime_ns == stamp.changed and not hashed:
        return None
    try:
        same = _digest(path) == stamp.digest
    except OSError as error:
        return why(error)
    return None if same else "its content is another"


def is_always_hashed(size: int) -> bool:
    """Whether files of so many bytes together are read again to see whether they have changed."""
    return size <= _ALWAYS_HASHED


def why(error: OSError) -> str:
    """The reason of an error of the file system's, in our words."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "not permitted"
    return error.strerror or type(error).__name__


def _recognise(start: bytes, encoding: str) -> tuple[str, int]:
    """The encoding, and how many bytes of a UTF-8 mark come before the text."""
    if encoding != "utf-8":
        return encoding, 0
    for mark, name in _BOMS:
        if start.startswith(mark):
            return name, len(mark) if name == "utf-8-sig" else 0
    return encoding, 0


def _decoded(decoder: codecs.IncrementalDecoder, piece: bytes, at: int, encoding: str, *, final: bool) -> str:
    pending = decoder.getstate()[0]
    try:
        return decoder.decode(piece, final)
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        name = "UTF-8" if encoding.startswith("utf-8") else encoding
        raise Unreadable(f"not {name}", at - len(pending) + start) from error


def clutter(entry: os.DirEntry[str]) -> str | None:
    """Why an entry of a folder is none of its texts, whatever is in it; None where it may be one."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.name == "__pycache__":
        return "bytecode"
    if entry.is_symlink():
        return "link, not followed"
    return None


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
