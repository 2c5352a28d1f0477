"""`load` takes in the context by reference, describes it, and opens the ledger."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from langchain_core.messages import AnyMessage, HumanMessage, get_buffer_string
from langchain_core.runnables import RunnableConfig

from rlm_graph import context, flow, models
from rlm_graph.conversation import LONG_MESSAGE, ends_of
from rlm_graph.errors import ContextError
from rlm_graph.given import Opaque
from rlm_graph.identity import new_run
from rlm_graph.kernel import isolation, pool
from rlm_graph.kernel.gateway import Gateway
from rlm_graph.nodes.cell import Node
from rlm_graph.settings import Settings
from rlm_graph.state import Source, State
from rlm_graph.sweep import keep_small, touch
from rlm_graph.trees import CHECKPOINTER, tree_of

_SAID_LINES, _SAID_CHARS = 6, 400
"""How much of the earlier conversation the root is told, in lines and in characters of each."""

_LIKE_A_NAME = 40
"""Characters below which a text may have been meant as the name of a context."""


def load(settings: Settings, depth: int) -> Node:
    """The node `load` of an RLM at `depth`."""

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        begun = time.monotonic()
        question, given, said = _asked(state, await _raw_context(state, config))
        sources = list(state.get("sources") or [])
        named = isinstance(given, str) and given in settings.contexts
        if given is not None:
            meant, name = (settings.contexts[given], given) if named else (given, None)
            source = await asyncio.to_thread(context.take_in, meant, settings.store, name=name)
            if not sources or sources[-1]["id"] != source["id"]:
                sources.append(source)
        opened = _opened(state, sources)
        if isinstance(given, str) and not named and settings.contexts and len(given) < _LIKE_A_NAME:
            names = ", ".join(settings.contexts)
            opened["warnings"].append(f"context {given!r} was taken as a text; what can be named is: {names}")
        elif isinstance(given, str) and not named and context.looks_like_a_place(given):
            # By its look alone: to say whether it exists would tell a server's callers of its files.
            opened["warnings"].append(
                f"context {given!r} is taken as text; for the file give pathlib.Path({given!r}); of a URL give the text"
            )
        tree = await tree_of(opened["tree"], settings.limits, settings.store, config)
        tree.ledger.go_on(time.monotonic() - begun)
        if budget := state.get("budget"):
            settings.can_count(budget)
            await tree.grant(budget)
        await tree.needs(sources)
        await asyncio.to_thread(touch, settings.store, [source["id"] for source in sources])
        if depth == 0:
            await tree.mark(ended=False)
            await asyncio.to_thread(keep_small, settings.store)
        if not flow.is_direct(cast(State, {**state, **opened}), depth, settings.direct_below):
            wanted = settings.isolation
            means = wanted if isinstance(wanted, Gateway) else await asyncio.to_thread(isolation.settled, wanted)
            if means == "process" and depth == 0:
                opened["warnings"].append(isolation.UNCAGED)
            pool.prepare(opened["run"], settings.kernel_options())
        return {**opened, "question": "", "asked": question, "earlier": said}

    return Node(act, "load")


def _opened(state: State, sources: list[Source]) -> dict[str, Any]:
    """A question begins: new limits, no answer yet; the journal and its variables stay."""
    run = state.get("run") or new_run()
    number = state["start"]["question"] + 1 if state.get("start") else 0
    return {
        "context": None,
        "budget": None,
        "sources": sources,
        "run": run,
        "tree": (not number and state.get("tree")) or f"{run}.{number}",
        "started": time.time(),
        "start": {"question": number, "turn": len(state.get("turns") or []), "cell": len(state.get("journal") or [])},
        "queue": [],
        "running": None,
        "phase": "probe",
        "wave": None,
        "notice": "",
        "errors": 0,
        "misfits": [],
        "draft": None,
        "limit": None,
        "over": None,
        "answer": None,
        "stop_reason": None,
        "citations": [],
        "structured_response": None,
        "verified": 0,
        "warnings": [f"left out of the context: {line}" for line in sources[-1].get("left_out") or ()],
    }


async def _raw_context(state: State, config: RunnableConfig) -> Any:
    """The context as the caller gave it.

    No checkpoint holds the channel it came by. When a run was interrupted, or its process killed, before `load` had
    ended, it is found where LangGraph keeps the raw input: in the thread's latest input checkpoint.
    """
    held = state.get("context")
    if held is not None:
        return held.take() if isinstance(held, Opaque) else held
    configurable = config.get("configurable", {})
    saver = configurable.get(CHECKPOINTER)
    if saver is None:
        return None
    graph_ns = configurable.get("checkpoint_ns", "").rpartition("|")[0]
    at: RunnableConfig | None = {"configurable": {"thread_id": configurable["thread_id"], "checkpoint_ns": graph_ns}}
    while at is not None and (saved := await models.saved_checkpoint(saver, at)) is not None:
        if saved.metadata.get("source") == "input":
            given = saved.checkpoint["channel_values"].get("__start__") or {}
            return given.get("context") if isinstance(given, dict) else None
        at = saved.parent_config
    return None


def _asked(state: State, given: Any) -> tuple[str, Any, list[str]]:
    """The question, what it is asked of (None: the context that the thread has already), and what was said before."""
    messages = list(state.get("messages") or [])
    question = (state.get("question") or "").strip()
    if not question and messages and isinstance(messages[-1], HumanMessage):
        question = messages.pop().text.strip()
    if not question:
        raise ContextError("no question: give `question`, or `messages` that end with a human message")
    if given is not None or state.get("sources"):
        return question, given, _said(state, messages)
    if any(m.text.strip() for m in messages):
        return question, get_buffer_string(messages), []
    if len(question) > LONG_MESSAGE:
        return ends_of(question), question, []
    raise ContextError(
        "no context: give `context` (a text, documents, a mapping, a pathlib.Path or what hold() returned)"
    )


def _said(state: State, messages: list[AnyMessage]) -> list[str]:
    """The conversation before this question: its messages, or the thread's own earlier questions and answers."""
    said = list(state.get("earlier") or [])
    if state.get("asked"):
        said += [f"Question: {state['asked']}", f"Answer: {state.get('answer') or '(none)'}"]
    elif messages:
        said = [f"{m.type}: {m.text}" for m in messages]
    return [line if len(line) <= _SAID_CHARS else f"{line[:_SAID_CHARS]}…" for line in said[-_SAID_LINES:]]
