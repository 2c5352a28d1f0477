"""Asking a model within the ledger: room is held before the call starts, and settled with what it came to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig

from rlm_graph import models
from rlm_graph.ledger import NOTHING, Amount, Spent, Wanted
from rlm_graph.settings import Settings
from rlm_graph.tokens import count_tokens, estimate
from rlm_graph.tree import NoRoom, Tree

_FRAME = 8
"""Tokens that a message has beside its text, roughly."""

_SHORT, _SHORTEST = 1_000, 200
"""Tokens of a reply that do where there is no room for more: at first, and once a model's replies are known."""

_KNOWN = 3
"""Replies of a model after which they say how long the next one will be."""

_LONGER = 4
"""So many times its longest reply so far a call may have where it would wait for room to have more."""

_PARTS = 8
"""A reply may come to this part of what is left, or to its part with all that may be in flight, if that is less."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a model call has to itself while it is in flight.

    Attributes:
        threads: Where a synchronous run calls.
        reply: Tokens that its reply may have, where the model has to be told.
    """

    threads: ThreadPoolExecutor
    reply: int | None


async def ask(
    tree: Tree,
    settings: Settings,
    depth: int,
    id: str,
    messages: Sequence[BaseMessage],
    config: RunnableConfig,
    *,
    turn: bool = False,
) -> tuple[AIMessage, Spent]:
    """One call of the model that works at `depth`. What it came to is the caller's to settle, under the same id.

    Args:
        tree: Whose ledger it is.
        settings: The RLM's parameters.
        depth: Of the model.
        id: The call's id, or the root turn's.
        messages: What is asked.
        config: The node's configuration.
        turn: Whether it is a root's turn.

    Raises:
        NoRoom: A limit does not allow it, or cut it off.
    """
    model = settings.model(depth)
    async with place(tree, settings, depth, id, messages, turn=turn) as at:
        tries = settings.limits.max_retries
        message = await tree.in_time(models.ask(model, messages, config, at.threads, tries, at.reply))
    return message, spent_on(message, messages, settings, depth)


@asynccontextmanager
async def place(
    tree: Tree, settings: Settings, depth: int, id: str, messages: Sequence[BaseMessage], *, turn: bool = False
) -> AsyncIterator[Place]:
    """A place among the model calls in flight, and room in the ledger, for one call of the model that works at `depth`.

    Raises:
        NoRoom: A limit does not allow it.
    """
    texts = [m.text for m in messages]
    keep = _next_turn(tree, settings, texts) if depth == 0 else None
    bounded, read = _bounded(tree), _prompt(texts) if _bounded(tree) else 0
    async with (
        tree.slot() as threads,
        tree.room(id, lambda: _wanted(tree, settings, depth, read, turn=turn), keep) as held,
    ):
        told = held.tokens - read
        as_set = told == models.maximum_set(settings.model(depth))
        try:
            yield Place(threads, told if bounded and not as_set else None)
        except NoRoom as no_room:
            if no_room.cut_off:
                tree.ledger.note_cut_off(id)
            raise


def spent_on(reply: AIMessage, messages: Sequence[BaseMessage], settings: Settings, depth: int) -> Spent:
    """Tokens and cost of a call: as the provider counted them, else as we estimate them."""
    usage = reply.usage_metadata
    if usage is None:
        usage = _usage(sum(count_tokens(m.text) for m in messages), count_tokens(reply.text))
    cost = settings.cost(depth)
    dollars = cost(usage) if cost is not None else None
    return Spent(models.name_of(settings.model(depth)), depth, usage["input_tokens"], usage["output_tokens"], dollars)


def need_of(tree: Tree, settings: Settings, depth: int, texts: Sequence[str], *, turn: bool = False) -> Amount:
    """What there has to be room for so that a call with these messages starts."""
    return _wanted(tree, settings, depth, _prompt(texts), turn=turn).least


def _wanted(tree: Tree, settings: Settings, depth: int, read: int, *, turn: bool) -> Wanted:
    """What a call with a prompt of `read` tokens wants room for."""
    if not _bounded(tree):
        return Wanted(NOTHING)
    model = settings.model(depth)
    replied, ample = tree.ledger.replied(models.name_of(model), turn=turn), _ample(tree, settings, depth)
    most = max(models.longest_reply(model, ample), replied.longest)
    if models.maximum_set(model) is not None and not models.can_be_told(model):
        return Wanted(_amount(settings, depth, read, most))
    known = replied.count >= _KNOWN
    least = min(most, max(replied.longest * 3 // 2, _SHORTEST if known else _SHORT))
    # A root's turns are no measure of each other: it looks first, and writes at the end.
    soon = min(most, max(replied.longest * _LONGER, _SHORT)) if known and not turn else most
    at_once = _down(most, soon)
    less = [_amount(settings, depth, read, reply) for reply in (*at_once, *_down(soon, least))]
    return Wanted(_amount(settings, depth, read, most), tuple(less), len(at_once))


def _down(most: int, least: int) -> list[int]:
    """The steps from one number of tokens down to another, the first left out."""
    steps = []
    while most > least:
        most = max(least, most * 3 // 4)
        steps.append(most)
    return steps


def _ample(tree: Tree, settings: Settings, depth: int) -> int:
    """Tokens for a reply for which there is room in plenty."""
    left = tree.ledger.left(held=False)
    room = [left.tokens] if left.tokens is not None else []
    cost = settings.cost(depth)
    if left.cost is not None and cost is not None and (price := cost(_usage(0, 1_000_000))) > 0:
        room.append(int(left.cost / price * 1_000_000))
    return min(room, default=0) // max(_PARTS, 1 if depth == 0 else settings.limits.max_concurrency)


def least_of(tree: Tree, settings: Settings, depth: int, prompts: Sequence[str]) -> Amount:
    """What calls with these prompts come to at least."""
    if not _bounded(tree):
        return NOTHING
    return _amount(settings, depth, sum(count_tokens(prompt) for prompt in prompts), 0)


def about(settings: Settings, depth: int, prompts: Sequence[str], reply: int) -> float | None:
    """What calls with these prompts will cost in US dollars, taking `reply` tokens for each reply."""
    cost = settings.cost(depth)
    if cost is None:
        return None
    return cost(_usage(sum(count_tokens(prompt) for prompt in prompts), reply * len(prompts)))


def _next_turn(tree: Tree, settings: Settings, texts: Sequence[str]) -> Amount:
    """What the root's turn after this one can come to at most."""
    if not _bounded(tree):
        return NOTHING
    reply = models.longest_reply(settings.model(0))
    return _amount(settings, 0, _prompt(texts) + reply + estimate(settings.limits.cell_output), reply)


def _bounded(tree: Tree) -> bool:
    limits = tree.ledger.limits
    return limits.max_tokens is not None or limits.max_cost is not None


def _prompt(texts: Sequence[str]) -> int:
    return sum(count_tokens(text) + _FRAME for text in texts)


def _amount(settings: Settings, depth: int, read: int, written: int) -> Amount:
    cost = settings.cost(depth)
    return Amount(read + written, cost(_usage(read, written)) if cost is not None else 0.0)


def _usage(read: int, written: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
