"""Python as a tool of any agent: a kernel a thread, the agent's tools in it, nothing lost and nothing run twice."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt

from conftest import kernels
from rlm_graph import create_python_tool
from rlm_graph.errors import UnusableTool
from rlm_graph.integrations.python_tool import PythonTool
from rlm_graph.kernel.session import close_all
from scripted_agent import Agent, calls

Make = Callable[..., PythonTool]


@pytest.fixture
def make(no_kernel_left: None) -> Iterator[Make]:
    """Makes tools, and closes them after the test."""
    made: list[PythonTool] = []

    def make(**more: Any) -> PythonTool:
        made.append(create_python_tool(**more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def on(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}}


def message(python: BaseTool, code: str) -> ToolMessage:
    """What an agent gets."""
    got = python.invoke({"name": python.name, "args": {"code": code}, "id": "1", "type": "tool_call"})
    assert isinstance(got, ToolMessage)
    return got


SHARED = create_python_tool(name="standard")


class Standard:
    @pytest.fixture(autouse=True)
    def closed(self, runs_left_waiting: None) -> None:
        """Ends the kernel after each test."""

    @property
    def tool_constructor(self) -> BaseTool:
        return SHARED

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"code": "1 + 1"}


class TestStandardUnit(Standard, ToolsUnitTests):
    pass


class TestStandardIntegration(Standard, ToolsIntegrationTests):
    pass


def test_what_is_printed_and_the_last_value_come_back_and_a_failure_says_so(make: Make) -> None:
    python = make(cell_output=200)
    assert python.invoke({"code": "x = 20\nprint('hello')\nx + 1"}) == "hello\n21"
    assert python.invoke({"code": "x = x + 1"}) == "(it printed nothing)"
    failed = message(python, "print(x)\nx / 0")
    assert failed.status == "error"
    assert str(failed.content).startswith("21\nTraceback")
    assert str(failed.content).endswith("ZeroDivisionError: division by zero")
    long = message(python, "print('a' * 10_000)")
    assert (long.status, len(long.content) < 400) == ("success", True)
    assert "characters" in str(long.content)
    assert "NameError: name 'llm_query' is not defined" in str(message(python, "llm_query('x')").content)


async def test_each_thread_has_variables_of_its_own_and_no_thread_is_the_tools(make: Make) -> None:
    python = make()
    await python.ainvoke({"code": "x = 1"}, on("a"))
    missing = await python.ainvoke({"code": "x"}, on("b"))
    assert missing.endswith("(This was the first call: no earlier variables exist.)")
    assert await python.ainvoke({"code": "x"}, on("a")) == "1"
    assert "NameError" in await python.ainvoke({"code": "x"})


async def test_runs_of_one_thread_wait_for_one_another_whoever_starts_them(make: Make) -> None:
    python = make()
    await python.ainvoke({"code": "import time\nseen = []"})
    code = {"code": "before = len(seen)\ntime.sleep(0.03)\nseen.append(before)"}
    await asyncio.gather(
        *(python.ainvoke(code) for _ in range(3)), *(asyncio.to_thread(python.invoke, code) for _ in range(3))
    )
    assert await python.ainvoke({"code": "seen"}) == "[0, 1, 2, 3, 4, 5]"


USER: ContextVar[str] = ContextVar("user", default="nobody")


@tool
def who() -> str:
    """Who asks."""
    return f"{USER.get()} in {threading.current_thread() is threading.main_thread()}"


@tool
async def look_up(key: str) -> dict[str, str]:
    """Looks a word up."""
    await asyncio.sleep(0)
    return {"key": key, "user": USER.get()}


@tool
def search(pattern: str) -> list[str]:
    """A name that only an RLM's kernel has taken."""
    return [pattern]


class Started(BaseCallbackHandler):
    def __init__(self) -> None:
        self.names: list[str] = []
        self.parents: set[Any] = set()

    def on_tool_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.names.append(serialized["name"])
        self.parents.add(kwargs["parent_run_id"])


async def test_its_code_calls_tools_in_the_callers_context(make: Make) -> None:
    python, seen = make(tools=[who, look_up, search]), Started()
    USER.set("Ann")
    code = "print(search('x'), look_up('y'), sorted({*[w['key'] for w in look_up_batched(['a', 'b'])]}), who()[:3])"
    said = await python.ainvoke({"code": code}, {"callbacks": [seen]})
    assert said == "['x'] {'key': 'y', 'user': 'Ann'} ['a', 'b'] Ann"
    assert seen.names == ["python", "search", "look_up", "look_up", "look_up", "who"]
    assert len(seen.parents) == 2, "the tools are below the Python that called them"
    assert await asyncio.to_thread(python.invoke, {"code": "print(who(), look_up('y'))"}) == (
        "Ann in False {'key': 'y', 'user': 'Ann'}"
    )
    assert "`look_up(key: str) -> dict[str, str]`  Looks a word up." in python.description


