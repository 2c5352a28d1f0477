"""Variables made from files: what the host gives to the kernel goes this way, never as a literal in a cell."""

from __future__ import annotations

import codecs
import json
import mmap
import os
from pathlib import Path
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


def load(binding: dict[str, Any]) -> Any:
    """Makes the value that a binding describes.

    Raises:
        ValueError: the kind is unknown, or the file does not hold what the kind says.
        OSError: a file cannot be read.
    """
    kind, path = binding["kind"], binding["path"]
    if kind == "text":
        return read_text(path, binding.get("encoding", "utf-8"))
    if kind == "json":
        return json.loads(read_text(path, "utf-8"))
    if kind == "documents":
        rows = json.loads(read_text(path, "utf-8"))
        return [Document(row["page_content"], row.get("metadata")) for row in rows]
    if kind == "files":
        return _read_files(json.loads(read_text(path, "utf-8")))
    raise ValueError(f"unknown kind of binding: {kind!r}")


def _read_files(manifest: dict[str, Any]) -> dict[str, str] | list[str]:
    texts = {}
    for name, encoding in manifest["files"]:
        try:
            texts[name] = read_text(Path(manifest["root"], name), encoding)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return texts if manifest["as"] == "dict" else list(texts.values())


def read_text(path: str | Path, encoding: str) -> str:
    """Decodes a file in one go: no second copy of its bytes, and no translated newlines, so offsets hold."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return ""
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            # Surrogates that Python let somebody have are ours to keep; other codecs know no such thing.
            utf8 = codecs.lookup(encoding).name == "utf-8"
            return str(mapped, encoding, "surrogatepass" if utf8 else "strict")
