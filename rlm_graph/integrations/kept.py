"""Long texts of a conversation, kept in the content store; what stands in their place, and how they come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.stores import BaseStore

from rlm_graph import context
from rlm_graph.conversation import as_texts, ends_of
from rlm_graph.integrations import words
from rlm_graph.state import Source
from rlm_graph.store import default_store
from rlm_graph.tokens import count_tokens

KEPT = "rlm_context"
"""Where a message says what of it is kept, in its `additional_kwargs`: `{"id": …, "blocks": […]}`. With `blocks`, the
text blocks that one stood for: `[position, all else that the block holds]`, each."""

M = TypeVar("M", bound=BaseMessage)


def kept_id(message: BaseMessage) -> str | None:
    """The id under which the message's text is kept, if it is."""
    kept = message.additional_kwargs.get(KEPT)
    return kept["id"] if isinstance(kept, dict) and isinstance(kept.get("id"), str) else None


def keep_long(message: M, above: int, store: BaseStore[str, bytes], tool: str) -> M | None:
    """The message with a description in place of its text, where that is long; else None.

    Args:
        message: Any message. What is no text in it stays.
        above: Tokens from which a text is long.
        store: Where the text is kept.
        tool: The name of the tool with which one asks about it.
    """
    text = message.text
    if kept_id(message) is not None or len(text) < above or count_tokens(text) < above:
        return None
    if isinstance(message.content, str):
        source = context.take_in(text, store, from_cell=True)
        return _with(message, _note(message, text, source, tool), {"id": source["id"]})
    blocks = [block if isinstance(block, dict) else {"type": "text", "text": block} for block in message.content]
    texts = [(at, block) for at, block in enumerate(blocks) if block.get("type") == "text"]
    source = context.take_in([block["text"] for _, block in texts], store, from_cell=True)
    stood = [[at, {key: value for key, value in block.items() if key != "text"}] for at, block in texts]
    note = {"type": "text", "text": _note(message, text, source, tool)}
    others = [block for block in blocks if block.get("type") != "text"]
    return _with(message, [note, *others], {"id": source["id"], "blocks": stood})


def keep_history(
    older: Sequence[BaseMessage], newer: Sequence[BaseMessage], store: BaseStore[str, bytes], tool: str
) -> HumanMessage:
    """One message in place of the older ones. What a human wants last stays in sight."""
    source = context.take_in(as_texts(older), store, from_cell=True)
    told = words.KEPT_HISTORY.format(messages=len(older), id=source["id"], tool=tool, description=_described(source))
    wanted = [message for message in older if isinstance(message, HumanMessage)]
    if wanted and not any(isinstance(message, HumanMessage) for message in newer):
        told = f"{told}\n\n{ends_of(wanted[-1].text)}"
    return HumanMessage(told)


def restore(messages: Sequence[M], content_store: BaseStore[str, bytes] | None = None) -> list[M]:
    """The messages with the texts that `RLMMiddleware` has kept for them, as they were.

    Args:
        messages: Messages of an agent's thread; those that hold all that they ever did come back as they are.
        content_store: The one that the middleware had. None: the default one.

    Raises:
        ContextError: A text is no longer in the store.
    """
    store = content_store if content_store is not None else default_store()
    return [message if kept_id(message) is None else _restored(message, store) for message in messages]


def _restored(message: M, store: BaseStore[str, bytes]) -> M:
    kept = message.additional_kwargs[KEPT]
    bound = context.binding(Source(type="rlm_context", id=kept["id"]), store)
    content = Path(bound["path"]).read_bytes()
    rest = {key: value for key, value in message.additional_kwargs.items() if key != KEPT}
    if "blocks" not in kept:
        text = content.decode("utf-8", "surrogatepass")
        return message.model_copy(update={"content": text, "additional_kwargs": rest})
    blocks = list(message.content[1:])
    for (at, block), text in zip(kept["blocks"], json.loads(content), strict=True):
        blocks.insert(at, {**block, "text": text})
    return message.model_copy(update={"content": blocks, "additional_kwargs": rest})


def _described(source: Source) -> str:
    return context.describe(source).replace("`context` is", "It is", 1)


def _note(message: BaseMessage, text: str, source: Source, tool: str) -> str:
    note = words.KEPT.format(
        id=source["id"],
        tool=tool,
        description=_described(source),
    )
    # In what a human says there may be the question itself.
    return f"{ends_of(text)}\n\n{note}" if isinstance(message, HumanMessage) else note


def _with(message: M, content: str | list[Any], kept: dict[str, Any]) -> M:
    # Not `model_copy(update=…)` of the content alone: the copy would share `additional_kwargs` with the message.
    return message.model_copy(
        update={"content": content, "additional_kwargs": {**message.additional_kwargs, KEPT: kept}}
    )
