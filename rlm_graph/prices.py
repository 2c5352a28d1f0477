"""What a model's tokens cost, in US dollars: as the user says, else by the table that comes with `genai-prices`.

The network is never asked. A price that is not known stays unknown; it is never taken for zero.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable

from rlm_graph import models
from rlm_graph.errors import PriceError

Prices = Mapping[str, tuple[float, float]]
"""US dollars for a million input and a million output tokens, by the model's name."""

Cost = Callable[[UsageMetadata], float]
"""US dollars of a model call, by its tokens."""


def cost_of(model: Runnable[Any, Any], prices: Prices) -> Cost | None:
    """How to price the calls of a model; None where its price is not known.

    A model that is no language model costs nothing. One that is served elsewhere than at a provider that the table
    knows has no known price, whatever its name.
    """
    name = models.name_of(model)
    if name in prices:
        return _given(*prices[name])
    if models.note_of(model):
        return _given(0.0, 0.0)
    return _listed(name, models.provider_of(model), models.served_at(model))


def checked(prices: Prices | None) -> Prices:
    """The prices that a user gave.

    Raises:
        PriceError: One is not a pair of numbers that are not negative.
    """
    for name, price in (prices or {}).items():
        pair = isinstance(price, tuple | list) and len(price) == 2
        if not pair or not all(isinstance(p, int | float) and not isinstance(p, bool) and p >= 0 for p in price):
            told = f"prices[{name!r}] is {price!r}: give US dollars per million tokens as (input, output)"
            raise PriceError(told)
    return dict(prices or {})


def known_for(costs: Mapping[str, Cost | None], what: str) -> None:
    """Sees to it that every model has a price where a cost is to be bounded.

    Args:
        costs: By the model's name.
        what: The parameter that bounds the cost.

    Raises:
        PriceError: One has none.
    """
    unknown = [name for name, cost in costs.items() if cost is None]
    if unknown:
        pass_this = ", ".join(f"{name!r}: (input, output)" for name in unknown)
        raise PriceError(
            f"{what} needs the price of every model, and none is known for {', '.join(map(repr, unknown))}: "
            f"pass prices={{{pass_this}}} in US dollars per million tokens"
        )


def _given(dollars_in: float, dollars_out: float) -> Cost:
    def cost(usage: UsageMetadata) -> float:
        return (usage["input_tokens"] * dollars_in + usage["output_tokens"] * dollars_out) / 1_000_000

    return cost


def _listed(name: str, provider: str | None, url: str | None) -> Cost | None:
    if (provider is None and url is None) or (url is not None and _is_local(url)):
        return None
    from genai_prices import Usage, calc_price  # a third of a second: only where a price may be found

    at: dict[str, Any] = {"provider_api_url": url} if url is not None else {"provider_id": provider}

    def cost(usage: UsageMetadata) -> float:
        details = usage.get("input_token_details") or {}
        read, written = details.get("cache_read") or 0, details.get("cache_creation") or 0
        counted = Usage(
            input_tokens=max(usage["input_tokens"], read + written),
            output_tokens=usage["output_tokens"],
            cache_read_tokens=read,
            cache_write_tokens=written,
        )
        return float(calc_price(counted, name, **at).total_price)

    try:
        cost(UsageMetadata(input_tokens=1, output_tokens=1, total_tokens=2))
    except LookupError:
        return None
    return cost


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or "." not in host
