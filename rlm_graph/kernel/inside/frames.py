"""The frames of the bridge: 4 bytes of length, then JSON `{"id", "op", "arg"}` in ASCII, at most `LIMIT` bytes.

A longer message goes as several `part` frames, one after another. Both sides use this module; neither trusts
the other, so whatever is not a frame raises `Malformed` and nothing is collected beyond `JOINED` bytes.
"""

from __future__ import annotations

# Bound here by name: a cell may overwrite entries of `builtins`, and the kernel's reader must outlive that.
from builtins import ValueError, bytes, dict, int, isinstance, len, list, range, str  # noqa: UP029
from collections.abc import Iterable, Iterator
from json import dumps, loads
from re import compile
from typing import Any

LIMIT = 4_000_000
JOINED = 256_000_000
# A value takes 32 bytes and more where JSON takes two: this bounds what a joined message unfolds to.
_MOST_VALUES = 20_000_000
_IN_QUOTES = compile(r'"(?:[^"\\]++|\\.)*+"')
# Half of the limit at most: inside a part every quote and backslash is escaped once more.
_SLICE = 1_900_000


class Malformed(ValueError):
    """The other side sent what is no frame."""


class TooLarge(ValueError):
    """A message would not fit, even in parts."""


def pack(number: int, op: str, arg: Any) -> Iterator[bytes]:
    """Writes one message as one frame, or as parts."""
    return _frames(number, f'{{"id":{number},"op":"{op}","arg":{dumps(arg)}}}')


def row(value: Any) -> str:
    """Writes one row for `pack_rows`.

    Raises:
        TooLarge: no message can carry it.
    """
    text = dumps(value)
    if len(text) > JOINED - 1000:
        raise TooLarge(_too_large(len(text)))
    return text


def pack_rows(op: str, rows: Iterable[str], unfinished: str | None = None) -> Iterator[bytes]:
    """Writes many rows as messages `op` with as few frames as they fit into; those before the last as `unfinished`."""
    texts: list[str] = []
    size = 0
    for text in rows:
        if texts and size + len(text) > LIMIT - 1000:
            yield from _rows_frames(unfinished or op, texts)
            texts, size = [], 0
        texts.append(text)
        size += len(text) + 1
    if texts:
        yield from _rows_frames(op, texts)


def _rows_frames(op: str, texts: list[str]) -> Iterator[bytes]:
    return _frames(0, f'{{"id":0,"op":"{op}","arg":[{",".join(texts)}]}}')


def _frames(number: int, text: str) -> Iterator[bytes]:
    if len(text) <= LIMIT:
        yield _frame(text)
        return
    if len(text) > JOINED:
        raise TooLarge(_too_large(len(text)))
    for start in range(0, len(text), _SLICE):
        last = start + _SLICE >= len(text)
        part = dumps([text[start : start + _SLICE], last])
        yield _frame(f'{{"id":{number},"op":"part","arg":{part}}}')


def _too_large(length: int) -> str:
    return f"{length:,} bytes at once are more than the {JOINED:,} that can go between kernel and host"


def _frame(text: str) -> bytes:
    return len(text).to_bytes(4, "big") + text.encode("ascii")


def frame_length(head: bytes) -> int:
    """Reads a frame's length off its first four bytes."""
    length = int.from_bytes(head, "big")
    if not 0 < length <= LIMIT:
        raise Malformed(f"a frame of {length:,} bytes")
    return length


class Joiner:
    """Turns the bodies of frames into messages, joining parts."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def feed(self, body: bytes) -> dict[str, Any] | None:
        """Takes one frame's body; gives a message, or None where parts are still to come."""
        message = _read(body)
        if message["op"] != "part":
            return message
        arg = message["arg"]
        if not (isinstance(arg, list) and len(arg) == 2 and isinstance(arg[0], str)):
            raise Malformed("a part without text")
        self._parts.append(arg[0])
        self._size += len(arg[0])
        if self._size > JOINED:
            raise Malformed(f"a message of more than {JOINED:,} bytes")
        if not arg[1]:
            return None
        text = "".join(self._parts)
        self._parts, self._size = [], 0
        if _has_too_many_values(text):
            raise Malformed(f"a message of more than {_MOST_VALUES:,} values")
        message = _read(text)
        if message["op"] == "part":
            raise Malformed("a part inside parts")
        return message


def _has_too_many_values(text: str) -> bool:
    if text.count("[") + text.count("{") + text.count('"') // 2 > _MOST_VALUES:
        return True
    # A long text may well have as many commas; only those outside of it part values.
    return text.count(",") > _MOST_VALUES and _IN_QUOTES.sub("", text).count(",") > _MOST_VALUES


def _read(body: bytes | str) -> dict[str, Any]:
    try:
        message = loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed("a frame that is no JSON") from error
    if not (
        isinstance(message, dict)
        and isinstance(message.get("id"), int)
        and isinstance(message.get("op"), str)
        and "arg" in message
    ):
        raise Malformed("a frame without id, op and arg")
    return message
