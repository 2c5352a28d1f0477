"""`dispatch` decides what becomes of the calls that a cell waits for, reserves the budget, lets a wave go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.types import interrupt

from rlm_graph import approval, checks, models, paid, prompts, stopping
from rlm_graph.context import take_in
from rlm_graph.errors import ContextError, KernelError, RLMError
from rlm_graph.kernel import pool
from rlm_graph.kernel.intake import weigh
from rlm_graph.kernel.kernel import Kernel, Siblings
from rlm_graph.ledger import Amount, Limit, Limits
from rlm_graph.nodes.cell import Node, kernel_at_rest, work_of, working_on
from rlm_graph.nodes.verify import in_doubt, settle_on_record
from rlm_graph.settings import Settings
from rlm_graph.state import Asked, Call, Reply, State, Wave
from rlm_graph.tokens import estimate
from rlm_graph.tree import MOST_KEPT, NoRoom, Tree
from rlm_graph.trees import tree_of
from rlm_graph.usage import total_cost

BATCH = 100
"""Calls in one `ask` task: a `Send` each would cost milliseconds a call and grow with the square of their number."""

NESTED_AT_ONCE = 200
"""Nested RLMs, and tools that ask a human, in one superstep: a `Send` each."""

MOST_REFUSALS = 1_000
"""Refusals after which a cell that goes on asking is ended, those of a batch taken for one: each is kept on record."""

MOST_REFUSED = 20_000
"""The same in calls, where there was more than one batch."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What becomes of each waiting call, by call id. `plain` are those that an `ask` task answers."""

    plain: tuple[str, ...]
    nested: tuple[str, ...]
    refused: dict[str, Reply]


def decide(
    calls: Mapping[str, Call],
    depth: int,
    limits: Limits,
    models_known: Sequence[str],
    window: int | None,
    again: Mapping[str, int | None] = MappingProxyType({}),
) -> Decided:
    """Which calls are plain, which become nested RLMs, and which cannot be made. A pure function.

    Args:
        calls: The waiting calls.
        depth: Depth of the RLM whose cell calls.
        limits: The limits.
        models_known: Names that `llm_query(…, model=…)` may use here.
        window: Tokens that the sub-model can be given, where known.
        again: The same of the model that answers those among the calls which are asked again.
    """
    plain: list[str] = []
    nested: list[str] = []
    refused: dict[str, Reply] = {}
    may_call, may_nest = depth < limits.max_depth, depth + 2 <= limits.max_depth
    for id, call in calls.items():
        tokens = estimate(len(prompt_of(call)))
        takes = again.get(id, window)
        too_long = takes is not None and tokens > takes
        if call.kind == "tool":
            plain.append(id)  # no model answers it, so neither depth nor window bounds it
        elif not may_call:
            refused[id] = _error("BudgetExceeded", prompts.NO_DEPTH.format(depth=depth, max_depth=limits.max_depth))
        elif call.model is not None and call.model not in models_known:
            refused[id] = _error("SubCallError", prompts.NO_SUCH_MODEL.format(model=call.model[:60]))
        elif may_nest and (call.kind == "rlm" or (call.kind == "llm" and too_long)):
            nested.append(id)
        elif too_long:
            refused[id] = _error("PromptTooLong", prompts.TOO_LONG.format(tokens=tokens, window=takes))
        else:
            plain.append(id)
    return Decided(tuple(plain), tuple(nested), refused)


def prompt_of(call: Call) -> str:
    """The one prompt of a call that is answered by a plain model call."""
    if call.kind == "sub":
        return checks.prompt_of(call.prompt, call.context)
    if call.kind != "rlm" or call.context is None:
        return call.prompt
    text = call.context if isinstance(call.context, str) else _as_text(call.context)
    return f"{call.prompt}\n\n{text}"


def asked_of(kernel: Kernel, id: str) -> Asked:
    """A waiting call as it stands in the batch of an `ask` task."""
    call = kernel.waiting[id]
    asked: Asked = {
        "id": id,
        "kind": "llm",
        "prompt": prompt_of(call),
        "context": None,
        "nth": kernel.nth[id],
        "place": call.place,
    }
    if call.kind == "sub":
        attempt = kernel.attempts[id]
        about: Any = {"prompt": attempt.prompt, "context": attempt.context}
        return {**asked, "id": attempt.id, "kind": "sub", **about, "nth": _nth(kernel, id)}
    if call.kind == "tool":
        return {**asked, "kind": "tool", "prompt": call.prompt, "context": call.context}
    return asked


