"""`RLMMiddleware`: an agent works with texts that never enter its window, and nothing is lost."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.stores import InMemoryByteStore
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from model_server import scripted
from rlm_graph import RLMMiddleware
from rlm_graph.conversation import where_to_cut
from rlm_graph.integrations.kept import kept_id, restore
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.tokens import estimate
from scripted_agent import Agent, calls

LINES = 200_000
"""Of 100 characters each: 20 MB."""
COUNTS = scripted("```repl compose\nimport re\nFINAL(str(len(re.findall(r'order \\d+ is late', context))))\n```")


def kept_ids(messages: list[BaseMessage]) -> list[str]:
    """The ids that the agent can read."""
    return [
        i for m in messages if isinstance(m, ToolMessage) for i in re.findall(r"It is kept as ([0-9a-f]{32})", m.text)
    ]


def order(number: int) -> str:
    state = "late" if number % 1_000 == 7 else "fine"
    return f"order {number} is {state}".ljust(99, ".")


@tool
def orders() -> str:
    """All orders."""
    return "\n".join(order(n) for n in range(LINES))


@tool
def customers() -> str:
    """All customers."""
    return "\n".join(f"customer {n}" for n in range(5_000))


QUESTIONS = ("How many orders are late?", "And how many of them are late?", "Again, how many?")


def asks_three_times(messages: list[BaseMessage]) -> AIMessage:
    results = [m for m in messages if isinstance(m, ToolMessage)]
    if not results:
        return calls(("orders", {}))
    if len(results) <= 3:
        asked = {"question": QUESTIONS[len(results) - 1], "source": kept_ids(messages)[0]}
        return calls(("ask_text", asked), start=len(results))
    return AIMessage(" ".join(m.text for m in results[1:]))


def held_in(saver: InMemorySaver) -> str:
    return repr([saver.storage, saver.blobs, saver.writes])


async def test_an_agent_asks_three_questions_about_20_mb_within_10_000_tokens(
    scene: Callable[..., Any], tmp_path: Path
) -> None:
    s = scene(COUNTS)
    agent_model = Agent(act=asks_three_times)
    file = tmp_path / "threads.sqlite"
    async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
        agent = create_agent(agent_model, [orders], middleware=[RLMMiddleware(s.root, s.sub)], checkpointer=saver)
        out = await agent.ainvoke({"messages": [("human", "Late?")]}, {"configurable": {"thread_id": "1"}})
    assert out["messages"][-1].text == "200 200 200"
    assert len(agent_model.shown) == 5
    assert estimate(sum(map(len, agent_model.shown))) < 10_000
    middle = order(100_000).encode()
    with sqlite3.connect(file) as db:
        rows = [r for (r,) in db.execute("select checkpoint from checkpoints union all select value from writes")]
    assert not any(middle in row for row in rows)
    assert sum(map(len, rows)) < 1_000_000
    [result, *_] = [m for m in restore(out["messages"]) if isinstance(m, ToolMessage)]
    assert result.text == orders.invoke({})


def in_parallel(messages: list[BaseMessage]) -> AIMessage:
    results = [m for m in messages if isinstance(m, ToolMessage)]
    if not results:
        return calls(("orders_of_today", {}), ("customers", {}))
    if len(results) == 2:
        asked = [("ask_text", {"question": "How long is it?", "source": id}) for id in kept_ids(messages)]
        return calls(*asked, start=2)
    return AIMessage(" and ".join(m.text for m in results[2:]))


@tool
def orders_of_today() -> str:
    """The orders of today."""
    return "\n".join(order(n) for n in range(1_000))


MEASURES = scripted("```repl compose\nFINAL(str(len(context)))\n```")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "astream"])
def test_parallel_calls_are_kept_and_asked_side_by_side(scene: Callable[..., Any], way: str) -> None:
    s = scene(MEASURES)
    keeps = RLMMiddleware(s.root, s.sub, direct_below=0)
    saver = InMemorySaver()
    agent = create_agent(Agent(act=in_parallel), [orders_of_today, customers], middleware=[keeps], checkpointer=saver)
    given, config = {"messages": [("human", "Compare.")]}, {"configurable": {"thread_id": "1"}}

    async def streamed() -> None:
        async for _ in agent.astream(given, config, stream_mode=["updates", "messages"], subgraphs=True):
            pass

    if way == "invoke":
        agent.invoke(given, config)
    else:
        asyncio.run(agent.ainvoke(given, config) if way == "ainvoke" else streamed())
    messages = agent.get_state(config).values["messages"]
    assert messages[-1].text == f"{len(orders_of_today.invoke({}))} and {len(customers.invoke({}))}"
    assert order(500) not in held_in(saver)


def offline(**more: Any) -> RLMMiddleware:
    return RLMMiddleware(OfflineRoot(), OfflineReader(), content_store=InMemoryByteStore(), **more)


def test_a_short_result_stays_as_it_is() -> None:
    message = ToolMessage("short", tool_call_id="1")
    assert offline().kept(message) is message


def test_blocks_that_are_no_text_stay_and_all_come_back_as_they_were() -> None:
    picture = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    said = {"type": "text", "text": "word " * 9_000, "cache_control": {"type": "ephemeral"}}
    message = ToolMessage([said, picture, "and more"], tool_call_id="1", additional_kwargs={"mine": 1})
    keeps = offline()
    kept = keeps.kept(message)
    assert len(kept.text) < 3_000
    assert kept.content[1] == picture
    [back] = keeps.restore([kept])
    assert back.content == [said, picture, {"type": "text", "text": "and more"}]
    assert back.additional_kwargs == {"mine": 1}
    assert kept_id(kept) and kept_id(message) is None


def asks_who_paid(messages: list[BaseMessage]) -> AIMessage:
    results = [m for m in messages if isinstance(m, ToolMessage)]
    if not results:
        return calls(("customers", {}))
    if len(results) == 1:
        return calls(("ask_text", {"question": "Who paid?", "source": kept_ids(messages)[0]}), start=1)
    return AIMessage(results[-1].text)


def test_a_short_answer_with_many_citations_is_shown_to_the_agent(scene: Callable[..., Any]) -> None:
    s = scene(scripted("```repl compose\nFINAL('All of them.')\nanswer['citations'] = grep('c', limit=5_000)\n```"))
    agent = create_agent(Agent(act=asks_who_paid), [customers], middleware=[RLMMiddleware(s.root, s.sub)])
    out = agent.invoke({"messages": [("human", "Who paid?")]})
    assert out["messages"][-1].text.startswith("All of them.\n\nCitations:\n[1] text:0-10 'customer 0'\n[2] ")
    [asked] = [m for m in out["messages"] if isinstance(m, ToolMessage) and m.name == "ask_text"]
    assert kept_id(asked) is None and len(asked.artifact["citations"]) == 2_000


def test_a_long_human_message_leaves_its_ends_and_the_state() -> None:
    text = "Please read this report.\n\n" + "x y z. " * 40_000 + "\n\nWhat is wrong in it?"
    model = Agent(act=lambda messages: AIMessage("done"))
    keeps = offline()
    out = create_agent(model, middleware=[keeps]).invoke({"messages": [HumanMessage(text)]})
    assert "Please read this report." in model.shown[0] and "What is wrong in it?" in model.shown[0]
    assert len(model.shown[0]) < 5_000
    assert keeps.restore(out["messages"])[0].text == text


def test_a_long_history_is_one_note_to_the_model_and_whole_in_the_state() -> None:
    talk: list[BaseMessage] = []
    for n in range(100):
        talk += [HumanMessage(f"Question {n}? " + "so " * 300), AIMessage(f"Answer {n}. " + "thus " * 300)]
    model = Agent(act=lambda messages: AIMessage("done"))
    agent = create_agent(model, middleware=[offline(history_above=10_000)])
    out = agent.invoke({"messages": [*talk, HumanMessage("And now?")]})
    assert estimate(len(model.shown[0])) < 10_000
    assert "Answer 99." in model.shown[0] and "Answer 3." not in model.shown[0]
    assert "The earlier part of this conversation" in model.shown[0]
    assert len(out["messages"]) == 202


def asks_the_history(messages: list[BaseMessage]) -> AIMessage:
    if isinstance(messages[-1], ToolMessage):
        return AIMessage(f"You said: {messages[-1].text}")
    note = re.search(r"kept as ([0-9a-f]{32})", messages[0].text)
    return calls(("ask_text", {"question": "Under which flowerpot is the key?", "source": note[1] if note else "?"}))


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_the_agent_asks_about_the_part_of_the_history_that_it_does_not_see(way: str) -> None:
    talk: list[BaseMessage] = []
    for n in range(20):
        talk += [HumanMessage(f"Question {n}? " + "so " * 300), AIMessage(f"Answer {n}. " + "thus " * 300)]
    talk[4] = HumanMessage("The key is under the red flowerpot.")
    model = Agent(act=asks_the_history)
    agent = create_agent(model, middleware=[offline(history_above=4_000)], checkpointer=InMemorySaver())
    given = {"messages": [*talk, HumanMessage("Where is the key?")]}
    config: Any = {"configurable": {"thread_id": "1"}}
    out = agent.invoke(given, config) if way == "invoke" else asyncio.run(agent.ainvoke(given, config))
    assert out["messages"][-1].text == "You said: The key is under the red flowerpot."
    assert "flowerpot" not in model.shown[0] and "Where is the key?" in model.shown[0]


def test_the_history_is_cut_in_steps_and_never_between_a_call_and_its_result() -> None:
    messages: list[BaseMessage] = [HumanMessage("Find it.")]
    cuts = []
    for n in range(60):
        messages += [calls(("look", {"n": n}), start=n), ToolMessage("seen " * 100, tool_call_id=f"c{n}")]
        cuts.append(where_to_cut(messages, 2_000))
        assert not isinstance(messages[cuts[-1]], ToolMessage)
    assert 3 < len(set(cuts)) < 15
    assert cuts == sorted(cuts)


def test_what_the_human_wants_stays_in_sight_when_it_is_long_ago() -> None:
    messages: list[BaseMessage] = [HumanMessage("Find the pier.")]
    for n in range(60):
        messages += [calls(("look", {"n": n}), start=n), ToolMessage("seen " * 100, tool_call_id=f"c{n}")]
    model = Agent(act=lambda messages: AIMessage("done"))
    create_agent(model, middleware=[offline(history_above=2_000)]).invoke({"messages": messages})
    assert "Find the pier." in model.shown[0]


def test_a_command_s_messages_are_kept_too() -> None:
    @tool
    def sends() -> Command[Any]:
        """Sends a long text."""
        return Command(update={"messages": [ToolMessage("word " * 9_000, tool_call_id="c0")]})

    def act(messages: list[BaseMessage]) -> AIMessage:
        return AIMessage("done") if kept_ids(messages) else calls(("sends", {}))

    out = create_agent(Agent(act=act), [sends], middleware=[offline()]).invoke({"messages": [("human", "go")]})
    assert out["messages"][-1].text == "done"
    assert len(out["messages"][2].text) < 3_000


def test_switched_off_again_the_agent_goes_on(scene: Callable[..., Any]) -> None:
    s = scene(MEASURES)
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "1"}}

    def act(messages: list[BaseMessage]) -> AIMessage:
        return AIMessage("done") if kept_ids(messages) else calls(("customers", {}))

    create_agent(Agent(act=act), [customers], middleware=[RLMMiddleware(s.root, s.sub)], checkpointer=saver).invoke(
        {"messages": [("human", "List them.")]}, config
    )
    plain = Agent(act=lambda messages: AIMessage(str(sum(len(m.text) for m in messages))))
    agent = create_agent(plain, [customers], checkpointer=saver)
    assert int(agent.invoke({"messages": [("human", "How much?")]}, config)["messages"][-1].text) < 3_000
    agent.update_state(config, {"messages": restore(agent.get_state(config).values["messages"])})
    assert customers.invoke({}) in [m.text for m in agent.get_state(config).values["messages"]]
