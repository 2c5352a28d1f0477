"""`compose` runs the cell that sets the answer, and ends the run with it, or with the best that the journal has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig

from rlm_graph import flow, models, prompts
from rlm_graph.context import read_text
from rlm_graph.errors import ModelError
from rlm_graph.kernel import pool
from rlm_graph.ledger import Limits
from rlm_graph.nodes.cell import Node, run_cell
from rlm_graph.nodes.plan import reply_of, root_reply, turn_id
from rlm_graph.settings import Settings
from rlm_graph.state import State, StopReason
from rlm_graph.tree import NoRoom, Tree, forget_tree, tree_of


def compose(settings: Settings, depth: int) -> Node:
    """The node `compose` of an RLM at `depth`."""

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        state = flow.in_a_run(state)
        tree = await tree_of(state["tree"], settings.limits, settings.store, config)
        if not state.get("turns") and flow.is_direct(state, depth, settings.direct_below):
            return await _directly(state, tree, settings, config)
        update: dict[str, Any] = {}
        if flow.ending(state, settings.limits) is None:
            update = await run_cell(state, config, settings, depth, ())
        after = cast(State, {**state, **update})
        if "journal" in update:
            after["journal"] = [*(state.get("journal") or []), *update["journal"]]
        reason = flow.ending(after, settings.limits)
        if reason is None:
            return update
        return {**update, **await _end(after, tree, settings, depth, await best_answer(after, tree), reason)}

    return Node(act, "compose")


async def _directly(state: State, tree: Tree, settings: Settings, config: RunnableConfig) -> dict[str, Any]:
    try:
        message, warnings = await _direct(state, tree, settings, config)
    except NoRoom as no_room:
        return await _end(state, tree, settings, 0, "", no_room.limit)
    told = cast(State, {**state, "warnings": [*(state.get("warnings") or []), *warnings]})
    return await _end(told, tree, settings, 0, message.text, "direct", message.id)


async def _direct(state: State, tree: Tree, settings: Settings, config: RunnableConfig) -> tuple[AIMessage, list[str]]:
    text = await asyncio.to_thread(read_text, state["sources"][-1], settings.store)
    left_out = state["sources"][-1].get("left_out") or []
    messages = prompts.direct_messages(
        state["asked"], text, left_out, state.get("earlier") or [], settings.system_prompt
    )
    # A root that is no language model cannot read; where the sub-model is one, it answers.
    depth = 1 if models.note_of(settings.model(0)) else 0
    id = turn_id(settings, depth, state["run"], messages)
    message = await root_reply(tree, settings, depth, state["run"], id, messages, config)
    reply = reply_of(message, models.name_of(settings.model(depth)))
    if reply.error is not None and not message.text.strip():
        raise ModelError(reply.message)
    return message, [reply.message] if reply.error is not None else []


async def best_answer(state: State, tree: Tree) -> str:
    """The answer as delivered; where none was, what comes nearest: a draft, the root's prose, the last output."""
    draft = state.get("draft")
    content = draft["content"] if draft else None
    if isinstance(content, dict) and set(content) == {"stored"}:
        content = await tree.get(content["stored"])
    if draft and (draft["ready"] or content not in (None, "")):
        return as_text(content)
    turns = (state.get("turns") or [])[state["start"]["turn"] :]
    cells = (state.get("journal") or [])[state["start"]["cell"] :]
    if turns and "```" not in turns[-1]["reply"] and turns[-1]["reply"].strip():
        return turns[-1]["reply"].strip()
    return next((c["stdout"].strip() for c in reversed(cells) if c["stdout"].strip()), "")


def _last_error(state: State) -> str:
    cells = (state.get("journal") or [])[state["start"]["cell"] :]
    error = cells[-1]["error"] if cells else None
    return error.strip().splitlines()[-1][:300] if error else ""


def as_text(content: Any) -> str:
    """An answer as text: strings as they are, lists and mappings as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | dict):
        return json.dumps(content, ensure_ascii=False, indent=2)
    return "" if content is None else str(content)


def _ended_by(limit: StopReason, limits: Limits, usage: Mapping[str, Any]) -> str:
    """What the caller is told of a limit that ended the run or cost it calls."""
    used = {
        "max_calls": f"{usage['calls']:,} of {limits.max_calls:,} calls",
        "max_tokens": f"{usage['input_tokens'] + usage['output_tokens']:,} of {limits.max_tokens or 0:,} tokens",
        "max_cost": f"{prompts.dollars(usage['cost'])} of {prompts.dollars(limits.max_cost)}",
        "max_seconds": f"{usage['seconds']:,.1f} of {limits.max_seconds or 0:,.1f} seconds",
    }[limit]
    bad = [f"{usage[k]:,} calls {told}" for k, told in (("refused", "were refused"), ("failed", "failed")) if usage[k]]
    missing = f"; {', '.join(bad)}, so the answer may miss what they were to read" if bad else ""
    return f"{limit}: {used} used{missing}"


async def _end(
    state: State, tree: Tree, settings: Settings, depth: int, answer: str, reason: StopReason, id: str | None = None
) -> dict[str, Any]:
    """What the caller gets; the kernel is closed, and the tree let go where this is its top.

    `id` is that of the model's message where it is the answer, so that who streamed its tokens has it once.
    """
    await pool.close_run(state["run"])
    warnings = list(state.get("warnings") or [])
    if reason == "errors" and (why := _last_error(state)):
        warnings.append(f"the last cell failed: {why}")
    usage = tree.ledger.usage()
    if reason in ("max_calls", "max_tokens", "max_cost", "max_seconds"):
        warnings.append(_ended_by(reason, settings.limits, usage))
    ended: dict[str, Any] = {
        "answer": answer,
        "usage": usage,
        "stop_reason": reason,
        "warnings": warnings,
        "queue": [],
        "running": None,
        "wave": None,
    }
    if depth == 0:
        notes = sorted({note for m in settings.models if (note := models.note_of(m))})
        metadata = {"stop_reason": reason, **({"note": "; ".join(notes)} if notes else {})}
        # No `model_name`: callbacks have counted each model's own calls, and would count these once more.
        read, written = usage["input_tokens"], usage["output_tokens"]
        tokens = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        said = AIMessage(answer, id=id, name=settings.name, response_metadata=metadata, usage_metadata=tokens)
        ended["messages"] = [said]
        await tree.mark(ended=True)
        forget_tree(tree.id)
    return ended