def test_a_tools_failure_and_too_many_calls_are_errors_of_the_code(make: Make) -> None:
    @tool
    def fails(number: int) -> int:
        """Fails."""
        raise ValueError(f"not {number}")

    python = make(tools=[fails], max_calls=2)
    code = "try:\n    fails(1)\nexcept ToolError as e:\n    print(e)\nfails_batched([2, 3])"
    failed = message(python, code)
    assert failed.status == "error"
    assert str(failed.content).startswith("the tool 'fails' failed: ValueError: not 1\n")
    assert "BudgetExceeded: 2 of 2 calls failed" in str(failed.content)
    with pytest.raises(UnusableTool, match="the tool's name 'print' is taken"):
        create_python_tool(tools=[fails.model_copy(update={"name": "print"})])


async def test_a_kernel_that_dies_comes_back_with_its_variables_and_without_running_a_tool_again(make: Make) -> None:
    ran: list[str] = []

    @tool
    def note(word: str) -> str:
        """Notes a word."""
        ran.append(word)
        return word * 2

    python = make(tools=[note])
    await python.ainvoke({"code": "kept = note('a')"})
    told = await python.ainvoke({"code": "import os\nos._exit(3)"})
    assert told.startswith("KernelError: the kernel ended itself with exit code 3. This cell was lost")
    assert await python.ainvoke({"code": "print(kept)"}) == "aa"
    [kernel] = kernels()
    os.kill(kernel, signal.SIGKILL)
    assert await python.ainvoke({"code": "print(kept + note('b'))"}) == "aabb"
    await asyncio.to_thread(close_all)  # as when it is idle, or makes room for others
    assert await python.ainvoke({"code": "print(kept)"}) == "aa"
    assert ran == ["a", "b"]


async def test_a_cancelled_run_leaves_the_thread_as_it_was(make: Make) -> None:
    waiting = asyncio.Event()

    @tool
    async def forever() -> str:
        """Never answers."""
        waiting.set()
        await asyncio.Event().wait()
        return ""

    python = make(tools=[forever])
    await python.ainvoke({"code": "x = 1"})
    run = asyncio.create_task(python.ainvoke({"code": "x = 2\nforever()"}))
    await waiting.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await python.ainvoke({"code": "x"}) == "1"


async def test_closing_ends_the_kernels_and_the_tool_may_be_used_again(make: Make) -> None:
    python, before = make(context="The pier was built in 1907."), kernels()
    found = await python.ainvoke({"code": "x = grep('built')\nprint(x, len(context))"}, on("a"))
    assert found.endswith(" 27")
    assert "`context` is a str, 27 characters" in python.description
    await python.aclose()
    assert kernels() <= before
    assert "NameError" in await python.ainvoke({"code": "x"}, on("a"))


def test_an_agent_computes_with_it_turn_after_turn(make: Make) -> None:
    def act(messages: list[BaseMessage]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return AIMessage(f"It is {messages[-1].text}.")
        code = "rows = search_batched(['a', 'b'])\nlen(rows)" if messages[-1].text == "how many?" else "rows"
        return calls(("python", {"code": code}), start=len(messages))

    agent = create_agent(Agent(act=act), [make(tools=[search])], checkpointer=InMemorySaver())
    said = [
        agent.invoke({"messages": [HumanMessage(asked)]}, on("1"))["messages"][-1].text
        for asked in ("how many?", "which?")
    ]
    assert said == ["It is 2.", "It is [['a'], ['b']]."]


@pytest.mark.parametrize("killed", [False, True], ids=["its kernel waits", "its kernel has died meanwhile"])
async def test_tools_in_its_code_may_ask_a_human_each_gets_its_own_answer(make: Make, killed: bool) -> None:
    done: list[str] = []

    @tool
    def pay(whom: str) -> str:
        """Pays somebody, if a human agrees twice."""
        said = interrupt(f"pay {whom}?"), interrupt(f"pay {whom}, really?")
        done.append(whom)
        return f"{whom}: {' '.join(said)}"

    @tool
    def note(word: str) -> str:
        """Notes a word."""
        done.append(word)
        return word

    code = "got = [note('x'), *pay_batched(['Ann', 'Bob']), pay('Eve')]\nprint(got)"
    graph = StateGraph(MessagesState).add_node("tools", ToolNode([make(tools=[pay, note])])).add_edge(START, "tools")
    app = graph.compile(checkpointer=InMemorySaver())
    out = await app.ainvoke({"messages": [calls(("python", {"code": code}))]}, on("1"))
    asked = []
    for answer in "abcdef":
        [question] = out["__interrupt__"]
        asked.append(question.value)
        if killed:
            await asyncio.to_thread(close_all)
        out = await app.ainvoke(Command(resume=answer), on("1"))
    assert asked == [f"pay {whom}{more}?" for whom in ("Ann", "Bob", "Eve") for more in ("", ", really")]
    assert out["messages"][-1].text == "['x', 'Ann: a b', 'Bob: c d', 'Eve: e f']"
    assert done == ["x", "Ann", "Bob", "Eve"]