def paid_as(kernel: Kernel, id: str) -> str:
    """The id under which a waiting call is reserved, asked and kept: of a structured ask, that of its next attempt."""
    return kernel.attempts[id].id if id in kernel.attempts else id


def asked_next(kernel: Kernel, id: str) -> Call:
    """A waiting call, a structured ask with what its next attempt is about: the texts that are still open."""
    call, attempt = kernel.waiting[id], kernel.attempts.get(id)
    return call if attempt is None or not attempt.number else replace(call, context=attempt.context)


def asking(kernel: Kernel, id: str, settings: Settings) -> Settings:
    """The parameters by which a waiting call is asked next: those for asking again, where it is."""
    attempt = kernel.attempts.get(id)
    return settings.asking_again() if attempt is not None and attempt.again else settings


def _nth(kernel: Kernel, id: str) -> int:
    """How many equal prompts came before: each attempt is a sample of its own, also where a cache is asked."""
    return kernel.nth[id] * 100 + kernel.attempts[id].number


def nested_question(call: Call) -> tuple[str, Any]:
    """Question and context of the RLM that a call becomes. Without a context, the text is the child's context."""
    if call.kind == "rlm" and call.context is not None:
        return call.prompt, call.context
    return prompts.NESTED_QUESTION, call.prompt


def dispatch(settings: Settings, depth: int) -> Node:
    """The node `dispatch` of an RLM at `depth`."""

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        tree = await tree_of(state["tree"], settings.limits, settings.store, config)
        work = work_of(state, settings, depth)
        async with working_on(work.run) as hold:
            try:
                kernel = await kernel_at_rest(hold, work, tree, settings)
            except KernelError as error:
                if error.cause == "start":
                    raise
                return {"wave": _nothing(state)}  # the cell's own node tells the root how its kernel ended
            await settle_on_record(kernel, tree, settings)
            below, window = settings.model(depth + 1), models.window_of(settings.asking_again().model(depth + 1))
            calls = {id: asked_next(kernel, id) for id in kernel.waiting}
            again = {id: window for id, attempt in kernel.attempts.items() if attempt.again}
            decided = decide(calls, depth, settings.limits, [models.name_of(below)], work.window, again)
            await refuse(kernel, tree, decided.refused)
            limit = await _approved(state, kernel, tree, settings, depth, decided.nested)
            wave = await _wave(state, kernel, tree, settings, depth, decided)
        if wave["nested"] and models.is_synchronous():
            stopping.heed_ctrl_c(work.run)
        return {"wave": wave, **limit}

    return Node(act, "dispatch")


async def refuse(kernel: Kernel, tree: Tree, refused: dict[str, Reply]) -> None:
    """Tells the cell, and the record, which of its calls cannot be made; of one asked before, what there is, marked.

    A cell that goes on and on asking for what it cannot have is ended.
    """
    kernel.turned_away.update(kernel.waiting[id].group or id for id in refused if id in kernel.waiting)
    partly = {
        id: in_doubt(kernel.attempts[id], reply)
        for id, reply in refused.items()
        if id in kernel.attempts and kernel.attempts[id].number
    }
    wholly = {id: reply for id, reply in refused.items() if id not in partly}
    if partly:
        await tree.join(partly)
    if wholly:
        await tree.refuse(wholly)
    kernel.deliver({**partly, **wholly})
    times, calls = len(kernel.turned_away), kernel.turned_away.total()
    if times > MOST_REFUSALS or (times > 1 and calls > MOST_REFUSED):
        pool.give_up(kernel)


