"""What `create_rlm` was asked for, resolved once and read by every node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.stores import BaseStore
from langgraph.cache.base import BaseCache
from langgraph.pregel.remote import RemoteGraph

from rlm_graph import models, prices
from rlm_graph.approval import Approval
from rlm_graph.budget import Budget
from rlm_graph.checks import Verify
from rlm_graph.kernel.gateway import Gateway
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.kernel.session import KernelOptions
from rlm_graph.ledger import Limits
from rlm_graph.prices import Cost, Prices
from rlm_graph.response import Format
from rlm_graph.tools import UserTool

Model = BaseChatModel | Runnable[Any, AIMessage] | str


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of an RLM.

    Attributes:
        models: The root's model, then one for each depth below it; the last serves all deeper ones.
        limits: The limits of the whole tree.
        system_prompt: The user's own instructions to the root, beside ours.
        direct_below: Tokens below which the context goes straight into one prompt.
        store: Where contexts, payloads and replies are kept.
        cache: Where replies are looked up by content, across runs; None: nowhere.
        approve_above: What a question may do before a human is asked, and between two such askings; None: all.
        root_window: Tokens that the root can be given; None: as its model's profile says.
        costs: How to price the calls of each of `models`; None where a price is not known.
        retry_model: Who is asked again for answers of `sub_call(…)` that are in doubt; None: who was asked before.
        retry_cost: How to price its calls.
        isolation: What keeps the model's code from the rest of the machine.
        contexts: Contexts that a caller may name instead of giving one.
        sub_graph: Where nested RLMs run; None: here.
        name: Who says the answer, in a conversation.
        tools: What the kernel's code may call beside models.
        format: What the answer must look like; None: nothing particular.
        verify: How the answers of `sub_call(…)` are checked.
    """

    models: tuple[Runnable[Any, AIMessage], ...]
    limits: Limits
    system_prompt: str | None
    direct_below: int
    store: BaseStore[str, bytes]
    cache: BaseCache[Any] | None = None
    approve_above: Approval | None = None
    root_window: int | None = None
    costs: tuple[Cost | None, ...] = ()
    retry_model: Runnable[Any, AIMessage] | None = None
    retry_cost: Cost | None = None
    isolation: Isolation | Gateway = "auto"
    contexts: Mapping[str, Any] = field(default_factory=dict)
    sub_graph: RemoteGraph | None = None
    name: str = "rlm"
    tools: tuple[UserTool, ...] = ()
    verify: Verify = "evidence"
    format: Format | None = None

    def model(self, depth: int) -> Runnable[Any, AIMessage]:
        """The model that works at `depth` (0: the root; 1: its sub-calls)."""
        return self.models[min(depth, len(self.models) - 1)]

    @property
    def every_model(self) -> tuple[Runnable[Any, AIMessage], ...]:
        """All that may be asked."""
        return self.models if self.retry_model is None else (*self.models, self.retry_model)

    def asking_again(self) -> Settings:
        """The same for asking again: below the root, `retry_model` works at every depth."""
        if self.retry_model is None:
            return self
        return replace(self, models=(self.model(0), self.retry_model), costs=(self.cost(0), self.retry_cost))

    def window(self, depth: int) -> int | None:
        """Tokens that the root at `depth` can be given, where known."""
        known = models.window_of(self.model(depth))
        return self.root_window if depth == 0 and self.root_window is not None else known

    def cost(self, depth: int) -> Cost | None:
        """How to price the calls of the model that works at `depth`."""
        return self.costs[min(depth, len(self.costs) - 1)] if self.costs else None

    def schema(self, depth: int) -> dict[str, Any] | None:
        """JSON schema of the answer of the RLM at `depth`: only the one at the top answers the caller."""
        return self.format.schema if self.format is not None and depth == 0 else None

    def can_count(self, budget: Budget) -> None:
        """Sees to it that what a caller grants can be counted here.

        Raises:
            PriceError: It bounds the cost, and a price is not known.
        """
        if "max_cost" in budget:
            named = {models.name_of(model): self.cost(depth) for depth, model in enumerate(self.models)}
            if self.retry_model is not None:
                named[models.name_of(self.retry_model)] = self.retry_cost
            prices.known_for(named, "max_cost in a budget")

    def kernel_options(self) -> KernelOptions:
        """The kernel's share of the limits."""
        limits = self.limits
        return KernelOptions(limits.cell_seconds, limits.cell_output, limits.kernel_memory, self.isolation)


def models_by_depth(model: Model, sub_model: Model | Sequence[Model] | None) -> tuple[Runnable[Any, AIMessage], ...]:
    """The root's model followed by the sub-models; without any, the root's own serves at every depth."""
    if sub_model is None:
        below: list[Model] = []
    elif isinstance(sub_model, Sequence) and not isinstance(sub_model, str):
        below = list(sub_model)
    else:
        below = [sub_model]
    return tuple(models.resolve(m) for m in (model, *below))


def costs_of(
    of_each: Sequence[Runnable[Any, AIMessage]], given: Prices | None, limits: Limits, approve_above: Approval | None
) -> tuple[Cost | None, ...]:
    """How to price the calls of each model.

    Raises:
        PriceError: A cost is to be bounded, and a price is not known.
    """
    known = prices.checked(given)
    costs = tuple(prices.cost_of(model, known) for model in of_each)
    named = {models.name_of(model): cost for model, cost in zip(of_each, costs, strict=True)}
    if limits.max_cost is not None:
        prices.known_for(named, "max_cost")
    if approve_above is not None and approve_above.cost is not None:
        prices.known_for(named, "approve_above by cost")
    return costs
