"""Finding a model by its name, and calling it where the caller runs.

An asynchronous run awaits the model on the caller's own loop, a synchronous one calls it in threads: a client that
is bound to a loop (ChatOpenAI's shared one) must never meet another loop of ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.constants import TAG_NOSTREAM

from rlm_graph.errors import ModelError
from rlm_graph.identity import content_hash
from rlm_graph.state import Asked

T = TypeVar("T")
_KEY_LIKE = re.compile(
    r"\b(?:sk-|AIza)[-_A-Za-z0-9]{12,}|\b(?:sk|pk|rk|key)[-_](?:[a-z]+_)?(?=[A-Za-z]*\d)[A-Za-z0-9]{16,}"
    r"|\b(?:gsk_|hf_|xai-|gh[opsur]_|github_pat_)[_A-Za-z0-9]{20,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}|(?<=Bearer )(?=\S*\d)[-._~+/=\w]{8,}"
)
"""What a provider may echo of a key in its error; it must not go to the root, the checkpoint or the screen.

A name in code, such as `skip_unless_reliable` or `key_value_pairs`, is none: cells are looked through as well.
"""

KEY_CHARS = 100
"""Characters by which every key is known for one."""

LONG_REPLY = 4_000
"""Tokens of a long reply, reasoning included, where no maximum was set."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0
_OF_A_CONNECTION = re.compile(r"Timeout|^(?:API)?Connect(?:ion)?Error$|^TransportError$")
"""Names of error classes by which the clients of all providers (httpx, requests, aiohttp, botocore, …) tell of one."""

_synchronous: contextvars.ContextVar[bool] = contextvars.ContextVar("rlm_graph_synchronous", default=False)


def is_synchronous() -> bool:
    """Whether this code runs for `invoke` or `stream` rather than for `ainvoke` or `astream`."""
    return _synchronous.get()


def resolve(model: BaseChatModel | Runnable[Any, AIMessage] | str) -> Runnable[Any, AIMessage]:
    """Turns `"provider:name"` into a chat model; a model is returned as it is.

    Raises:
        ModelError: The name has no provider, or the provider's package is not installed.
    """
    if isinstance(model, Runnable):
        return model
    if not isinstance(model, str):
        raise ModelError(f"a model is a chat model or 'provider:name', not {type(model).__name__}")
    provider, _, name = model.partition(":")
    if not name:
        raise ModelError(f"no provider in the model name {model!r}: write it as 'provider:name', e.g. 'openai:{model}'")
    if provider == "openai":
        from langchain_openai import ChatOpenAI

        try:
            return ChatOpenAI(model=name)
        except Exception as e:
            raise ModelError(f"the model {model!r} cannot be used: {first_line(e)}") from e
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as e:
        raise ModelError(f"the model {model!r} needs the package 'langchain': pip install 'rlm-graph[agents]'") from e
    try:
        return init_chat_model(model)
    except Exception as e:
        raise ModelError(f"the model {model!r} cannot be used: {first_line(e)}") from e


def name_of(model: Runnable[Any, Any]) -> str:
    """What the model is called in usage, prompts and errors."""
    bound = _innermost(model)
    for attribute in ("model_name", "model", "_llm_type"):
        if isinstance(name := getattr(bound, attribute, None), str) and name:
            return name
    return type(bound).__name__


def is_transient(error: BaseException) -> bool:
    """Whether asking again may help: a time-out, a lost connection, too many requests, a server's own failure."""
    if any(_OF_A_CONNECTION.search(kind.__name__) for kind in type(error).__mro__):
        return True
    status = status_of(error)
    return status in {408, 429} or status >= 500


def status_of(error: BaseException) -> int:
    """The HTTP status by which a server refused; 0 where there is none."""
    response = getattr(error, "response", None)
    told = (getattr(error, "status_code", None), getattr(response, "status_code", None), getattr(error, "code", None))
    return next((each for each in told if isinstance(each, int)), 0)


def _pause(error: BaseException, tried: int) -> float:
    """Seconds to wait before the next try: as many as the server says in Retry-After, else twice as many each time."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        told = float(headers.get("retry-after") or headers["Retry-After"])
        return max(0.0, min(told, _LONGEST_PAUSE_SECONDS))
    except (KeyError, TypeError, ValueError):
        return min(_FIRST_PAUSE_SECONDS * 2.0**tried * (1 + random.random()), _LONGEST_PAUSE_SECONDS)


def note_of(model: Runnable[Any, Any]) -> str | None:
    """What must be said of every answer of this model's ("no language model"), if anything."""
    note = getattr(_innermost(model), "note", None)
    return note if isinstance(note, str) else None