def reserve(
    kernel: Kernel, group: Sequence[str], tree: Tree, settings: Settings, depth: int, most: int | None = None
) -> Reply | Literal["reserved", "unasked"]:
    """Reserves room for calls that were made together; what they hear instead, where there is none.

    Args:
        kernel: Where they wait.
        group: Their ids; those asked again stand by themselves.
        tree: Whose ledger it is.
        settings: The RLM's parameters.
        depth: Depth of the RLM whose cell calls.
        most: See `Ledger.reserve`.
    """
    calls = [asked_next(kernel, id) for id in group]
    weights = {paid_as(kernel, id): weigh(kernel.waiting[id]) for id in group}
    if not tree.has_space(weights):
        return _error("BudgetExceeded", prompts.NO_SPACE.format(most=MOST_KEPT))
    by = asking(kernel, group[0], settings)
    need = paid.least_of(tree, by, depth + 1, [prompt_of(c) for c in calls if c.kind in ("llm", "sub")])
    verdict = tree.ledger.reserve([paid_as(kernel, id) for id in group], most, need)
    if verdict == "reserved":
        tree.take_space(weights)
    if verdict == "reserved" or verdict == "unasked":
        return verdict
    return over_budget(tree, len(group), need, verdict)


def over_budget(tree: Tree, asked: int, need: Amount, limit: Limit) -> Reply:
    """What calls hear that do not fit the ledger."""
    return _error("BudgetExceeded", prompts.over_budget(asked, need, tree.ledger.left(), limit))


def without_room(no_room: NoRoom, tree: Tree, most: Amount) -> Reply:
    """What a call hears that was cut off, or for which there was no room when it was about to start."""
    if no_room.cut_off:
        return _error("SubCallError", prompts.CUT_OFF)
    return over_budget(tree, 1, most, no_room.limit)


def cost_of(kernel: Kernel, ids: Sequence[str], settings: Settings, depth: int) -> float | None:
    """What waiting calls will cost in US dollars, roughly; what nested RLMs will ask is not in it."""
    first: list[str] = []
    again: list[str] = []
    for id in ids:
        if (call := asked_next(kernel, id)).kind != "tool":
            (first if asking(kernel, id, settings) is settings else again).append(prompt_of(call))
    by = ((settings, first), (settings.asking_again(), again))
    return total_cost(paid.about(each, depth + 1, asked, approval.USUAL_REPLY) for each, asked in by if asked)


async def _approved(
    state: State, kernel: Kernel, tree: Tree, settings: Settings, depth: int, nested: Sequence[str]
) -> dict[str, Any]:
    """Asks a human where the waiting calls would exceed what was approved; refuses what was not.

    A resumed node runs again from its top: so this comes before anything is reserved, and reserves nothing itself.
    """
    step = settings.approve_above
    ids = list(kernel.waiting)
    if step is None:
        return {}
    # Another branch of the tree may have been approved since: who was asked is heard all the same.
    about = f"{state['run']}.{len(state.get('journal') or [])}.{(state['wave'] or {'number': 0})['number']}"
    cost, so_far = cost_of(kernel, ids, settings, depth), tree.ledger.cost_so_far()
    calls = tree.ledger.with_these([paid_as(kernel, id) for id in ids])
    within = (await tree.approved(step)).within(calls, so_far + (cost or 0.0))
    if within and not (await tree.known_asked(about)):
        return {}
    if not tree.lasting:
        raise RLMError(
            "approve_above needs a checkpointer and a thread_id: without them nobody can be asked and answer"
        )
    await tree.note_asked(about)
    allowed, complaint = None, ""
    prompted = [asked_next(kernel, id) for id in ids if kernel.waiting[id].kind != "tool"]
    tokens = sum(estimate(len(prompt_of(call))) for call in prompted)
    asked = dict.fromkeys(models.name_of(asking(kernel, id, settings).model(depth + 1)) for id in ids)
    while allowed is None:
        had = tree.ledger.with_these(())
        request = approval.request(kernel.waiting, ", ".join(asked), len(nested), had, tokens, cost)
        said = interrupt({**request, "complaint": complaint} if complaint else request)
        allowed, complaint = approval.calls_allowed(said, len(ids)), approval.not_understood(said)
    kept_back, let_go = ids[allowed:], [paid_as(kernel, id) for id in ids[:allowed]]
    so_far += cost_of(kernel, ids[:allowed], settings, depth) or 0.0
    told = prompts.KEPT_BACK.format(allowed=allowed, asked=len(ids))
    await refuse(kernel, tree, dict.fromkeys(kept_back, _error("BudgetExceeded", told)))
    await tree.approve(step.after(tree.ledger.with_these(let_go), so_far, more=not kept_back))
    return {"limit": "refused"} if kept_back else {}


