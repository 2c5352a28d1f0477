"""`plan` is the root model's turn: it sees question, description and the cells so far, and replies with cells."""

from __future__ import annotations

import time
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from rlm_graph import checks, models, paid, prompts
from rlm_graph.context import describe
from rlm_graph.dialect import Parsed, cells_of
from rlm_graph.errors import ModelError, NothingRead
from rlm_graph.history import root_messages
from rlm_graph.identity import content_hash
from rlm_graph.ledger import Limits
from rlm_graph.nodes.cell import Node, working_on
from rlm_graph.settings import Settings
from rlm_graph.state import Reply, State, Turn
from rlm_graph.trace import said
from rlm_graph.trace.watched import say
from rlm_graph.tree import NoRoom, Tree
from rlm_graph.trees import tree_of

NOTHING_READ = "the root answered from the question alone: no cell has run, so nothing of the context was read"


def plan(settings: Settings, depth: int) -> Node:
    """The node `plan` of an RLM at `depth`."""

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        tree = await tree_of(state["tree"], settings.limits, settings.store, config)
        turns = state["turns"][state["start"]["turn"] :] if state.get("turns") else []
        note = prompts.left_note(
            state["notice"],
            turns_left=settings.limits.max_turns - len(turns),
            left=tree.ledger.left(),
            exhausted=tree.ledger.limit_reached() is not None,
        )
        # What is left may differ when a killed turn is taken again, so its reply is not on record under that.
        id = turn_id(settings, depth, state["run"], turn_messages(state, settings, depth, turns, state["notice"]))
        messages = turn_messages(state, settings, depth, turns, note)
        async with working_on(state["run"]):
            try:
                unheard = models.unheard(config)
                # A turn on record brings the note that it was told, so that the turns after it are found as well.
                reply, note = await root_reply(tree, settings, depth, state["run"], id, messages, unheard, note)
            except NoRoom as no_room:
                told = not_begun(no_room, tree.ledger.limits) if depth == 0 and not turns else []
                warnings = [*(state.get("warnings") or []), *told]
                return {"over": no_room.limit, "limit": no_room.limit, "warnings": warnings}
            parsed = cells_of(reply.text, state["phase"])
            if from_nothing(state, parsed):
                if state["notice"].startswith(prompts.FROM_NOTHING):
                    raise NothingRead(NOTHING_READ)
                parsed = Parsed((), prompts.FROM_NOTHING)
        turn: Turn = {"note": note, "reply": reply.text}
        update: dict[str, Any] = {"turns": [turn], "queue": list(parsed.cells), "notice": parsed.problem}
        if not parsed.cells:
            update["errors"] = state["errors"] + 1
        return update

    return Node(act, "plan")


def not_begun(no_room: NoRoom, limits: Limits) -> list[str]:
    """What the caller is told where a limit does not allow the very first turn."""
    if no_room.need is None or no_room.limit not in ("max_tokens", "max_cost"):
        return []
    tokens = no_room.limit == "max_tokens"
    need = f"{no_room.need.tokens:,} tokens" if tokens else prompts.dollars(no_room.need.cost)
    limit = f"{limits.max_tokens:,}" if tokens else prompts.dollars(limits.max_cost)
    return [
        f"nothing was asked: the first turn needs room for about {need}, its prompt and a reply together, and "
        f"{no_room.limit} is {limit}: raise it, or bound the model's replies (its max_tokens)"
    ]


def from_nothing(state: State, parsed: Parsed) -> bool:
    """Whether a reply delivers an answer in prose though no cell has ever run: from the question alone."""
    return parsed.in_prose and all(cell["lost"] for cell in state.get("journal") or [])


def turn_messages(state: State, settings: Settings, depth: int, turns: list[Turn], note: str) -> list[BaseMessage]:
    """What the root is told before this turn."""
    return root_messages(
        prompts.system_for(
            settings.limits, depth, settings.system_prompt, [t.spec for t in settings.tools], settings.schema(depth)
        ),
        state["asked"],
        describe(state["sources"][-1]),
        state.get("earlier") or [],
        turns,
        (state.get("journal") or [])[state["start"]["cell"] :],
        note,
        settings.window(depth),
    )


def turn_id(settings: Settings, depth: int, run: str, messages: list[BaseMessage]) -> str:
    """The durable name of a root turn: who is told what."""
    return content_hash([run, models.settings_hash(settings.model(depth)), [[m.type, m.text] for m in messages]])


async def root_reply(
    tree: Tree,
    settings: Settings,
    depth: int,
    run: str,
    id: str,
    messages: list[BaseMessage],
    config: RunnableConfig,
    note: str = "",
) -> tuple[AIMessage, str]:
    """The root's reply to these messages: the one on record under the turn's id, else a new one, kept before its use.

    With it comes the note that it was told: of what is left, which may differ when a turn is taken again.

    Raises:
        ModelError: The model could not be called.
        NoRoom: The limits do not allow the turn.
    """
    if (known := await tree.turn(id)) is not None:
        return known
    began = time.monotonic()
    try:
        shown = models.named(config, "root", rlm_run=run, rlm_depth=depth)
        reply, spent = await paid.ask(tree, settings, depth, id, messages, shown, turn=True)
    except NoRoom:
        raise
    except Exception as error:
        name = models.name_of(settings.model(depth))
        at = models.address_of(settings.model(depth))
        told = f"the root model {name!r} failed: {models.first_line(error)}"
        raise ModelError(f"{told} (asked at {at})" if at else told) from error
    await say(tree, said.turn(run, depth, id, reply.text, spent, time.monotonic() - began))
    await tree.record_turn(id, reply, spent, note)
    return reply, note


def refusal_of(message: AIMessage) -> str:
    """Why the model refused; empty where it did not."""
    refusal = message.additional_kwargs.get("refusal")
    reason = _end_of(message)
    return str(refusal or reason)[:300] if refusal or reason in {"content_filter", "refusal"} else ""


def _end_of(message: AIMessage) -> Any:
    return message.response_metadata.get("finish_reason") or message.response_metadata.get("stop_reason")


def reply_of(message: AIMessage, name: str) -> Reply:
    """What a model's message means for the cell: a text, or an error where there is none to trust."""
    reason = _end_of(message)
    if refused := refusal_of(message):
        return Reply(error=checks.REFUSED, message=prompts.MODEL_REFUSED.format(model=name, reason=refused))
    text = message.text
    if not text.strip():
        return Reply(error="SubCallError", message=prompts.MODEL_SILENT.format(model=name))
    if reason in {"length", "max_tokens"}:
        told = prompts.MODEL_CUT.format(model=name, chars=len(text))
        return Reply(error="SubCallError", message=told)
    return Reply(text=text)