def settings_hash(model: Runnable[Any, Any]) -> str:
    """Hash of the model and its settings, as far as they are plain data: part of a call's identity."""
    params = getattr(_innermost(model), "_identifying_params", {})
    return content_hash([name_of(model), _plain(dict(params)), _plain(dict(getattr(model, "kwargs", {})))])


def window_of(model: Runnable[Any, Any]) -> int | None:
    """Tokens that the model can be given, by its profile; None where it has none."""
    profile = getattr(_innermost(model), "profile", None) or {}
    window = profile.get("max_input_tokens")
    return window if isinstance(window, int) else None


def provider_of(model: Runnable[Any, Any]) -> str | None:
    """LangChain's name for the model's provider ("openai"); None where it says none."""
    told = getattr(_innermost(model), "_get_ls_params", None)
    provider = told().get("ls_provider") if told is not None else None
    return provider if isinstance(provider, str) else None


def served_at(model: Runnable[Any, Any]) -> str | None:
    """The address of the model's server; None where it is its provider's own."""
    bound = _innermost(model)
    for attribute in ("openai_api_base", "anthropic_api_url", "azure_endpoint", "base_url"):
        if isinstance(url := getattr(bound, attribute, None), str) and url:
            return url
    if provider_of(model) == "openai":
        return os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE")
    return None


