"""What a message holds: its text, the texts that are attached to it, and what is no text."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from rlm_graph.files import Unreadable, text_of


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a message.

    Attributes:
        text: Its text; None where it has none.
        name: What an attached file is called, or its kind where it is no text; None for what is simply said.
    """

    text: str | None
    name: str | None = None


def parts_of(message: BaseMessage) -> list[Part]:
    """The parts of a message, in their order: text blocks, text files in any of LangChain's forms, and all else.

    Text files are `{"type": "text-plain", "text": …}`, or any block of `file`, `text-plain` or `document` that holds a
    text in base64; a block that only names a file elsewhere holds none.
    """
    if isinstance(message.content, str):
        return [Part(message.content)]
    return list(_parts(message.content))


def _parts(blocks: list[str | dict[str, Any]]) -> Iterator[Part]:
    for block in blocks:
        if isinstance(block, str):
            yield Part(block)
        elif block.get("type") == "text":
            yield Part(str(block.get("text") or ""))
        elif block.get("type") not in ("tool_use", "tool_call", "thinking", "reasoning"):
            # Calls are told by `tool_calls`, and what a model thought is no part of what was said.
            yield _attached(block)


def _attached(block: dict[str, Any]) -> Part:
    if isinstance(block.get("text"), str):
        return Part(block["text"], _name(block))
    try:
        [known] = HumanMessage([block]).content_blocks
    except Exception:  # LangChain knows no such block
        known = {"type": "non_standard", "value": block}
    told: dict[str, Any] = dict(known)
    if isinstance(told.get("text"), str):
        return Part(told["text"], _name(told))
    return Part(_decoded(told), _name(told))


def _decoded(block: dict[str, Any]) -> str | None:
    """The text of a file's base64, whatever its type is said to be; None where it is no text."""
    data = block.get("base64")
    if block.get("type") not in ("file", "text-plain") or not isinstance(data, str):
        return None
    try:
        content = base64.b64decode(data, validate=True)
        return None if content.startswith(b"%PDF-") else text_of(content)
    except (binascii.Error, Unreadable):
        return None


def _name(block: dict[str, Any]) -> str:
    for place in (block, block.get("extras") or {}):
        for key in ("filename", "name", "title"):
            if isinstance(place.get(key), str) and place[key]:
                return str(place[key])
    kind = block.get("type")
    return str((block.get("value") or {}).get("type", kind) if kind == "non_standard" else kind)
