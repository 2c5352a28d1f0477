"""A recorded run as far as one of its cells, given to a model that goes on from there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from langchain_core.runnables import Runnable
from langchain_core.stores import BaseStore

from rlm_graph import models, prompts
from rlm_graph.context import take_in
from rlm_graph.errors import TraceError
from rlm_graph.identity import call_id, new_run
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.kernel.kernel import payload_of
from rlm_graph.ledger import Limits
from rlm_graph.store import default_store
from rlm_graph.trace.events import shown
from rlm_graph.trace.replay import run_again
from rlm_graph.trace.trajectory import Trajectory
from rlm_graph.tree import INLINE, Tree


async def state_at(
    trajectory: Trajectory,
    cell: int,
    sub_model: Runnable[Any, Any],
    *,
    retry_model: Runnable[Any, Any] | None = None,
    isolation: Isolation = "auto",
    store: BaseStore[str, bytes] | None = None,
) -> dict[str, Any]:
    """The state of a thread that has run the recorded cells before `cell`, for a graph to go on with.

    `await rlm.aupdate_state(config, state, as_node="plan")` puts it into a thread of that graph's. The cells run again
    first, so that nothing is handed over that goes another way now; their replies are put on record in the name of the
    model that answers from here on.

    Args:
        trajectory: What was recorded.
        cell: Index of the cell in whose place the model is asked.
        sub_model: Who answers the calls of the graph that goes on.
        retry_model: Who is asked again there, where that is another.
        isolation: What the recorded code is kept in.
        store: The content store of that graph; None: the default one.

    Raises:
        TraceError: There is no such cell, or the cells before it go another way now, or cannot be replayed.
        ContextError: The context is gone or has changed.
    """
    store = store if store is not None else default_store()
    told = trajectory.asked
    if not 0 <= cell <= len(told.outputs):
        raise TraceError(f"there is no cell {cell}: the run has {len(told.outputs)}, from 0")
    again = await run_again(trajectory, trajectory.top, store, isolation, cell)
    if again.difference is not None:
        raise TraceError(f"it goes another way before cell {cell}: {again.difference}")
    run = new_run()
    record = Tree(f"{run}.replayed", Limits(), store, 1, lasting=True)
    retry = None if retry_model is None else models.settings_hash(retry_model)
    for call, nth, index, reply in again.calls:
        payload = payload_of(call, models.settings_hash(sub_model), retry)
        await record.record(call_id(run, index, payload, nth), reply)
    held = [{"type": "rlm_context", "id": source["id"]} for source in told.run["sources"]]
    sources = [await asyncio.to_thread(take_in, each, store) for each in held]
    number = told.run["number"]
    mine = [each for each in again.cells if each["question"] == number]
    turns = [{"note": "", "reply": shown(turn["reply"])} for turn in told.turns]
    behind = [told.outputs[at] for at in sorted(told.outputs) if at >= cell]
    dropped = [each["phase"] for each in behind if mine and each["turn"] == mine[-1]["turn"]]
    drafts = [done.answer for done in again.done if done.answer is not None]
    return {
        "run": run,
        "tree": f"{run}.{number}",
        "question": "",
        "asked": told.run["question"],
        "earlier": [],
        "sources": sources,
        "started": time.time(),
        "start": {"question": number, "turn": 0, "cell": len(again.cells) - len(mine)},
        "turns": turns[: mine[-1]["turn"] + 1] if mine else [],
        "journal": again.cells,
        "queue": [],
        "running": None,
        "phase": mine[-1]["phase"] if mine else "probe",
        "wave": None,
        "notice": prompts.DROPPED.format(phases=", ".join(dropped)) if dropped else "",
        "errors": 0,
        "draft": await _draft(drafts[-1], record) if drafts else None,
        "limit": None,
        "answer": None,
        "stop_reason": None,
        "warnings": [],
    }


async def _draft(answer: dict[str, Any], record: Tree) -> dict[str, Any]:
    content = answer.get("content")
    small = content is None or (isinstance(content, str) and len(content) <= INLINE)
    return {"ready": False, "content": content if small else {"stored": await record.put(content)}}