def address_of(model: Runnable[Any, Any]) -> str:
    """Where the model is served, as may be said aloud: no user, password or query; empty where not known."""
    parts = urlsplit(served_at(model) or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{without_keys(parts.path)}" if parts.netloc else ""


def longest_reply(model: Runnable[Any, Any], ample: int = 0) -> int:
    """Tokens that a reply is taken to have at most: the maximum that was set for the model, else `LONG_REPLY`.

    What a provider allows at most (128,000 and the like) says nothing of a reply: to hold room for it would let a few
    calls go at a time, and end a run with most of its budget unused.

    Args:
        model: Who replies.
        ample: Tokens for which there is room in plenty: a reply may come to as many where the provider allows them.
    """
    if said := maximum_set(model):
        return said
    most = _provider_allows(model)
    return min(max(LONG_REPLY, ample), most) if most is not None else LONG_REPLY


def maximum_set(model: Runnable[Any, Any]) -> int | None:
    """The most tokens of a reply, where the user has set it for the model."""
    bound, kwargs = _innermost(model), getattr(model, "kwargs", {})
    most = _provider_allows(model)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"):
        said = kwargs.get(name, getattr(bound, name, None))
        if isinstance(said, int) and said > 0 and said != most:  # some classes fill in the provider's maximum
            return said
    return None


def _provider_allows(model: Runnable[Any, Any]) -> int | None:
    most = (getattr(_innermost(model), "profile", None) or {}).get("max_output_tokens")
    return most if isinstance(most, int) else None


def at_most(model: Runnable[Any, AIMessage], reply: int | None) -> Runnable[Any, AIMessage]:
    """The model, told for a call that its reply may have so many tokens; as it is where it has no such parameter.

    A model that thinks within a budget of its own is not told either: its maximum must be above that.
    """
    return model.bind(max_tokens=reply) if reply is not None and can_be_told(model) else model


def can_be_told(model: Runnable[Any, Any]) -> bool:
    """Whether the model heeds LangChain's standard parameter `max_tokens`."""
    bound = _innermost(model)
    knows = isinstance(bound, BaseChatModel) and "max_tokens" in type(bound).model_fields
    return knows and not getattr(bound, "thinking", None)


async def ask(
    model: Runnable[Any, AIMessage],
    messages: Sequence[BaseMessage],
    config: RunnableConfig,
    threads: Executor,
    tries: int,
    reply: int | None = None,
) -> AIMessage:
    """One model call: awaited on this loop, or in a thread of `threads` when the run is synchronous.

    A transient failure is tried again, with back-off or when the server says (Retry-After), unless the model has a
    `max_retries` of its own and so sees to that by itself, as ChatOpenAI does.

    Args:
        model: Who is asked.
        messages: What.
        config: The node's configuration, so that callbacks and streams see the call.
        threads: Where a synchronous run calls.
        tries: How often a transient failure is tried again.
        reply: Tokens that the reply may have; None: as many as the model gives.
    """
    model = at_most(model, reply)
    tried = 0
    while True:
        try:
            return await _asked(model, messages, config, threads)
        except Exception as error:
            if tried == tries or hasattr(_innermost(model), "max_retries") or not is_transient(error):
                raise
            pause = _pause(error, tried)
        tried += 1
        await asyncio.sleep(pause)


async def ask_structured(
    model: Runnable[Any, AIMessage],
    messages: Sequence[BaseMessage],
    form: dict[str, Any],
    config: RunnableConfig,
    threads: Executor,
    tries: int,
    reply: int | None = None,
) -> tuple[AIMessage, str]:
    """As `ask`, in a form: by the provider's structured output where it has one, else by what the messages say.

    Returns:
        The message, and the JSON that it holds, whether as text or as the arguments of a tool call.
    """
    formed = _formed(model, form)
    if formed is None:
        message = await ask(model, messages, config, threads, tries, reply)
        return message, message.text
    try:
        message = await ask(formed, messages, config, threads, tries, reply)
    except Exception as error:
        if not _does_not_know_forms(error):
            raise
        _formless.add(settings_hash(model))
        message = await ask(model, messages, config, threads, tries, reply)
    called = message.tool_calls[0]["args"] if message.tool_calls and not message.text.strip() else None
    return message, message.text if called is None else json.dumps(called)


_formless: set[str] = set()
"""Models, by their settings' hash, whose server refused to be told a form."""


def _formed(model: Runnable[Any, AIMessage], form: dict[str, Any]) -> Runnable[Any, AIMessage] | None:
    """The model, bound to answer in a form; None where it has no structured output."""
    profile = getattr(_innermost(model), "profile", None) or {}
    if not isinstance(model, BaseChatModel) or profile.get("structured_output") is False:
        return None
    if settings_hash(model) in _formless:
        return None
    try:
        chain: Any = model.with_structured_output(form, include_raw=True)
    except (NotImplementedError, ValueError, TypeError):
        return None
    # Its first step is the model, bound; what follows parses, which is ours to do: with repair, and with checks.
    return getattr(getattr(chain, "first", None), "steps__", {}).get("raw")


def _does_not_know_forms(error: Exception) -> bool:
    return getattr(error, "status_code", None) in {400, 404, 422}


async def _asked(
    model: Runnable[Any, AIMessage], messages: Sequence[BaseMessage], config: RunnableConfig, threads: Executor
) -> AIMessage:
    if not _synchronous.get():
        return await model.ainvoke(list(messages), config)
    return await in_threads(model, list(messages), config, threads)


async def in_threads(asked: Runnable[Any, T], given: Any, config: RunnableConfig, threads: Executor) -> T:
    """Calls a model or a tool for a synchronous caller: in a thread of `threads`, in the caller's context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: context.run(asked.invoke, given, config))


def named(config: RunnableConfig, name: str, **metadata: Any) -> RunnableConfig:
    """The configuration under which a trace shows what is done by its name, with what it belongs to."""
    return {**noted(config, **metadata), "run_name": name}


def noted(config: RunnableConfig, **metadata: Any) -> RunnableConfig:
    """The configuration under which a trace shows of what is done, and of all below it, what it belongs to."""
    return {**config, "metadata": {**(config.get("metadata") or {}), **metadata}}


def noted_call(config: RunnableConfig, asked: Asked) -> RunnableConfig:
    """The same for one call: its id, and where what it is about stands."""
    place = asked["place"]
    span = dict(zip(("rlm_source", "rlm_start", "rlm_end"), place, strict=True)) if place else {}
    return noted(config, rlm_call=asked["id"], **span)


def unheard(config: RunnableConfig) -> RunnableConfig:
    """The configuration under which `stream_mode="messages"` passes over a model's tokens: they are not the answer."""
    return {**config, "tags": [*(config.get("tags") or []), TAG_NOSTREAM]}


async def saved_checkpoint(saver: BaseCheckpointSaver[Any], at: RunnableConfig) -> CheckpointTuple | None:
    """Reads a checkpoint the way this run works: a saver for synchronous runs may not have the other way."""
    if _synchronous.get():
        return await asyncio.to_thread(saver.get_tuple, at)
    return await saver.aget_tuple(at)


def in_step(act: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a node's coroutine to its end for a synchronous caller, also where this thread has a running loop."""

    def drive() -> T:
        context = contextvars.copy_context()
        context.run(_synchronous.set, True)
        with asyncio.Runner() as runner:
            return runner.run(act(), context=context)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return drive()
    return _in_a_thread(drive)


def _in_a_thread(drive: Callable[[], T]) -> T:
    from concurrent.futures import ThreadPoolExecutor

    context = contextvars.copy_context()
    with ThreadPoolExecutor(1, thread_name_prefix="rlm-step") as thread:
        return thread.submit(context.run, drive).result()


def _innermost(model: Any) -> Any:
    while hasattr(model, "bound"):
        model = model.bound
    return model


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return without_keys(line)


def without_keys(text: str) -> str:
    """The text with what looks like a key taken out."""
    return _KEY_LIKE.sub("[key]", text)
