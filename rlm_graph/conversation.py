"""Conversations as contexts: which part of one is the question, and which is what it is asked of."""

from __future__ import annotations

import json
from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

LONG_MESSAGE = 4_000
"""Characters above which a message is taken to hold a text rather than a question."""


def ends_of(text: str) -> str:
    """First and last paragraph, of at most 1 000 characters each, of a message that is itself what is too long."""
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    if len(paragraphs) < 2:
        return text.strip() if len(text.strip()) <= 2_000 else f"{text.strip()[:1_000]}\n…\n{text.strip()[-1_000:]}"
    return f"{paragraphs[0][:1_000]}\n…\n{paragraphs[-1][-1_000:]}"


def as_texts(messages: Sequence[BaseMessage], *, first: int = 1) -> dict[str, str]:
    """A conversation as texts by who said them: `{"1 human": …, "2 ai": …, "3 tool search": …}`.

    Args:
        messages: The messages. What is no text in them is left out.
        first: The number of the first.
    """
    return {f"{number} {_speaker(message)}": said(message) for number, message in enumerate(messages, first)}


def said(message: BaseMessage) -> str:
    """What a message says, the calls in it included."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    lines = [f"(calls {call['name']} with {json.dumps(call['args'], ensure_ascii=False)})" for call in calls]
    return "\n".join(filter(None, [message.text, *lines]))


def _speaker(message: BaseMessage) -> str:
    return f"tool {message.name}" if isinstance(message, ToolMessage) and message.name else message.type
