"""A tool with which any agent asks an RLM about a text that it names."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.stores import BaseStore
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.prebuilt import ToolRuntime
from pydantic import BaseModel, Field

from rlm_graph import context
from rlm_graph.beneath import allowed, read_beneath
from rlm_graph.describe import plain
from rlm_graph.errors import ContextError, RLMError
from rlm_graph.graph import Graph, create_rlm
from rlm_graph.integrations import words
from rlm_graph.integrations.kept import kept_id
from rlm_graph.settings import Model
from rlm_graph.state import Source
from rlm_graph.store import default_store

_ID = re.compile("[0-9a-f]{32}")

LONGEST_ANSWER = 20_000
"""Characters of an answer that an agent is shown; a longer one is kept, and can be asked about."""

ENDED_WELL = ("answered", "direct")


class Ask(BaseModel):
    """What an agent gives the tool."""

    question: str = Field(description=words.THE_QUESTION)
    source: str = Field(description=words.THE_SOURCE)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question goes to: a context for the graph, and what of it could not be read."""

    context: Any
    left_out: list[str] = field(default_factory=list)


def create_rlm_tool(
    model: Model,
    sub_model: Model | Sequence[Model] | None = None,
    *,
    roots: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    content_store: BaseStore[str, bytes] | None = None,
    name: str = "ask_text",
    description: str | None = None,
    **rlm: Any,
) -> BaseTool:
    """Makes a tool with which an agent asks questions of texts that do not fit its window.

    The agent's model gives `question` and `source`. The source is the id of a text that is in the content store
    (`hold(…)["id"]`); the name of a tool of the agent's, or the id of one of its calls, for the (latest) result; one of
    the names in `contexts=`; or, where `roots` are given, a path below one of them. Nothing outside of `roots` is read,
    and no link is followed. (A hard link is none: it is a file of the folder that it stands in.)

    The tool's content is the answer with its citations, what could not be read, and the limit that stopped it, where
    one did; its artifact is `{"answer", "citations", "usage", "stop_reason", "warnings", "left_out", "source"}`. Of
    more than 20 citations the content has the first 20 and the number of the others, of passages above 300 characters
    the ends; the artifact has them all, whole. An answer above 20 000 characters is kept in the store and described
    instead. What goes wrong is told to the agent's model, which can do something about it.

    Args:
        model: The root, see `create_rlm`.
        sub_model: Who answers its calls, see `create_rlm`.
        roots: Folders below which the agent may have read, at most 200 000 000 bytes for a question. None: no path.
        content_store: Where texts are kept, see `create_rlm`.
        name: The tool's name.
        description: What the agent's model is told of it, in place of ours.
        **rlm: All other parameters of `create_rlm`.

    Raises:
        ContextError: A root is no folder.
        ModelError: See `create_rlm`.

    Example:
        >>> from langchain_core.stores import InMemoryByteStore
        >>> from rlm_graph import create_rlm_tool, hold
        >>> from rlm_graph.offline import OfflineReader, OfflineRoot
        >>> store = InMemoryByteStore()
        >>> report = hold("The pier was built in 1907. The reef is blue.", store=store)
        >>> tool = create_rlm_tool(OfflineRoot(), OfflineReader(), content_store=store)
        >>> print(tool.invoke({"question": "When was the pier built?", "source": report["id"]}))
        The pier was built in 1907.
    """
    store = content_store if content_store is not None else default_store()
    folders = allowed(roots)
    graph = create_rlm(model, sub_model, content_store=store, name=name, **rlm)
    names = list(rlm.get("contexts") or ())
    told = description or words.asking(results=True, paths=bool(folders), names=names)
    return asking_tool(graph, store, folders, names, name, told)


def asking_tool(
    graph: Graph,
    store: BaseStore[str, bytes],
    roots: Sequence[Path],
    names: Sequence[str],
    name: str,
    description: str,
) -> BaseTool:
    """The tool that asks this graph; `store` is the graph's own."""

    def given(source: str, runtime: ToolRuntime | None) -> Asked:
        return _asked(source, _messages(runtime), store, roots, names)

    def ask(question: str, source: str, config: RunnableConfig, runtime: ToolRuntime = None) -> tuple[str, Any]:  # type: ignore[assignment]
        try:
            asked = given(source, runtime)
            return _told(graph.invoke({"question": question, "context": asked.context}, config), asked, store)
        except RLMError as error:
            raise ToolException(str(error)) from error

    async def aask(question: str, source: str, config: RunnableConfig, runtime: ToolRuntime = None) -> tuple[str, Any]:  # type: ignore[assignment]
        try:
            asked = await asyncio.to_thread(given, source, runtime)
            out = await graph.ainvoke({"question": question, "context": asked.context}, config)
            return await asyncio.to_thread(_told, out, asked, store)
        except RLMError as error:
            raise ToolException(str(error)) from error

    return StructuredTool.from_function(
        ask,
        aask,
        name=name,
        description=description,
        args_schema=Ask,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


def _messages(runtime: ToolRuntime | None) -> Sequence[BaseMessage]:
    state = getattr(runtime, "state", None)
    found = state.get("messages") if isinstance(state, dict) else getattr(state, "messages", None)
    return found if isinstance(found, list) else ()


def _asked(
    source: str,
    messages: Sequence[BaseMessage],
    store: BaseStore[str, bytes],
    roots: Sequence[Path],
    names: Sequence[str],
) -> Asked:
    """What `source` names: an id, a name that the user gave, an earlier result, a path; in this order."""
    source = source.strip()
    if _ID.fullmatch(source):
        return Asked(context.take_in({"type": "rlm_context", "id": source}, store))
    if source in names:
        return Asked(source)
    for message in reversed(messages):
        if isinstance(message, ToolMessage) and source in (message.tool_call_id, message.name):
            if (kept := kept_id(message)) is not None:
                return Asked(context.take_in({"type": "rlm_context", "id": kept}, store))
            return Asked(context.take_in(message.text, store, from_cell=True))
    if not roots:
        raise ContextError(f"{plain(source)!r:.200} names nothing here: it is no kept text, and no tool with a result")
    found = read_beneath(roots, source)
    return Asked(context.take_in(found.context, store, name=source, from_cell=True), found.left_out)


def _told(out: dict[str, Any], asked: Asked, store: BaseStore[str, bytes]) -> tuple[str, dict[str, Any]]:
    """The tool's content and artifact."""
    answer = out.get("answer") or ""
    stopped = out.get("stop_reason")
    shown = answer
    if len(answer) > LONGEST_ANSWER:
        kept = context.take_in(answer, store, from_cell=True)
        description = context.describe(kept)
        shown = words.LONG_ANSWER.format(id=kept["id"], description=description)
    content = words.answer_told(
        shown, out.get("citations") or (), asked.left_out, None if stopped in ENDED_WELL else stopped
    )
    artifact = {name: out.get(name) for name in ("answer", "citations", "usage", "stop_reason", "warnings")}
    return content, {**artifact, "left_out": asked.left_out, "source": _named(asked.context)}


def _named(given: Source | str) -> str:
    return given if isinstance(given, str) else given["id"]
