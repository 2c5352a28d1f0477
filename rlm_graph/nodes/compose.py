"""`compose` runs the cell that sets the answer, and ends the run with it, or with the best that the journal has."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig

from rlm_graph import checks, flow, models, prompts
from rlm_graph.citations import coverage_of, standing
from rlm_graph.context import read_text
from rlm_graph.dialect import reads
from rlm_graph.errors import ContextError, ModelError, NothingRead
from rlm_graph.kernel import pool
from rlm_graph.kernel.cell import TIMEOUT
from rlm_graph.ledger import Limits
from rlm_graph.nodes.cell import Node, run_cell, working_on
from rlm_graph.nodes.plan import NOTHING_READ, not_begun, reply_of, root_reply, turn_id
from rlm_graph.outcome import Coverage
from rlm_graph.response import structured
from rlm_graph.settings import Settings
from rlm_graph.state import Cell, Draft, State, StopReason
from rlm_graph.tree import NoRoom, Tree
from rlm_graph.trees import forget_tree, tree_of

_NOTHING_ANSWERED = "none of {calls:,} calls was answered, so there is nothing to answer from: {reason}"
_REFUSED = "a sub-model refused {refused:,} of the {results:,} chunks that it was asked about"
_FAILED = "{failed:,} of the {results:,} chunks that a sub-model was asked about got no answer that can be used"
_NOT_FOUND = (
    "no answer was found in the {results:,} chunks that a sub-model was asked about: {absent:,} do not say, "
    "{empty:,} were answered with nothing; {read}"
)
_UNREAD = "no cell has named the context, a model or a tool: the answer may come from the question alone"
_CUT_OFF = "{calls:,} model calls were cut off in flight: what their provider charges for them is not in `usage`"
_ANSWERING: tuple[StopReason, ...] = ("answered", "errors", "max_turns")
"""Ends at which a caller takes what comes for an answer; the others say that something was kept from the run."""


def compose(settings: Settings, depth: int) -> Node:
    """The node `compose` of an RLM at `depth`."""

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        state = flow.in_a_run(state)
        tree = await tree_of(state["tree"], settings.limits, settings.store, config)
        if flow.is_direct(state, depth, settings.direct_below):
            return await _directly(state, tree, settings, config)
        update: dict[str, Any] = {}
        if flow.ending(state, settings.limits) is None:
            update = await run_cell(state, config, settings, depth, ())
        after = cast(State, {**state, **update})
        if "journal" in update:
            after["journal"] = [*(state.get("journal") or []), *update["journal"]]
        in_form = await _in_form(after, tree, settings, depth)
        update, after = {**update, **in_form}, cast(State, {**after, **in_form})
        reason = flow.ending(after, settings.limits)
        if reason is None:
            return update
        async with working_on(state["run"]):
            if why := await nothing_from(after, tree, reason):
                raise NothingRead(why)
        return {**update, **await _end(after, tree, settings, depth, await best_answer(after, tree), reason)}

    return Node(act, "compose")


async def _in_form(state: State, tree: Tree, settings: Settings, depth: int) -> dict[str, Any]:
    """A delivered answer in the form asked for; one that does not have it goes back to the root."""
    draft = state.get("draft")
    if settings.format is None or depth or draft is None or not draft["ready"]:
        return {}
    try:
        return {"structured_response": structured(settings.format, await _content(draft, tree))}
    except ValueError as error:
        notice = "\n".join(filter(None, [state["notice"], str(error)]))
        unready: Draft = {**draft, "ready": False}
        # Counted by themselves: that the cells before went well says nothing of what is delivered.
        misfits = [*(state.get("misfits") or []), str(error.__cause__)[:500]]
        return {"draft": unready, "queue": [], "notice": notice, "misfits": misfits, "phase": "compose"}


async def nothing_from(state: State, tree: Tree, reason: StopReason) -> str:
    """Why the run has nothing to answer from; empty where it has something, or where a limit kept it from that."""
    journal = state.get("journal") or []
    if reason in _ANSWERING and all(cell["lost"] for cell in journal):
        return (journal[-1]["error"] or "").strip() if journal else NOTHING_READ
    # Calls that `max_calls` refused are not among the failed ones: where all have failed, it cost them second tries.
    return await _all_failed(state, tree) if reason in (*_ANSWERING, "max_calls") else ""


async def _all_failed(state: State, tree: Tree) -> str:
    """Why every call failed; empty where one did not, or none was made."""
    cells = (state.get("journal") or [])[state["start"]["cell"] :]
    asked = sum(cell["asked"] for cell in cells)
    if not asked or sum(cell["failed"] for cell in cells) < asked:
        return ""
    ids = [id for cell in cells if cell["calls"] for id in await tree.get(cell["calls"])]
    replies = (await tree.replies(ids)).values()
    told = [
        r.message if r.text is None else checks.why_none(r.text)
        for r in replies
        if r.error not in ("PromptTooLong", "ToolError")
    ]
    # A call of a model that is not there was never made.
    made = tree.ledger.progress()["failed"] or any(r.text is not None for r in replies)
    return _NOTHING_ANSWERED.format(calls=asked, reason=told[-1]) if told and made else ""


def has_read(state: State, settings: Settings) -> bool:
    """Whether a cell of the thread has looked at the context, asked a model, or called a tool."""
    tools = [tool.spec["name"] for tool in settings.tools]
    return any(reads(cell["code"], tools) for cell in state.get("journal") or [])


async def _directly(state: State, tree: Tree, settings: Settings, config: RunnableConfig) -> dict[str, Any]:
    try:
        message, made, warnings = await _direct(state, tree, settings, config)
    except NoRoom as no_room:
        warnings = [*(state.get("warnings") or []), *not_begun(no_room, tree.ledger.limits)]
        return await _end(cast(State, {**state, "warnings": warnings}), tree, settings, 0, "", no_room.limit)
    told = cast(State, {**state, "warnings": [*(state.get("warnings") or []), *warnings]})
    ended = await _end(told, tree, settings, 0, message.text, "direct", message.id)
    return {**ended, "structured_response": made}


async def _direct(
    state: State, tree: Tree, settings: Settings, config: RunnableConfig
) -> tuple[AIMessage, Any, list[str]]:
    """The root's answer from the whole text, the same in the form asked for, and what is to be said of it."""
    text = await asyncio.to_thread(read_text, state["sources"][-1], settings.store)
    left_out = state["sources"][-1].get("left_out") or []
    messages = prompts.direct_messages(
        state["asked"], text, left_out, state.get("earlier") or [], settings.system_prompt, settings.schema(0)
    )
    # A root that is no language model cannot read; where the sub-model is one, it answers.
    depth = 1 if models.note_of(settings.model(0)) else 0
    wrong = ""
    for _ in range(settings.limits.max_errors):
        id = turn_id(settings, depth, state["run"], messages)
        message, _ = await root_reply(tree, settings, depth, state["run"], id, messages, config)
        reply = reply_of(message, models.name_of(settings.model(depth)))
        if reply.error is not None and not message.text.strip():
            raise ModelError(reply.message)
        warnings = [reply.message] if reply.error is not None else []
        if settings.format is None:
            return message, None, warnings
        try:
            return message, structured(settings.format, message.text), warnings
        except ValueError as error:
            wrong = str(error)
            messages = [*messages, AIMessage(message.text), HumanMessage(wrong)]
    return message, None, [*warnings, wrong]


