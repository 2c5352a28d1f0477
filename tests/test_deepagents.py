"""An RLM within a deep agent: as one of its sub-agents, and by its middleware."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from deepagents import CompiledSubAgent, create_deep_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from model_server import scripted
from rlm_graph import RLMMiddleware, hold
from scripted_agent import Agent, calls

COUNTS = scripted("```repl compose\nimport re\nFINAL(str(len(re.findall(r'order \\d+ is late', context))))\n```")
ORDERS = "\n".join(f"order {n} is {'late' if n % 100 == 7 else 'fine'}" for n in range(50_000))


def results(messages: list[BaseMessage]) -> list[str]:
    return [m.text for m in messages if isinstance(m, ToolMessage)]


def delegates(messages: list[BaseMessage]) -> AIMessage:
    if found := results(messages):
        return AIMessage(f"{found[0]} are late.")
    task = {"description": "How many orders are late?", "subagent_type": "orders"}
    return calls(("task", task))


def reads(rlm: Any, context: Any) -> CompiledSubAgent:
    """A sub-agent that answers questions about one context."""
    runnable = RunnableLambda(lambda state: {"messages": state["messages"], "context": context}) | rlm
    return CompiledSubAgent(name="orders", description="Answers questions about all orders.", runnable=runnable)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_deep_agent_delegates_to_the_graph(scene: Callable[..., Any], way: str) -> None:
    s = scene(COUNTS)
    model, saver = Agent(act=delegates), InMemorySaver()
    agent = create_deep_agent(model, subagents=[reads(s.rlm(), hold(ORDERS))], checkpointer=saver)
    given, config = {"messages": [("human", "Late?")]}, {"configurable": {"thread_id": "1"}}
    out = agent.invoke(given, config) if way == "invoke" else await agent.ainvoke(given, config)
    assert out["messages"][-1].text == "500 are late."
    assert "order 700 is" not in repr(saver.storage) + repr(saver.blobs) + repr(saver.writes)
    assert not any("order 700 is" in shown for shown in model.shown)


def test_a_human_is_asked_through_the_deep_agent(scene: Callable[..., Any], runs_left_waiting: None) -> None:
    s = scene(scripted("```repl compose\nFINAL(' '.join(llm_query_batched(['a?', 'b?'])))\n```"), lambda request: "5")
    agent = create_deep_agent(
        Agent(act=delegates), subagents=[reads(s.rlm(approve_above=1), hold(ORDERS))], checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    out = agent.invoke({"messages": [("human", "Late?")]}, config)
    assert out["__interrupt__"][0].value["calls"] == 2
    assert agent.invoke(Command(resume="approve"), config)["messages"][-1].text == "5 5 are late."


@tool
def orders() -> str:
    """All orders."""
    return ORDERS


def asks(messages: list[BaseMessage]) -> AIMessage:
    found = results(messages)
    if not found:
        return calls(("orders", {}))
    if len(found) == 1:
        [id] = re.findall("It is kept as ([0-9a-f]{32})", found[0])
        return calls(("ask_text", {"question": "How many are late?", "source": id}), start=1)
    return AIMessage(f"{found[1]} are late.")


def test_the_middleware_keeps_a_long_result_before_the_deep_agent_s_own_does(scene: Callable[..., Any]) -> None:
    s = scene(COUNTS)
    model = Agent(act=asks)
    agent = create_deep_agent(model, [orders], middleware=[RLMMiddleware(s.root, s.sub)])
    out = agent.invoke({"messages": [("human", "Late?")]})
    assert out["messages"][-1].text == "500 are late."
    assert not out.get("files")
    assert "order 700 is" not in repr(out)
