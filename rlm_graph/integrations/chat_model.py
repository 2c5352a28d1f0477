"""A chat model that stands where any model stood, and reads what is too long for one."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import (
    merge_configs,
)
from langchain_core.stores import BaseStore
from langgraph.cache.base import BaseCache
from pydantic import Field, PrivateAttr, model_validator

from rlm_graph import models
from rlm_graph.context import take_in
from rlm_graph.conversation import is_long, take_apart
from rlm_graph.graph import Graph, create_rlm
from rlm_graph.identity import content_hash
from rlm_graph.integrations.reply import ai, first, in_pieces, result, said, unnamed
from rlm_graph.integrations.runs import as_parent, child_of, unshown
from rlm_graph.integrations.shorten import Shortened, shorten
from rlm_graph.state import Input, Source
from rlm_graph.store import default_store

_FORMS = ("tools", "functions", "response_format")
"""What a call holds that wants a reply of a form which only the inner model knows."""

_ELSEWHERE = {"model", "sub_model", "direct_below", "system_prompt", "content_store", "name", "checkpointer"}
_FOR_THE_RLM = set(inspect.signature(create_rlm).parameters) - _ELSEWHERE

_READINGS = 64
"""How many readings for calls with tools are remembered."""


class RLMChatModel(BaseChatModel):
    """A chat model with an RLM behind it, for whatever takes a chat model.

    Below `direct_below` tokens (16 000), a call goes to `model` as if nothing stood before it: with its tools, its
    arguments and its streams, and only its own run is traced. From there on

    - the last human message is the question. Where that is itself what is too long, its first and last paragraphs are,
      and the whole is read. Text blocks above 4 000 characters and attached text files are read too, and so are the
      other messages; system messages are instructions. What is no text in a long conversation is an error;
    - the answer is the RLM's. A stream gives nothing before it is finished, and then gives it word by word. Other
      arguments of the call than `stop` have no effect on it. The message has the usage of the whole tree (and no
      `model_name`: callbacks have counted each model's own calls) and, in `response_metadata`, `stop_reason` and, where
      there are any, `citations` and `warnings`;
    - with bound tools, a response format or structured output, `model` itself replies, so that it can call its tools.
      It is shown the conversation without the long texts (and, where need be, without its oldest messages), and what
      the RLM found in them on the question. What has been read for a question is not read again for it, so an agent
      that goes on working on it pays once. To let an agent ask for itself, see `RLMMiddleware`.

    Args:
        model: The root, and who is asked below `direct_below`: a chat model, or `"provider:name"`.
        sub_model: Who answers the root's calls, see `create_rlm`.
        direct_below: Tokens of a conversation below which `model` answers alone.
        system_prompt: Instructions of yours to the root, beside those of the conversation.
        content_store: Where texts are kept, see `create_rlm`.
        **rlm: All other parameters of `create_rlm`; a `cache` of LangGraph's is the RLM's, one of LangChain's is the
            chat model's. What a model takes (`temperature`, say) is to be given to `model`; here it has no effect, and
            a warning says so.

    Raises:
        ModelError: See `create_rlm`.
        ContextError: In a call: a long conversation holds no question, or what is no text.

    Example:
        >>> from langchain_core.output_parsers import StrOutputParser
        >>> from langchain_core.prompts import ChatPromptTemplate
        >>> from rlm_graph.offline import OfflineReader, OfflineRoot
        >>> prompt = ChatPromptTemplate.from_messages([("human", "{text}"), ("human", "When was the pier built?")])
        >>> chain = prompt | RLMChatModel(model=OfflineRoot(), sub_model=OfflineReader()) | StrOutputParser()
        >>> print(chain.invoke({"text": "The sea is blue. " * 5_000 + "The pier was built in 1907."}).splitlines()[0])
        The pier was built in 1907.
    """

    model: Any
    sub_model: Any = None
    direct_below: int = 16_000
    system_prompt: str | None = None
    content_store: BaseStore[str, bytes] = Field(default_factory=default_store, exclude=True)
    rlm: dict[str, Any] = Field(default_factory=dict, exclude=True)
    _readings: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _sorted(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Sets aside what is for the RLM, and says what is for nobody."""
        rlm = {key: value for key, value in given.items() if key in _FOR_THE_RLM and key != "cache"}
        if isinstance(given.get("cache"), BaseCache):
            rlm["cache"] = given["cache"]
        rest = {key: value for key, value in given.items() if key not in rlm}
        if unknown := sorted(rest.keys() - cls.model_fields.keys()):
            warnings.warn(f"no effect on RLMChatModel: {', '.join(unknown)}; give it to its model", stacklevel=4)
        if "model" in rest:
            rest["model"] = models.resolve(rest["model"])
            if rest.get("output_version") and isinstance(rest["model"], BaseChatModel):
                rest["model"] = rest["model"].model_copy(update={"output_version": rest["output_version"]})
        return {**rest, "rlm": {**rlm, **(rest.get("rlm") or {})}}

    @property
    def _llm_type(self) -> str:
        return "rlm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": models.settings_hash(self.model),
            "sub_model": repr(self.sub_model),
            "direct_below": self.direct_below,
            "system_prompt": self.system_prompt,
            "rlm": repr(self.rlm),
        }

    def _resolve_model_profile(self) -> Any:
        # What it can be given is not bounded by a window.
        profile: Mapping[str, Any] = getattr(self.model, "profile", None) or {}
        return {key: value for key, value in profile.items() if key != "max_input_tokens"} or None

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        if isinstance(self.model, BaseChatModel):
            return self.model._get_ls_params(stop=stop, **kwargs)
        return super()._get_ls_params(stop=stop, **{"model": models.name_of(self.model), **kwargs})

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools as `model` does.

        Args:
            tools: The tools.
            tool_choice: Which of them `model` has to call: a name, `"any"`, or what else it takes. None: as it likes.
            **kwargs: What else its `bind_tools` takes.

        Raises:
            TypeError: `model` binds tools in a way of its own, which nothing can stand before.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        bound = self.model.bind_tools(tools, **kwargs)
        if not isinstance(bound, RunnableBinding):
            raise TypeError(f"{models.name_of(self.model)} binds tools as {type(bound).__name__}: use create_rlm_tool")
        return self.bind(**bound.kwargs)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """As `model` does; what is too long for it has been read before."""
        shown: Runnable[LanguageModelInput, Any] = RunnableLambda(self._shown, self._ashown, name="shown")
        structured: Runnable[Any, Any] = self.model.with_structured_output(schema, **kwargs)
        return shown | structured

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """As any chat model's."""
        if not self._is_long(self._messages(input)):
            return ai(self.model.invoke(input, self._with_own(config), **kwargs))
        config, context = as_parent(config)
        return context.run(super().invoke, input, config, **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """As any chat model's."""
        if not self._is_long(self._messages(input)):
            return ai(await self.model.ainvoke(input, self._with_own(config), **kwargs))
        config, context = as_parent(config)
        return await asyncio.create_task(super().ainvoke(input, config, **kwargs), context=context)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """As any chat model's."""
        if not self._is_long(self._messages(input)):
            yield from self.model.stream(input, self._with_own(config), **kwargs)
            return
        config, context = as_parent(config)
        chunks = super().stream(input, config, **kwargs)
        while (chunk := context.run(next, chunks, None)) is not None:
            yield chunk

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """As any chat model's."""
        if not self._is_long(self._messages(input)):
            async for chunk in self.model.astream(input, self._with_own(config), **kwargs):
                yield chunk
            return
        config, context = as_parent(config)
        chunks = super().astream(input, config, **kwargs)

        async def step() -> AIMessageChunk | None:
            return await anext(chunks, None)

        while (chunk := await asyncio.create_task(step(), context=context)) is not None:
            yield chunk

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As any chat model's."""
        if kwargs.get("version") == "v3" and not self._is_long(self._messages(input)):
            return self.model.stream_events(input, self._with_own(config), **kwargs)
        return super().stream_events(input, config, **kwargs)

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As any chat model's."""
        if kwargs.get("version") == "v3" and not self._is_long(self._messages(input)):
            return self.model.astream_events(input, self._with_own(config), **kwargs)
        return super().astream_events(input, config, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        config = child_of(run_manager)
        if self._is_the_rlm_s(messages, kwargs):
            graph, given = self._asked(messages)
            return result(said(graph.invoke(given, config), stop))
        shown, read = self._read(messages, config)
        return result(unnamed(ai(self.model.invoke(shown, unshown(config), stop=stop, **kwargs)), read))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        config = child_of(run_manager)
        if self._is_the_rlm_s(messages, kwargs):
            graph, given = await asyncio.to_thread(self._asked, messages)
            return result(said(await graph.ainvoke(given, config), stop))
        shown, read = await self._aread(messages, config)
        return result(unnamed(ai(await self.model.ainvoke(shown, unshown(config), stop=stop, **kwargs)), read))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        config = child_of(run_manager)
        if self._is_the_rlm_s(messages, kwargs):
            graph, given = self._asked(messages)
            yield from in_pieces(said(graph.invoke(given, config), stop))
            return
        shown, read = self._read(messages, config)
        yield from first(read)
        for chunk in self.model.stream(shown, unshown(config), stop=stop, **kwargs):
            yield ChatGenerationChunk(message=unnamed(chunk))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        config = child_of(run_manager)
        if self._is_the_rlm_s(messages, kwargs):
            graph, given = await asyncio.to_thread(self._asked, messages)
            for piece in in_pieces(said(await graph.ainvoke(given, config), stop)):
                yield piece
            return
        shown, read = await self._aread(messages, config)
        for piece in first(read):
            yield piece
        async for chunk in self.model.astream(shown, unshown(config), stop=stop, **kwargs):
            yield ChatGenerationChunk(message=unnamed(chunk))

    def _is_long(self, messages: Sequence[BaseMessage]) -> bool:
        return is_long(messages, self.direct_below)

    def _is_the_rlm_s(self, messages: Sequence[BaseMessage], kwargs: Mapping[str, Any]) -> bool:
        return self._is_long(messages) and not any(kwargs.get(form) for form in _FORMS)

    def _messages(self, input: LanguageModelInput) -> list[BaseMessage]:
        return self._convert_input(input).to_messages()

    def _with_own(self, config: RunnableConfig | None) -> RunnableConfig:
        """The call's configuration with what this model was made with."""
        own: RunnableConfig = {"tags": self.tags or [], "metadata": self.metadata or {}}
        if self.callbacks:
            own["callbacks"] = self.callbacks
        return merge_configs(own, config)

    def _asked(self, messages: Sequence[BaseMessage]) -> tuple[Graph, Input]:
        """The RLM that answers a conversation, and what it is given."""
        apart = take_apart(messages)
        return self._graph(apart.instructions), self._given(apart.question, apart.context)

    def _graph(self, instructions: str) -> Graph:
        return create_rlm(
            self.model,
            self.sub_model,
            system_prompt="\n\n".join(filter(None, [self.system_prompt, instructions])) or None,
            direct_below=self.direct_below,
            content_store=self.content_store,
            name=self.name or "rlm",
            **self.rlm,
        )

    def _given(self, question: str, context: str | dict[str, str]) -> Input:
        # Held beforehand: LangGraph would keep the raw text in a checkpoint.
        source: Source = take_in(context, self.content_store, from_cell=True)
        return {"question": question, "context": source}

    def _read(
        self, messages: list[BaseMessage], config: RunnableConfig
    ) -> tuple[list[BaseMessage], UsageMetadata | None]:
        """What the inner model is shown, and what reading the rest has cost."""
        short = self._short(messages)
        if short is None:
            return messages, None
        if (known := self._readings.get(_key(short))) is not None:
            return short.told(known), None
        out = self._graph("").invoke(self._given(short.question, short.context), config)
        return self._remembered(short, out)

    async def _aread(
        self, messages: list[BaseMessage], config: RunnableConfig
    ) -> tuple[list[BaseMessage], UsageMetadata | None]:
        short = await asyncio.to_thread(self._short, messages)
        if short is None:
            return messages, None
        if (known := self._readings.get(_key(short))) is not None:
            return short.told(known), None
        given = await asyncio.to_thread(self._given, short.question, short.context)
        out = await self._graph("").ainvoke(given, config)
        return self._remembered(short, out)

    def _short(self, messages: list[BaseMessage]) -> Shortened | None:
        if not self._is_long(messages):
            return None
        short = shorten(messages, self.direct_below)
        return short if short.at is not None else None

    def _remembered(self, short: Shortened, out: dict[str, Any]) -> tuple[list[BaseMessage], UsageMetadata]:
        found = said(out, None)
        self._readings[_key(short)] = found.text
        while len(self._readings) > _READINGS:
            self._readings.pop(next(iter(self._readings)), None)
        assert found.usage_metadata is not None
        return short.told(found.text), found.usage_metadata

    def _shown(self, input: LanguageModelInput, config: RunnableConfig) -> list[BaseMessage]:
        return self._read(self._messages(input), config)[0]

    async def _ashown(self, input: LanguageModelInput, config: RunnableConfig) -> list[BaseMessage]:
        return (await self._aread(self._messages(input), config))[0]


def _key(short: Shortened) -> str:
    return content_hash([short.question, short.context])