async def best_answer(state: State, tree: Tree) -> str:
    """The answer as delivered; where none was, what comes nearest."""
    if draft := state.get("draft"):
        state = {**state, "draft": {**draft, "content": await _content(draft, tree)}}
    return answer_of(state)


def answer_of(state: State) -> str:
    """The answer, its content in the state itself: as delivered, else a draft, the root's prose, the last output."""
    draft = state.get("draft")
    content = draft["content"] if draft else None
    if draft and (draft["ready"] or content not in (None, "")):
        return as_text(content)
    turns = (state.get("turns") or [])[state["start"]["turn"] :]
    cells = (state.get("journal") or [])[state["start"]["cell"] :]
    if turns and "```" not in turns[-1]["reply"] and turns[-1]["reply"].strip():
        return turns[-1]["reply"].strip()
    last = next((c["stdout"].strip() for c in reversed(cells) if c["stdout"].strip()), "")
    return prompts.LAST_OUTPUT.format(output=last) if last else ""


async def _content(draft: Draft, tree: Tree) -> Any:
    content = draft["content"]
    return await tree.get(content["stored"]) if isinstance(content, dict) and set(content) == {"stored"} else content


def _last_error(state: State) -> str:
    cells = (state.get("journal") or [])[state["start"]["cell"] :]
    lines = (cells[-1]["error"] or "").strip().splitlines() if cells else []
    if not lines:
        return ""
    return (lines[0] if lines[0].startswith(TIMEOUT) else lines[-1])[:300]


