"""A plain call: one prompt, asked of the sub-model or found in the cache."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp

from rlm_graph import models, paid, prompts
from rlm_graph.identity import content_hash
from rlm_graph.ledger import Spent
from rlm_graph.nodes.dispatch import without_room
from rlm_graph.nodes.plan import reply_of
from rlm_graph.settings import Settings
from rlm_graph.state import Asked, Reply
from rlm_graph.tree import NoRoom, Tree

Answer = Callable[[Asked], Coroutine[Any, Any, tuple[Reply, Spent | None]]]
"""Who answers the calls of one kind: the reply, and what it cost where it cost tokens."""


def plain_call(settings: Settings, depth: int, tree: Tree, config: RunnableConfig) -> Answer:
    """Who answers the plain calls of an RLM at `depth`: the model one level deeper, or the cache."""
    model, cache = settings.model(depth + 1), settings.cache
    name, settings_hash = models.name_of(model), models.settings_hash(model)
    shown = models.unheard(models.named(config, "sub_call"))

    async def answer(asked: Asked) -> tuple[Reply, Spent | None]:
        if cache is None:
            return await from_model(asked)
        # Equal prompts of one cell have an entry each.
        key = (("rlm_graph",), content_hash([settings_hash, asked["prompt"], asked["nth"]]))
        known = await cache.aget([key])
        if key in known:
            return Reply(text=known[key]), None
        reply, spent = await from_model(asked)
        if reply.text is not None:
            await cache.aset({key: (reply.text, None)})
        return reply, spent

    async def from_model(asked: Asked) -> tuple[Reply, Spent | None]:
        prompt = asked["prompt"]
        messages = [HumanMessage(prompt)]
        try:
            noted = models.noted_call(shown, asked)
            message, spent = await paid.ask(tree, settings, depth + 1, asked["id"], messages, noted)
        except GraphBubbleUp:
            raise
        except NoRoom as no_room:
            return without_room(no_room, tree, paid.need_of(tree, settings, depth + 1, [prompt])), None
        except Exception as error:
            told = prompts.MODEL_FAILED.format(model=name, error=f"{type(error).__name__}: {models.first_line(error)}")
            return Reply(error="SubCallError", message=told), None
        return reply_of(message, name), spent

    return answer
