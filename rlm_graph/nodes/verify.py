"""`verify` joins the answers of a wave: checks what was asked by `sub_call(…)`, and sends back what is in doubt.

Plain calls have nothing to check: their replies reached the cell already, and a cell that waits for one that is not on
record goes to `dispatch` again. The answers of structured asks reach it from here. Every attempt at one is on record
under an id of its own, and what stands is a pure function of the attempts, so whoever comes by (this node, or
`dispatch` in another process) settles what the record allows and asks the next attempt.
"""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.runnables import RunnableConfig

from rlm_graph import asks, checks, stopping
from rlm_graph.kernel import pool
from rlm_graph.kernel.kernel import Attempt, Kernel
from rlm_graph.nodes.cell import Node, working_on
from rlm_graph.settings import Settings
from rlm_graph.state import Call, Reply, State
from rlm_graph.tree import Tree
from rlm_graph.trees import tree_of


def verify(settings: Settings) -> Node:
    """The node `verify`."""

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        wave = state["wave"]
        assert wave is not None
        stopping.need_not_heed(state["run"])
        uncertain = 0
        kernel = pool.live_kernel(wave["kernel"])
        if kernel is not None and any(call.kind == "sub" for call in kernel.waiting.values()):
            async with working_on(state["run"]) as hold:
                hold.take(kernel)
                tree = await tree_of(state["tree"], settings.limits, settings.store, config)
                await settle_on_record(kernel, tree, settings)
                uncertain = len(kernel.attempts)
        return {"wave": {**wave, "uncertain": uncertain}}

    return Node(act, "verify")


async def settle_on_record(kernel: Kernel, tree: Tree, settings: Settings) -> None:
    """Gives the cell what stands of its structured asks, and notes in `kernel.attempts` what is to be asked next."""
    held = {id: attempt for id, attempt in kernel.attempts.items() if id in kernel.waiting}
    answered = await tree.replies([attempt.id for attempt in held.values()]) if held else {}
    # Of tens of thousands that wait, each wave answers some: the others are where they were.
    still = {id: attempt for id, attempt in held.items() if attempt.id not in answered}
    moved = {id: call for id, call in kernel.waiting.items() if call.kind == "sub" and id not in still}
    allowed = checks.attempts_allowed(settings.verify, settings.limits.max_retries)
    ids = [checks.attempt_id(id, n) for id in moved for n in range(allowed)]
    known = await tree.replies(ids) if ids else {}
    decided = await asyncio.to_thread(_decided, moved, known, allowed, settings.verify)
    kernel.attempts = still | {id: next for id, next in decided.items() if isinstance(next, Attempt)}
    ended = {id: reply for id, reply in decided.items() if isinstance(reply, Reply)}
    await tree.join(ended)
    kernel.deliver(ended)


def _decided(
    moved: dict[str, Call], known: dict[str, Reply], allowed: int, verify: checks.Verify
) -> dict[str, Reply | Attempt]:
    decided: dict[str, Reply | Attempt] = {}
    for id, call in moved.items():
        replies: list[Reply] = []
        while (reply := known.get(checks.attempt_id(id, len(replies)))) is not None and len(replies) < allowed:
            replies.append(reply)
        try:
            decided[id] = next_of(id, call, replies, allowed, verify)
        except ValueError as error:
            decided[id] = Reply(error="SubCallError", message=asks.BAD_ASK.format(error=error))
    return decided


def next_of(id: str, call: Call, replies: list[Reply], allowed: int, verify: checks.Verify) -> Reply | Attempt:
    """What becomes of a structured ask after these attempts: the reply that the cell gets, or the next attempt.

    Raises:
        ValueError: The ask is not of the form that `sub_call` gives it.
    """
    ask = checks.read_ask(call.context)
    state = checks.settle(ask, replies, verify)
    so_far = checks.delivered(ask, state, verify)
    if not state.open or len(replies) == allowed:
        return Reply(text=so_far)
    wrong = {id: checked.why for id, checked in state.open.items() if checked is not None}
    notes = {} if verify == "twice" else wrong
    texts = {id: ask.texts[id] for id in state.open}
    number = len(replies)
    again = any(why != asks.ONE_OPINION for why in wrong.values())
    asked = {"call": id, "texts": texts, "schema": ask.schema, "quotes": ask.quotes, "notes": notes, "again": again}
    return Attempt(checks.attempt_id(id, number), number, again, call.prompt, asked, so_far)


def in_doubt(attempt: Attempt, refused: Reply) -> Reply:
    """What the cell gets of an ask that cannot be asked again: what stands, and the rest marked."""
    form = asks.TOO_LONG_TO_ASK_AGAIN if refused.error == "PromptTooLong" else asks.NOT_ASKED_AGAIN
    return Reply(text=checks.marked(attempt.so_far, form))