async def _wave(state: State, kernel: Kernel, tree: Tree, settings: Settings, depth: int, decided: Decided) -> Wave:
    """Reserves what fits, group by group, and stores what the tasks of this wave will ask."""
    breadth = settings.limits.max_breadth
    nests = set(decided.nested)
    order = [id for id in kernel.waiting if id not in decided.refused]
    again = {id for id in order if id in kernel.attempts and kernel.attempts[id].number}
    for group in groups(kernel.waiting, order, again):
        verdict = reserve(kernel, group, tree, settings, depth)
        if isinstance(verdict, Reply):
            await refuse(kernel, tree, dict.fromkeys(group, verdict))
    going = [id for id in order if id in kernel.waiting][:breadth]
    humans = await tree.asking([id for id in going if kernel.waiting[id].kind == "tool"])
    plain = [id for id in going if id not in nests and id not in humans]
    alone = [id for id in going if id in humans][:NESTED_AT_ONCE]
    nested = [id for id in going if id in nests][:NESTED_AT_ONCE]
    # One part of what is left stays for the other calls of the tree.
    parts = range(len(nested) + 1, 1, -1)
    keys = [await _nest(kernel, id, tree, settings, n) for id, n in zip(nested, parts, strict=True)]
    # LangGraph runs a single task of a synchronous run in the caller's own thread, where Ctrl-C reaches it.
    batch = max(1, len(plain)) if models.is_synchronous() else BATCH
    batches = [
        await tree.put({paid_as(kernel, id): asked_of(kernel, id) for id in plain[at : at + batch]})
        for at in range(0, len(plain), batch)
    ]
    sent = [key for key in keys if key]
    askings = [await tree.put({id: asked_of(kernel, id)}) for id in alone]
    kernel.deferred = set(kernel.waiting) - set(plain) - set(nested) - set(alone)
    kernel.siblings = Siblings(expected=max(0, len(batches) - 1) + len(sent) + len(askings))
    return {
        **_nothing(state),
        "kernel": kernel.key,
        "batches": batches,
        "alone": askings,
        "nested": sent,
        "calls": len(plain) + len(askings) + len(sent),
        "allowance": max(0, min(breadth - len(going), await _unasked(tree, settings))),
    }


async def _unasked(tree: Tree, settings: Settings) -> int:
    """How many more calls may be made before a human is to be asked."""
    step = settings.approve_above
    approved = await tree.approved(step) if step is not None else approval.Approval()
    if approved.calls is None:
        return settings.limits.max_calls
    return approved.calls - tree.ledger.with_these(())


def _nothing(state: State) -> Wave:
    """A wave that lets nothing go."""
    last = state["wave"]
    return {
        "number": last["number"] + 1 if last else 1,
        "batches": [],
        "alone": [],
        "nested": [],
        "calls": 0,
        "allowance": 0,
        "kernel": "",
        "uncertain": 0,
    }


async def _nest(kernel: Kernel, id: str, tree: Tree, settings: Settings, parts: int) -> str | None:
    """Stores what a nested RLM will be asked; a context that cannot be one is told to the cell.

    One that runs elsewhere keeps a ledger of its own, so it gets a share of what is left: one of so many parts.
    """
    question, given = nested_question(kernel.waiting[id])
    try:
        source = await asyncio.to_thread(take_in, given, settings.store, from_cell=True)
    except ContextError as error:
        await tree.record(id, _error("SubCallError", f"rlm_query: {error}"))
        kernel.deliver(await tree.replies([id]))
        return None
    share = None
    if settings.sub_graph is None:
        pool.prepare(id, settings.kernel_options(), parent=kernel.run)
    else:
        share = tree.ledger.lend(id, parts)
    place = kernel.waiting[id].place
    return await tree.put({"id": id, "question": question, "source": source, "share": share, "place": place})


def groups(calls: Mapping[str, Call], ids: Iterable[str], again: Container[str] = ()) -> list[list[str]]:
    """Calls of one `*_batched` call stand or fall together; others, and those asked `again`, by themselves."""
    together: dict[object, list[str]] = {}
    for id in ids:
        together.setdefault(id if id in again else calls[id].group or id, []).append(id)
    return list(together.values())


def _error(kind: str, message: str) -> Reply:
    return Reply(error=kind, message=message)


def _as_text(context: Any) -> str:
    if isinstance(context, list) and all(isinstance(item, str) for item in context):
        return "\n\n".join(context)
    return json.dumps(context, ensure_ascii=False)
