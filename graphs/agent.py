"""An agent that works with texts which never enter its window: `create_agent` with the tool and the middleware.

Its model is a fixed plan in place of a language model, and says so. For a real agent put a model's name such as
`"openai:gpt-5-mini"` in place of `Plan()`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from uuid import uuid4

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import Field
from typing_extensions import TypedDict

from graphs.samples import SAMPLES
from rlm_graph import RLMMiddleware, create_rlm_tool, hold
from rlm_graph.context import read_text
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.passages import best_of
from rlm_graph.store import default_store

NOTE = "(The agent's model is a fixed plan, no language model.)"


class Plan(BaseChatModel):
    """Opens the sample that the human names, asks about what was kept of it, and passes the answer on."""

    @property
    def _llm_type(self) -> str:
        return "fixed-plan"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        last = max(at for at, message in enumerate(messages) if isinstance(message, HumanMessage))
        question, _, rest = messages[last].text.partition("\n")
        results = [m for m in messages[last:] if isinstance(m, ToolMessage)]
        if results and results[-1].name != open_sample.name:
            return AIMessage(f"{results[-1].text}\n\n{NOTE}")
        if results:
            return _call("ask_text", question=question, source=open_sample.name)
        if named := re.search(r"^Read the sample ([\w-]+)\.$", rest, re.M):
            return _call(open_sample.name, name=named[1])
        text = messages[last - 1].text if last and isinstance(messages[last - 1], HumanMessage) else ""
        if kept := re.search(r"\bkept as ([0-9a-f]{32})\b", text):
            return _call("ask_text", question=question, source=kept[1])
        if text:
            return AIMessage(f"{best_of(question, text)}\n\n{NOTE}")
        return _call(ask_sample.name, question=question, source="handbook")


def _call(tool: str, **args: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": tool, "args": args, "id": str(uuid4())}])


@tool
def open_sample(name: str) -> str:
    """Gives the whole text of a sample."""
    return read_text(hold(SAMPLES[name], name=name), default_store())


ask_sample = create_rlm_tool(OfflineRoot(), OfflineReader(), contexts=SAMPLES, name="ask_sample")


class Form(TypedDict, total=False):
    """A question to an agent, and what it is to read: a text of yours or one of the samples."""

    question: Annotated[str, Field(title="Question", description="What the agent is to find out.")]
    text: Annotated[str, Field(title="Text", description="A text of yours. Leave it empty to have a sample read.")]
    sample: Annotated[
        Literal["handbook", "logbook", "python-json", "python-asyncio"],
        Field(title="Sample", description="A text that the agent opens. Where no text is given."),
    ]


class Said(TypedDict, total=False):
    """What the agent said."""

    answer: str
    messages: Annotated[list[AnyMessage], add_messages]


class State(Form, Said, total=False):
    pass


def ask(state: State) -> dict[str, Any]:
    """Turns the form into messages to the agent."""
    if text := state.get("text"):
        return {"messages": [HumanMessage(text), HumanMessage(state["question"])]}
    read = f"\nRead the sample {state['sample']}." if state.get("sample") else ""
    return {"messages": [HumanMessage(state["question"] + read)]}


def tell(state: State) -> dict[str, str]:
    """The agent's last words."""
    return {"answer": state["messages"][-1].text}


graph = StateGraph(State, input_schema=Form, output_schema=Said)
graph.add_node("ask", ask)
graph.add_node(
    "agent",
    create_agent(Plan(), [open_sample, ask_sample], middleware=[RLMMiddleware(OfflineRoot(), OfflineReader())]),
)
graph.add_node("tell", tell)
graph.add_edge(START, "ask")
graph.add_edge("ask", "agent")
graph.add_edge("agent", "tell")
graph.add_edge("tell", END)
agent = graph.compile(name="agent")
