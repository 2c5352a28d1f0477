"""A middleware for agents: what is too long for the window is kept, described, and asked about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.stores import BaseStore
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime
from langgraph.types import Command

from rlm_graph.conversation import where_to_cut
from rlm_graph.graph import create_rlm
from rlm_graph.integrations import words
from rlm_graph.integrations.kept import keep_history, keep_long, restore
from rlm_graph.integrations.tool import asking_tool
from rlm_graph.settings import Model
from rlm_graph.store import default_store

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
except ImportError as error:
    raise ImportError("RLMMiddleware needs the package 'langchain': pip install 'rlm-graph[agents]'") from error

Result = ToolMessage | Command[Any]


class RLMMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Keeps long texts out of an agent's window, and lets the agent ask about them instead.

    For `langchain.agents.create_agent` and for `deepagents`. A tool's result above `above` tokens is kept in the
    content store before it reaches the agent's state, so that neither prompts nor checkpoints hold it. In its place the
    agent reads what it is (kind, sizes, how it begins and ends) and the id under which to ask questions of it, with
    the tool `ask_text` that this middleware brings along, as often as it likes; an RLM answers. Long human messages
    are treated alike (their first and last paragraphs stay; LangGraph has saved the raw input once by then). Where all
    messages together exceed `history_above` tokens, the agent's model reads one note in place of the older ones; the
    state keeps them all. What is no text, and a tool's artifact, stays as it is.

    Nothing is lost: a message whose text is kept says so in `additional_kwargs["rlm_context"]`, and
    `RLMMiddleware.restore(messages)` gives the messages as they were, with or without a middleware. An agent goes on
    without the middleware, too: it reads the descriptions. The default content store forgets what nobody has used for a
    week; give threads that shall last longer a `content_store` of their own.

    Args:
        model: The root, see `create_rlm`.
        sub_model: Who answers its calls, see `create_rlm`.
        above: Tokens from which a message's text is kept.
        history_above: Tokens from which the older messages are; the newer half of as many stays in sight.
        content_store: Where texts are kept, see `create_rlm`.
        name: The name of the tool.
        **rlm: All other parameters of `create_rlm`.

    Raises:
        ImportError: `langchain` is not installed.
        ModelError: See `create_rlm`.

    Example:
        >>> from langchain_core.messages import ToolMessage
        >>> from langchain_core.stores import InMemoryByteStore
        >>> from rlm_graph.offline import OfflineReader, OfflineRoot
        >>> keeps = RLMMiddleware(OfflineRoot(), OfflineReader(), content_store=InMemoryByteStore())
        >>> result = ToolMessage("The pier was built in 1907. " + "The sea is blue. " * 2_000, tool_call_id="1")
        >>> message = keeps.kept(result)
        >>> len(message.text) < 2_000, keeps.restore([message]) == [result]
        (True, True)
        >>> ask, source = keeps.tools[0], message.additional_kwargs["rlm_context"]["id"]
        >>> print(ask.invoke({"question": "When was it built?", "source": source}))
        The pier was built in 1907.
    """

    def __init__(
        self,
        model: Model,
        sub_model: Model | Sequence[Model] | None = None,
        *,
        above: int = 4_000,
        history_above: int = 60_000,
        content_store: BaseStore[str, bytes] | None = None,
        name: str = "ask_text",
        **rlm: Any,
    ) -> None:
        super().__init__()
        self.above, self.history_above = above, history_above
        self.store = content_store if content_store is not None else default_store()
        self.tool_name = name
        graph = create_rlm(model, sub_model, content_store=self.store, name=name, **rlm)
        names = list(rlm.get("contexts") or ())
        told = words.asking(results=True, paths=False, names=names)
        self.tools = [asking_tool(graph, self.store, (), names, name, told)]

    def restore(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The messages as they were before their texts were kept.

        Raises:
            ContextError: A text is no longer in the store.
        """
        return restore(messages, self.store)

    def kept(self, message: BaseMessage) -> BaseMessage:
        """The message as the agent gets it: itself, or where it is long its description."""
        return keep_long(message, self.above, self.store, self.tool_name) or message

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]) -> Result:
        """Keeps a long result before it reaches the agent's state."""
        return self._kept_result(handler(request))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        """As `wrap_tool_call`."""
        return await asyncio.to_thread(self._kept_result, await handler(request))

    def before_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Keeps what came by another way than a tool's result: what a human says, and what an earlier run left."""
        long = [
            kept
            for message in state["messages"]
            if isinstance(message, HumanMessage | ToolMessage)
            and (kept := keep_long(message, self.above, self.store, self.tool_name)) is not None
        ]
        return {"messages": long} if long else None

    async def abefore_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """As `before_model`."""
        return await asyncio.to_thread(self.before_model, state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Shows the agent's model one note in place of older messages, where all of them are too long."""
        return handler(self._shortened(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`."""
        return await handler(await asyncio.to_thread(self._shortened, request))

    def _kept_result(self, result: Result) -> Result:
        if isinstance(result, ToolMessage):
            return keep_long(result, self.above, self.store, self.tool_name) or result
        update = result.update
        if not isinstance(update, dict) or not isinstance(update.get("messages"), list):
            return result
        messages = [self.kept(m) if isinstance(m, ToolMessage) else m for m in update["messages"]]
        return replace(result, update={**update, "messages": messages})

    def _shortened(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        cut = where_to_cut(request.messages, self.history_above)
        if not cut:
            return request
        older, newer = request.messages[:cut], request.messages[cut:]
        return request.override(messages=[keep_history(older, newer, self.store, self.tool_name), *newer])
