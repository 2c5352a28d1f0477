"""A structured ask of `sub_call(…)`: the sub-model's own structured output where it has one, else JSON by request."""

from __future__ import annotations

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp

from rlm_graph import checks, models, paid, prompts
from rlm_graph.identity import content_hash
from rlm_graph.ledger import Spent
from rlm_graph.nodes.plain_call import Answer
from rlm_graph.nodes.plan import refusal_of
from rlm_graph.settings import Settings
from rlm_graph.state import Asked, Reply
from rlm_graph.tree import NoRoom, Tree


def checked_call(settings: Settings, depth: int, tree: Tree, config: RunnableConfig) -> Answer:
    """Who answers the structured asks of an RLM at `depth`. The reply is raw: `verify` reads and checks it."""
    first = _answered_by(settings, depth, tree, config)
    again = _answered_by(settings.asking_again(), depth, tree, config)

    async def answer(asked: Asked) -> tuple[Reply, Spent | None]:
        return await (again if asked["context"].get("again") else first)(asked)

    return answer


def _answered_by(settings: Settings, depth: int, tree: Tree, config: RunnableConfig) -> Answer:
    """The sub-model of these parameters, or the cache."""
    model, cache = settings.model(depth + 1), settings.cache
    name, settings_hash = models.name_of(model), models.settings_hash(model)
    shown = models.unheard(models.named(config, "sub_call"))

    async def answer(asked: Asked) -> tuple[Reply, Spent | None]:
        prompt = checks.prompt_of(asked["prompt"], asked["context"])
        key = (("rlm_graph",), content_hash([settings_hash, "sub", prompt, asked["nth"]]))
        if cache is not None and key in (known := await cache.aget([key])):
            return Reply(text=known[key]), None
        reply, spent = await from_model(asked, prompt)
        if cache is not None and reply.text is not None:
            await cache.aset({key: (reply.text, None)})
        return reply, spent

    async def from_model(asked: Asked, prompt: str) -> tuple[Reply, Spent | None]:
        messages = [HumanMessage(prompt)]
        form = checks.form_of(checks.read_ask(asked["context"]))
        try:
            async with paid.place(tree, settings, depth + 1, asked["id"], messages) as place:
                tries = settings.limits.max_retries
                noted = models.noted_call(shown, asked)
                asking = models.ask_structured(model, messages, form, noted, place.threads, tries, place.reply)
                message, text = await tree.in_time(asking)
        except (GraphBubbleUp, NoRoom):
            raise
        except Exception as error:
            told = prompts.MODEL_FAILED.format(model=name, error=f"{type(error).__name__}: {models.first_line(error)}")
            return Reply(error="SubCallError", message=told), None
        spent = paid.spent_on(message, messages, settings, depth + 1)
        if reason := refusal_of(message):
            told = prompts.MODEL_REFUSED.format(model=name, reason=reason)
            return Reply(error=checks.REFUSED, message=told), spent
        if not text.strip():
            return Reply(error="SubCallError", message=prompts.MODEL_SILENT.format(model=name)), spent
        return Reply(text=text), spent

    return answer
