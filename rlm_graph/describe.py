"""What the model is told of a context: its type in Python's terms, its sizes and shape, how it begins and
ends.

All in at most 1 600 characters, some 350 tokens, whatever the context. Texts from the input are shown as
Python literals, so that none can pass for a line of ours.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from rlm_graph.state import Source

_HEAD, _TAIL, _ABOUT, _LEFT_OUT, _NAME = 320, 160, 420, 280, 80
"""Room in a description, in characters; one of U+2E80 and above takes four, as it is a token of its own."""


_UNSTORABLE = re.compile("[\ud800-\udfff\0]")


def describe(source: Source) -> str:
    """Describes a context to a model, in at most 1 600 characters.

    Args:
        source: As `hold` or `take_in` returned it.
    """
    size = f"{counted(source['chars'], 'character')} (about {counted(source['tokens'], 'token')})"
    lines = [f"`context` is {_type(source)}, {size}."]
    if source.get("about"):
        lines.append(_clipped(source["about"], _ABOUT))
    first, last = ("It", "It") if _is_one_text(source) else ("The first", "The last")
    if source["tail"]:
        lines.append(f"{first} begins: {_literal(source['head'], _HEAD)}")
        lines.append(f"{last} ends: {_literal(source['tail'], _TAIL, end=True)}")
    elif source["head"]:
        lines.append(f"{first} {'is' if _is_one_text(source) else 'begins'}: {_literal(source['head'], _HEAD)}")
    if source.get("left_out"):
        lines.append(_left_out(source["left_out"]))
    return "\n".join(lines)


def shape_of_text(lines: int) -> str:
    """How many lines a text has."""
    return f"{counted(lines, 'line')}." if lines > 1 else ""


def shape_of_texts(texts: Sequence[str]) -> str:
    """The lengths of the items."""
    lengths = [len(text) for text in texts]
    if len(lengths) == 1:
        return ""
    median = statistics.median_low(lengths)
    return f"Characters an item: {min(lengths):,} to {max(lengths):,}, median {median:,}."


def shape_of_documents(texts: Sequence[str], metadata: Sequence[Mapping[str, Any]], turned: Iterable[str]) -> str:
    """The lengths of the documents and the fields of their metadata; `turned` are those made strings."""
    fields = Counter(field for one in metadata for field in one)
    shown = [
        f"{_field(name)}{'' if count == len(metadata) else f' (in {count:,})'}"
        for name, count in fields.most_common(12)
    ]
    more = f" and {len(fields) - 12:,} more" if len(fields) > 12 else ""
    lines = [shape_of_texts(texts), f"Metadata: {', '.join(shown)}{more}." if shown else "No metadata."]
    if names := sorted(turned):
        lines.append(f"Not JSON, so kept as str: {', '.join(_field(name) for name in names[:12])}.")
    return "\n".join(line for line in lines if line)


def shape_of_mapping(mapping: Mapping[str, str]) -> str:
    """The lengths of the texts, and the first keys."""
    keys = ", ".join(_field(key) for key in islice(mapping, 8))
    more = f" and {len(mapping) - 8:,} more" if len(mapping) > 8 else ""
    return "\n".join(line for line in (shape_of_texts(list(mapping.values())), f"Keys: {keys}{more}.") if line)


def shape_of_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """The keys with their types, or the types of the items."""
    if isinstance(value, Mapping):
        shown = [f"{_field(key)}: {_kind(item)}" for key, item in islice(value.items(), 12)]
        more = f" and {len(value) - 12:,} more" if len(value) > 12 else ""
        return f"Keys: {', '.join(shown)}{more}."
    kinds = Counter(type(item).__name__ for item in value)
    text = "Items: " + ", ".join(f"{count:,} {name}" for name, count in kinds.most_common(8)) + "."
    first = next((item for item in value if isinstance(item, Mapping)), None)
    return f"{text}\nThe first dict: {shape_of_json(first)}" if first else text


def shape_of_files(names: Sequence[str], chars: Sequence[int]) -> str:
    """The files by suffix, the largest, and the first names."""
    suffixes = Counter(PurePosixPath(name).suffix or "no suffix" for name in names)
    shown = ", ".join(
        f"{count:,} {suffix if len(suffix) < 20 and suffix.isprintable() else _literal(suffix, 20)}"
        for suffix, count in suffixes.most_common(6)
    )
    more = f", {len(suffixes) - 6:,} other kinds" if len(suffixes) > 6 else ""
    size, largest = max(zip(chars, names, strict=True))
    first = ", ".join(_field(name) for name in names[:4])
    rest = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return f"By suffix: {shown}{more}. Largest: {_field(largest)}, {size:,} characters.\nKeys: {first}{rest}."


def plain(text: str) -> str:
    """The text for a checkpoint or a message: savers, databases and HTTP refuse lone surrogates and NUL."""
    return _UNSTORABLE.sub("\ufffd", text)


def _type(source: Source) -> str:
    kind, items = source["kind"], source["items"]
    name = _literal(source["name"], _NAME)
    called = f", named {name}" if source["name"] != kind else ""
    if kind == "text":
        return f"a str{called}"
    if kind == "file":
        return f"a str, the file {name}"
    if kind == "list":
        return f"a list of {items:,} str{called}"
    if kind == "documents":
        return f"a list of {counted(items, 'document')}{called}, each with .page_content and .metadata"
    if kind == "mapping":
        return f"a dict[str, str] of {counted(items, 'text')}{called}"
    if kind == "json":
        what = ("dict", "key") if source["head"].startswith("{") else ("list", "item")
        return f"a {what[0]} of {counted(items, what[1])}{called}, parsed from JSON"
    return f"a dict[str, str], relative path to text, of {counted(items, 'file')} in {name}"


def _is_one_text(source: Source) -> bool:
    return source["kind"] in ("text", "file", "json")


def _left_out(lines: Sequence[str]) -> str:
    shown: list[str] = []
    room = _LEFT_OUT
    for line in lines:
        short = _clipped(line, 110)
        room -= _width(short) + 2
        if room < 0:
            break
        shown.append(short)
    hidden = len(lines) - len(shown)
    more = f"; and {counted(hidden, 'more line')} like these" if hidden else ""
    return f"Left out: {'; '.join(shown)}{more}."


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"str of {counted(len(value), 'character')}"
    if isinstance(value, list | tuple):
        return f"list of {len(value):,}"
    if isinstance(value, Mapping):
        return f"dict of {len(value):,}"
    return "None" if value is None else type(value).__name__


def counted(number: int, noun: str) -> str:
    """So many of something, in words: `1 call`, `1,200 calls`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _field(name: str) -> str:
    return _literal(name, 60)


def _literal(text: str, room: int, *, end: bool = False) -> str:
    """The text as a Python literal of at most this width: its start or, with `end`, its end, cut at a …"""
    shown = text[-room:] if end else text[:room]
    while _width(repr(shown)) > room - 1:
        keep = len(shown) * 9 // 10
        shown = shown[-keep:] if end and keep else shown[:keep]
    literal = repr(shown)
    if len(shown) == len(text):
        return literal
    return f"…{literal}" if end else f"{literal}…"


def _clipped(text: str, room: int) -> str:
    text = plain(text)
    if _width(text) <= room:
        return text
    text = text[:room]
    while _width(text) > room - 1:
        text = text[: len(text) * 9 // 10]
    return f"{text}…"


def _width(text: str) -> int:
    return len(text) if text.isascii() else sum(4 if char >= "\u2e80" else 1 for char in text)
