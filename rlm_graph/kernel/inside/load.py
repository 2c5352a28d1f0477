"""Variables made from files: what the host gives to the kernel goes this way, never as a literal in a cell."""

from __future__ import annotations

import codecs
import json
import mmap
import os
from typing import Any


class Document:
    """A text and what is known of it."""

    __slots__ = ("metadata", "page_content")

    def __init__(self, page_content: str, metadata: dict[str, Any] | None = None) -> None:
        self.page_content = page_content
        self.metadata = metadata or {}

    def __repr__(self) -> str:
        shown = self.page_content if len(self.page_content) <= 60 else self.page_content[:60] + "…"
        return f"Document({shown!r}, {len(self.page_content):,} characters, metadata={self.metadata!r})"

    def __len__(self) -> int:
        return len(self.page_content)

    def __str__(self) -> str:
        return self.page_content


def load(binding: dict[str, Any], descriptor: int) -> Any:
    """Makes the value that a binding describes.

    Args:
        binding: What the host's `carry` says of the texts.
        descriptor: A file that holds them, one after another. It is closed.

    Raises:
        ValueError: the kind is unknown, or the file does not hold what the kind says.
        OSError: the file cannot be read.
    """
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return _made(binding, b"")
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return _made(binding, view)


def _made(binding: dict[str, Any], content: memoryview | bytes) -> Any:
    kind = binding["kind"]
    if kind == "files":
        return _files(binding, content)
    text = decoded(content, binding["encoding"])
    if kind == "text":
        return text
    if kind == "json":
        return json.loads(text)
    if kind == "documents":
        return [Document(row["page_content"], row.get("metadata")) for row in json.loads(text)]
    raise ValueError(f"unknown kind of binding: {kind!r}")


def _files(binding: dict[str, Any], content: memoryview | bytes) -> dict[str, str] | list[str]:
    texts, at = {}, 0
    for name, encoding, size in binding["files"]:
        try:
            texts[name] = decoded(content[at : at + size], encoding)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        at += size
    return texts if binding["as"] == "dict" else list(texts.values())


def decoded(content: memoryview | bytes, encoding: str) -> str:
    """Decodes in one go: no second copy of the bytes, and no translated newlines, so offsets hold."""
    # Surrogates that Python let somebody have are ours to keep; other codecs know no such thing.
    utf8 = codecs.lookup(encoding).name == "utf-8"
    return str(content, encoding, "surrogatepass" if utf8 else "strict")