def as_text(content: Any) -> str:
    """An answer as text: strings as they are, lists and mappings as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | dict):
        return json.dumps(content, ensure_ascii=False, indent=2)
    return "" if content is None else str(content)


def _ended_by(limit: StopReason, limits: Limits, usage: Mapping[str, Any], turns: int) -> str:
    """What the caller is told of a limit that ended the run or cost it calls."""
    if limit == "max_steps":
        return f"max_steps: {turns:,} turns, then LangGraph's steps were used up: give a higher recursion_limit"
    used = {
        "max_turns": f"{turns:,} of {limits.max_turns:,} turns",
        "max_calls": f"{usage['calls']:,} of {limits.max_calls:,} calls",
        "max_tokens": f"{usage['input_tokens'] + usage['output_tokens']:,} of {limits.max_tokens or 0:,} tokens",
        "max_cost": f"{prompts.dollars(usage['cost'])} of {prompts.dollars(limits.max_cost)}",
        "max_seconds": f"{usage['seconds']:,.1f} of {limits.max_seconds or 0:,.1f} seconds",
    }[limit]
    bad = [f"{usage[k]:,} calls {told}" for k, told in (("refused", "were refused"), ("failed", "failed")) if usage[k]]
    missing = f"; {', '.join(bad)}, so the answer may miss what they were to read" if bad else ""
    return f"{limit}: {used} used{missing}"


def _of_the_chunks(cells: Sequence[Cell], coverage: Coverage) -> list[str]:
    """What the caller is told of chunks that sub-models were asked about: refused, unanswered, nothing found at all."""
    counted: Counter[str] = Counter()
    for cell in cells:
        counted.update(cell["report"].get("checked", {}))
    absent = counted["results"] - counted["found"] - counted["empty"] - counted["refused"] - counted["failed"]
    told = [form.format(**counted) for name, form in (("refused", _REFUSED), ("failed", _FAILED)) if counted[name]]
    if not counted["found"] and absent + counted["empty"]:
        whole = not coverage["unread"] and not coverage["unread_more"]
        share = f"at least {math.floor(coverage['read'] * 100)} % of the text was read"
        read = "all of the text was read" if whole else share
        told.append(_NOT_FOUND.format(results=counted["results"], absent=absent, empty=counted["empty"], read=read))
    return told


async def _rests_on(
    state: State, tree: Tree, settings: Settings, reason: StopReason
) -> tuple[dict[str, Any], list[str]]:
    """The citations, each looked up in the source itself, and how much of it was looked at; and what is amiss."""
    source, draft = state["sources"][-1], state.get("draft")
    cells = (state.get("journal") or [])[state["start"]["cell"] :]
    warnings: list[str] = []
    given: dict[str, Any] = {"passages": [], "more": 0}
    if draft and "cited" in draft:
        given = await tree.get(draft["cited"])
    try:
        citations = await asyncio.to_thread(standing, given["passages"], source, settings.store)
    except ContextError as error:
        citations = []
        warnings.append(f"the citations could not be looked up, so there are none: {error}")
    else:
        if lost := len(given["passages"]) - len(citations):
            warnings.append(f"{lost:,} passages do not stand in the source, so they are not cited")
    if given["more"]:
        warnings.append(f"{given['more']:,} further passages are not listed as citations")
    coverage = coverage_of(cells, source, direct=reason == "direct")
    warnings += _of_the_chunks(cells, coverage)
    told = {
        "citations": citations,
        "coverage": coverage,
        "verified": sum(cell["report"].get("checked", {}).get("verified", 0) for cell in cells),
    }
    return told, warnings


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
    if reason != "answered" and state.get("structured_response") is None and (misfits := state.get("misfits")):
        warnings.append(f"the answer was delivered {len(misfits)} times in another form than asked for: {misfits[-1]}")
    if reason == "answered" and not has_read(state, settings):
        warnings.append(_UNREAD)
    usage = tree.ledger.usage()
    if depth == 0:
        rests_on, unfounded = await _rests_on(state, tree, settings, reason)
        warnings += unfounded
        warnings += [_CUT_OFF.format(calls=cut)] if (cut := tree.ledger.cut_off()) else []
    if reason.startswith("max_"):
        turns = len(state.get("turns") or []) - state["start"]["turn"]
        warnings.append(_ended_by(reason, tree.ledger.limits, usage, turns))
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
        notes = sorted({note for m in settings.every_model if (note := models.note_of(m))})
        metadata = {"stop_reason": reason, **({"note": "; ".join(notes)} if notes else {})}
        # No `model_name`: callbacks have counted each model's own calls, and would count these once more.
        read, written = usage["input_tokens"], usage["output_tokens"]
        tokens = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        said = AIMessage(answer, id=id, name=settings.name, response_metadata=metadata, usage_metadata=tokens)
        ended["messages"] = [said]
        ended |= rests_on
        await tree.mark(ended=True)
        forget_tree(tree.id)
    return ended
