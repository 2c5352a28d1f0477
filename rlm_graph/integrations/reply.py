"""Replies of models and of RLMs as a chat model's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

_PIECES = 1_000
"""How many pieces an answer is streamed in, at most."""


def ai(message: Any) -> AIMessage:
    """What a chat model returns, as what it is."""
    assert isinstance(message, AIMessage)
    return message


def said(out: dict[str, Any], stop: list[str] | None) -> AIMessage:
    """The RLM's answer as a chat model's message."""
    said: AIMessage = out["messages"][-1]
    more = {key: out[key] for key in ("citations", "warnings") if out.get(key)}
    text = re.split("|".join(map(re.escape, stop)), said.text, maxsplit=1)[0] if stop else said.text
    return AIMessage(text, usage_metadata=said.usage_metadata, response_metadata={**said.response_metadata, **more})


def unnamed(message: Any, read: UsageMetadata | None = None) -> Any:
    """A message of the inner model's as ours: without its name, under which callbacks have counted it already."""
    metadata = {key: value for key, value in message.response_metadata.items() if key != "model_name"}
    usage = add_usage(message.usage_metadata, read) if read else message.usage_metadata
    return message.model_copy(update={"response_metadata": metadata, "usage_metadata": usage, "id": None})


def result(message: AIMessage) -> ChatResult:
    """A message as LangChain wants it from a chat model."""
    return ChatResult(generations=[ChatGeneration(message=message)])


def first(read: UsageMetadata | None) -> Iterator[ChatGenerationChunk]:
    """What reading has cost, before the reply that it was read for."""
    if read is not None:
        yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=read))


def in_pieces(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """An answer word by word, or where it is very long in larger pieces."""
    words = re.findall(r"\S+\s*|\s+", message.text)
    step = max(1, -(-len(words) // _PIECES))
    for at in range(0, len(words), step):
        yield ChatGenerationChunk(message=AIMessageChunk(content="".join(words[at : at + step])))
    last = AIMessageChunk(
        content="",
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last)
