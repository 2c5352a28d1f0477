"""Asking a model within the ledger: room is held before the call starts, and settled with what it came to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig

from rlm_graph import models
from rlm_graph.ledger import NOTHING, Amount, Spent
from rlm_graph.settings import Settings
from rlm_graph.tokens import count_tokens, estimate
from rlm_graph.tree import Tree

_FRAME = 8
"""Tokens that a message has beside its text, roughly."""


async def ask(
    tree: Tree, settings: Settings, depth: int, id: str, messages: Sequence[BaseMessage], config: RunnableConfig
) -> tuple[AIMessage, Spent]:
    """One call of the model that works at `depth`. What it came to is the caller's to settle, under the same id.

    Raises:
        NoRoom: A limit does not allow it, or cut it off.
    """
    model = settings.model(depth)
    async with place(tree, settings, depth, id, messages) as threads:
        message = await tree.in_time(models.ask(model, messages, config, threads, settings.limits.max_retries))
    return message, spent_on(message, messages, settings, depth)


@asynccontextmanager
async def place(
    tree: Tree, settings: Settings, depth: int, id: str, messages: Sequence[BaseMessage]
) -> AsyncIterator[ThreadPoolExecutor]:
    """A place among the model calls in flight, and room in the ledger, for one call of the model that works at `depth`.

    Raises:
        NoRoom: A limit does not allow it.
    """
    texts = [m.text for m in messages]
    keep = _next_turn(tree, settings, texts) if depth == 0 else None
    async with tree.slot() as threads, tree.room(id, most_of(tree, settings, depth, texts), keep):
        yield threads


def spent_on(reply: AIMessage, messages: Sequence[BaseMessage], settings: Settings, depth: int) -> Spent:
    """Tokens and cost of a call: as the provider counted them, else as we estimate them."""
    usage = reply.usage_metadata
    if usage is None:
        usage = _usage(sum(count_tokens(m.text) for m in messages), count_tokens(reply.text))
    cost = settings.cost(depth)
    dollars = cost(usage) if cost is not None else None
    return Spent(models.name_of(settings.model(depth)), depth, usage["input_tokens"], usage["output_tokens"], dollars)


def most_of(tree: Tree, settings: Settings, depth: int, texts: Sequence[str]) -> Amount:
    """What a call with these messages can come to at most."""
    if not _bounded(tree):
        return NOTHING
    return _amount(settings, depth, _prompt(texts), models.longest_reply(settings.model(depth)))


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
