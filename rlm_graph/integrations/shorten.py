"""A conversation made short enough to be shown to a model, and what was taken out of it to be read by another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from rlm_graph.attachments import Part, parts_of
from rlm_graph.conversation import LONG_MESSAGE, as_texts, ends_of, question_of, where_to_cut
from rlm_graph.integrations import words


@dataclass(frozen=True, slots=True)
class Shortened:
    """A conversation without its long texts.

    Attributes:
        question: What to ask of what was taken out.
        context: What was taken out, by name.
        messages: The conversation, with a note in place of each.
        at: The message behind whose text the findings go; None where nothing could be taken out.
    """

    question: str
    context: dict[str, str]
    messages: list[BaseMessage]
    at: int | None

    def told(self, findings: str) -> list[BaseMessage]:
        """The conversation with what was found."""
        assert self.at is not None
        note = words.FINDINGS.format(question=self.question, findings=findings)
        message = self.messages[self.at]
        content: str | list[Any] = (
            f"{message.content}\n\n{note}"
            if isinstance(message.content, str)
            else [*message.content, {"type": "text", "text": note}]
        )
        messages = list(self.messages)
        messages[self.at] = message.model_copy(update={"content": content})
        return messages


def shorten(messages: Sequence[BaseMessage], most: int) -> Shortened:
    """Takes out each long text, and then the oldest messages, until fewer than `most` tokens are left.

    Calls, and what is no text, stay. So do the system messages, and what the human wants.

    Raises:
        ContextError: No human message says anything.
    """
    question = question_of(messages)
    context: dict[str, str] = {}
    shown: list[BaseMessage] = []
    at = None
    for number, message in enumerate(messages, 1):
        short, taken = _without_long(message, f"message {number}")
        if taken:
            context |= taken
            at = len(shown)
        shown.append(short)
    head = next((n for n, m in enumerate(shown) if not isinstance(m, SystemMessage)), len(shown))
    if cut := where_to_cut(shown[head:], most):
        older, newer = messages[head : head + cut], shown[head + cut :]
        context |= as_texts(older, first=head + 1)
        note = words.CUT.format(messages=cut)
        if not any(isinstance(message, HumanMessage) for message in newer):
            note = f"{note}\n\n{question}"
        shown = [*shown[:head], HumanMessage(note), *newer]
        at = head
    return Shortened(question, context, shown, at)


def _without_long(message: BaseMessage, label: str) -> tuple[BaseMessage, dict[str, str]]:
    """The message with a note for each of its long texts, and these by name."""
    if isinstance(message, AIMessage):
        return message, {}
    taken: dict[str, str] = {}

    def shown(part: Part) -> str | None:
        if part.text is None or (part.name is None and len(part.text) <= LONG_MESSAGE):
            return None
        name = f"{label}: {part.name}" if part.name else label
        if name in taken:
            name = f"{name} ({len(taken) + 1})"
        taken[name] = part.text
        note = words.TAKEN_OUT.format(chars=len(part.text), name=name)
        return note if part.name else f"{ends_of(part.text)}\n\n{note}"

    if isinstance(message.content, str):
        content: str | list[Any] = shown(Part(message.content)) or message.content
    else:
        content = []
        for block in message.content:
            told = next((text for part in parts_of(HumanMessage([block])) if (text := shown(part))), None)
            content.append({"type": "text", "text": told} if told else block)
    return (message.model_copy(update={"content": content}), taken) if taken else (message, {})
