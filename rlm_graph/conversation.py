"""Conversations as contexts: which part of one is the question, and which is what it is asked of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from rlm_graph.attachments import Part, parts_of
from rlm_graph.errors import ContextError
from rlm_graph.tokens import count_tokens

NO_QUESTION = "no question: the last human message must say one, beside what is attached to it"

LONG_MESSAGE = 4_000
"""Characters above which a message is taken to hold a text rather than a question."""


@dataclass(frozen=True, slots=True)
class Apart:
    """A conversation, taken apart.

    Attributes:
        question: What is asked: the last human message, or its first and last paragraphs.
        context: What it is asked of: one text, or several by name.
        instructions: What the system messages say.
    """

    question: str
    context: str | dict[str, str]
    instructions: str


def tokens_of(messages: Sequence[BaseMessage]) -> int:
    """Tokens of all texts in a conversation, attached ones and calls included; pictures and the like count nothing."""
    return sum(count_tokens(text) for text in _texts(messages))


def is_long(messages: Sequence[BaseMessage], most: int) -> bool:
    """Whether a conversation has `most` tokens or more."""
    return sum(map(len, _texts(messages))) >= most and tokens_of(messages) >= most


def take_apart(messages: Sequence[BaseMessage]) -> Apart:
    """Takes a conversation apart into the question and what it is asked of.

    Raises:
        ContextError: No human message says anything, or something in the conversation is no text.
    """
    last = _last_human(messages)
    context: dict[str, str] = {}
    instructions = []
    question = ""
    for number, message in enumerate(messages, 1):
        parts = parts_of(message)
        _refuse_what_is_no_text(parts, number)
        label = f"{number} {_speaker(message)}"
        spoken = "\n".join(part.text or "" for part in parts if part.name is None)
        if isinstance(message, SystemMessage):
            instructions.append(spoken if len(spoken) <= LONG_MESSAGE else ends_of(spoken))
            if len(spoken) > LONG_MESSAGE:
                context[label] = spoken
        elif number - 1 == last:
            question, long = _question(parts)
            context |= {label if len(long) == 1 else f"{label}, part {n}": text for n, text in enumerate(long, 1)}
        elif text := "\n".join(filter(None, [spoken, *_calls(message)])):
            context[label] = text
        context |= _attached(parts, context)
    if not question:
        raise ContextError(NO_QUESTION)
    if not context:
        context = {"question": question}
    return Apart(
        question,
        next(iter(context.values())) if len(context) == 1 else context,
        "\n\n".join(filter(None, instructions)),
    )


def question_of(messages: Sequence[BaseMessage]) -> str:
    """What the last human message asks.

    Raises:
        ContextError: There is none, or it says nothing.
    """
    last = _last_human(messages)
    question = _question(parts_of(messages[last]))[0] if last is not None else ""
    if not question:
        raise ContextError(NO_QUESTION)
    return question


def _question(parts: Sequence[Part]) -> tuple[str, list[str]]:
    """What the last human message asks, and its long texts."""
    spoken = [part.text for part in parts if part.name is None and part.text]
    short = [text for text in spoken if len(text) <= LONG_MESSAGE]
    if sum(map(len, short)) > LONG_MESSAGE:
        whole = "\n".join(spoken)
        return ends_of(whole), [whole]
    long = [text for text in spoken if len(text) > LONG_MESSAGE]
    return "\n".join(short).strip() or ends_of("\n\n".join(long)), long


def _attached(parts: Sequence[Part], taken: dict[str, str]) -> dict[str, str]:
    """The attached texts by their names, each with a number where the name is taken."""
    found: dict[str, str] = {}
    for part in parts:
        if part.name is not None and part.text:
            name, n = part.name, 1
            while name in taken or name in found:
                name, n = f"{part.name} ({n + 1})", n + 1
            found[name] = part.text
    return found


def _refuse_what_is_no_text(parts: Sequence[Part], number: int) -> None:
    if strange := [part.name for part in parts if part.text is None]:
        raise ContextError(
            f"message {number} holds what is no text ({', '.join(map(str, strange))}): a conversation that is too long "
            "for one prompt is read as text. Leave it out, or turn it into text first"
        )


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
    """What a message says, what is attached as text and the calls in it included."""
    texts = [part.text for part in parts_of(message) if part.text]
    return "\n".join([*texts, *_calls(message)])


def where_to_cut(messages: Sequence[BaseMessage], most: int) -> int:
    """How many of the oldest messages have to go, so that the rest has fewer than `most` tokens.

    It goes in steps of half of it, so that the same messages are cut off turn after turn and a provider's prompt cache
    hits. A result is never parted from its call, and the last message always stays.
    """
    sizes = [count_tokens(said(message)) for message in messages]
    start = total = 0
    for end, size in enumerate(sizes):
        total += size
        while total >= most and start < end:
            moved = _next_start(messages, sizes, start, end, most // 2)
            total -= sum(sizes[start:moved])
            if moved == start:
                break
            start = moved
    return start


def _next_start(messages: Sequence[BaseMessage], sizes: Sequence[int], start: int, end: int, room: int) -> int:
    """The first message from which on at most `room` tokens are left, up to `end`."""
    at, total = start, sum(sizes[start : end + 1])
    while at < end and total > room:
        total -= sizes[at]
        at += 1
    while at > start and isinstance(messages[at], ToolMessage):
        at -= 1
    return at


def _texts(messages: Sequence[BaseMessage]) -> list[str]:
    return [said(message) for message in messages]


def _calls(message: BaseMessage) -> list[str]:
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return [f"(calls {call['name']} with {json.dumps(call['args'], ensure_ascii=False)})" for call in calls]


def _last_human(messages: Sequence[BaseMessage]) -> int | None:
    found = (at for at in range(len(messages) - 1, -1, -1) if isinstance(messages[at], HumanMessage))
    return next(found, None)


def _speaker(message: BaseMessage) -> str:
    return f"tool {message.name}" if isinstance(message, ToolMessage) and message.name else message.type
