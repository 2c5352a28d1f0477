"""The user's tools in the kernel: functions like any other there, run on the host, on record, within the limits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, ToolException, tool
from langchain_mcp_adapters.client import MultiServerMCPClient
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.prebuilt import InjectedState, ToolRuntime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field

from model_server import scripted
from rlm_graph import Limits, create_rlm, prompts
from rlm_graph.errors import UnusableTool
from rlm_graph.kernel.session import KernelOptions, close_all, start_session
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.state import Done, Reply
from rlm_graph.tools import call_tool, user_tools

TEXT = "some text to work on. " * 100
Scene = Callable[..., Any]


def delivers(code: str) -> Any:
    """A root whose only cell ends with the answer that its variable `got` holds."""
    return scripted(f"```repl chunk\n{code}\nanswer['content'] = repr(got); answer['ready'] = True\n```")


class Place(BaseModel):
    lat: float
    lon: float = 0.0


@tool
def distance(start: Place, end: Place, unit: Literal["km", "mi"] = "km") -> dict[str, Any]:
    """How far it is.

    Along the ground.
    """
    return {"far": abs(start.lat - end.lat), "unit": unit}


LOOPS: set[asyncio.AbstractEventLoop] = set()


@tool
async def look_up(
    key: Annotated[str, Field(description="what to look up")],
    id: Annotated[str, InjectedToolCallId],
    config: RunnableConfig,
) -> str:
    """Looks a word up."""
    LOOPS.add(asyncio.get_running_loop())
    return f"{key} by {len(id)} digits"


def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


@tool
def strict(number: int) -> int:
    """Fails in one way or another."""
    if number == 1:
        raise ToolException("wrong day\ntry again tomorrow")
    raise RuntimeError("token sk-abcdefghijklmnop was refused\nsecond line")


class Started(BaseCallbackHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_tool_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.names.append(serialized["name"])


USE = (
    "import inspect\n"
    "got = [distance({'lat': 1}, end={'lat': 3.5}), distance({'lat': 1}, {'lat': 2}, 'mi')['unit'], look_up('x'),\n"
    "       double(4), double_batched([1, {'number': 2}]), await adouble(5), str(inspect.signature(distance)),\n"
    "       look_up.__doc__]"
)
USED = [
    {"far": 2.5, "unit": "km"},
    "mi",
    "x by 32 digits",
    8,
    [2, 4],
    10,
    "(start: {'lat': float, 'lon': float}, end: {'lat': float, 'lon': float}, unit: Literal['km', 'mi'] = 'km')"
    " -> dict[str, Any]",
    "Looks a word up.\n\nkey: what to look up",
]


async def test_tools_are_functions_with_signature_and_docstring_and_callbacks_see_them(scene: Scene) -> None:
    seen = Started()
    rlm = scene(delivers(USE)).rlm(tools=[distance, look_up, double])
    out = await rlm.ainvoke({"question": "q", "context": TEXT}, {"callbacks": [seen]})
    assert out["answer"] == repr(USED)
    assert out["usage"]["calls"] == 7
    assert asyncio.get_running_loop() in LOOPS, "it is awaited where the caller is"
    assert sorted(seen.names) == ["distance"] * 2 + ["double"] * 4 + ["look_up"]


def test_a_synchronous_run_calls_them_too(scene: Scene) -> None:
    seen = Started()
    rlm = scene(delivers(USE)).rlm(tools=[distance, look_up, double])
    out = rlm.invoke({"question": "q", "context": TEXT}, {"callbacks": [seen]})
    assert out["answer"] == repr(USED)
    assert len(seen.names) == 7


async def test_what_goes_wrong_is_a_typed_error_of_the_cell_without_secrets(scene: Scene) -> None:
    code = (
        "def told(call):\n    try:\n        call()\n"
        "    except ToolError as e:\n        return 'ToolError', str(e), e.results\n"
        "    except Exception as e:\n        return type(e).__name__, str(e)\n"
        "got = [told(lambda: strict(1)), told(lambda: strict(2)), told(lambda: strict('x')), told(lambda: strict()),\n"
        "       told(lambda: strict(object())), told(lambda: double_batched([1, 'x']))]"
    )
    out = await scene(delivers(code)).rlm(tools=[strict, double]).ainvoke({"question": "q", "context": TEXT})
    number = "number: Input should be a valid integer, unable to parse string as an integer"
    assert out["answer"] == repr(
        [
            ("ToolError", "the tool 'strict' failed: wrong day\ntry again tomorrow", [None]),
            ("ToolError", "the tool 'strict' failed: RuntimeError: token [key] was refused", [None]),
            ("ToolError", f"the tool 'strict' failed: {number}", [None]),
            ("TypeError", "strict(number: int) -> int: missing a required argument: 'number'"),
            ("TypeError", "strict takes JSON-like values, not one with object in it"),
            (
                "ToolError",
                f"1 of 2 calls failed; the first: the tool 'double' failed: {number}; "
                "err.results holds the 1 answers (None where failed)",
                [2, None],
            ),
        ]
    )


async def test_calls_of_tools_count_against_the_limits(scene: Scene) -> None:
    ran: list[int] = []

    def note(number: int) -> None:
        """Notes a number."""
        ran.append(number)

    code = "got = note_batched([1, 2])\ntry:\n    note_batched([3, 4])\nexcept BudgetExceeded as e:\n    got = str(e)"
    rlm = scene(delivers(code)).rlm(tools=[note], limits=Limits(max_calls=3))
    out = await rlm.ainvoke({"question": "q", "context": TEXT})
    assert "the first: 2 calls asked, 1 left (max_calls)" in out["answer"]
    assert sorted(ran) == [1, 2]


async def test_a_replay_runs_no_tool_again(scene: Scene, runs_left_waiting: None) -> None:
    ran: list[str] = []

    def note(word: str) -> str:
        """Notes a word."""
        ran.append(word)
        return word * 2

    root = scripted(
        "```repl chunk\nkept = note_batched(['a', 'a', 'b'])\n```",
        "```repl compose\nanswer['content'] = str(kept); answer['ready'] = True\n```",
    )
    rlm = scene(root).rlm(tools=[note], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    async for step in rlm.astream({"question": "q", "context": TEXT}, thread, stream_mode="updates"):
        if "chunk" in step and step["chunk"].get("journal"):
            await asyncio.to_thread(close_all)
    assert (await rlm.aget_state(thread)).values["answer"] == "['aa', 'aa', 'bb']"
    assert sorted(ran) == ["a", "a", "b"]


@pytest.mark.parametrize("killed", [False, True], ids=["its kernel waits", "its kernel has died meanwhile"])
async def test_tools_may_ask_a_human_each_its_own_question_while_the_rest_goes_on(
    scene: Scene, runs_left_waiting: None, killed: bool
) -> None:
    done: list[str] = []

    @tool
    def pay(whom: str) -> str:
        """Pays somebody, if a human agrees."""
        said = interrupt(f"pay {whom}?")
        done.append(whom)
        return f"{whom}: {said}"

    s = scene(
        delivers("got = [*pay_batched(['Ann', 'Bob']), llm_query('x'), pay('Eve')]"),
        lambda request: f"<{request.prompt}>",
    )
    rlm = s.rlm(tools=[pay], checkpointer=InMemorySaver())
    thread: RunnableConfig = {"configurable": {"thread_id": "1"}}
    out = await rlm.ainvoke({"question": "q", "context": TEXT}, thread)
    asked = {i.value: i.id for i in out["__interrupt__"]}
    assert set(asked) == {"pay Ann?", "pay Bob?"}
    assert done == []
    if killed:
        await asyncio.to_thread(close_all)
    out = await rlm.ainvoke(Command(resume={asked["pay Bob?"]: "no"}), thread)
    assert [i.value for i in out["__interrupt__"]] == ["pay Ann?"]
    out = await rlm.ainvoke(Command(resume={asked["pay Ann?"]: "yes"}), thread)
    assert [i.value for i in out["__interrupt__"]] == ["pay Eve?"]
    if killed:
        await asyncio.to_thread(close_all)
    out = await rlm.ainvoke(Command(resume="maybe"), thread)
    assert out["answer"] == repr(["Ann: yes", "Bob: no", "<x>", "Eve: maybe"])
    assert (done, s.server.asked("sub"), out["usage"]["calls"]) == (["Bob", "Ann", "Eve"], 1, 4)


async def test_a_tool_that_asks_where_nobody_can_answer_fails_in_the_cell(scene: Scene) -> None:
    @tool
    def pay(whom: str) -> str:
        """Pays somebody, if a human agrees."""
        return str(interrupt(f"pay {whom}?"))

    code = "try:\n    pay('Ann')\nexcept ToolError as e:\n    got = str(e)"
    out = await scene(delivers(code)).rlm(tools=[pay]).ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == repr("the tool 'pay' failed: it asks a human, which needs a checkpointer and a thread_id")


async def test_nested_rlms_have_the_tools(scene: Scene) -> None:
    def root(request: Any) -> str:
        code = (
            "got = rlm_query('deeper', context='the part')" if "Question: q" in request.prompt else "got = double(21)"
        )
        return f"```repl chunk\n{code}\nanswer['content'] = got; answer['ready'] = True\n```"

    rlm = scene(root, root).rlm(tools=[double])
    out = await rlm.ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["usage"]["calls"]) == ("42", 2)


@pytest.mark.timeout(300)
async def test_tools_of_an_mcp_server_give_data_and_fail_as_errors(scene: Scene) -> None:
    program = {
        "command": sys.executable,
        "args": [str(Path(__file__).with_name("mcp_program.py"))],
        "transport": "stdio",
    }
    tools = await MultiServerMCPClient({"weather": program}).get_tools()  # type: ignore[dict-item]
    code = (
        "import asyncio, inspect\n"
        "got = await asyncio.gather(atemperature('Rome', unit='F'), areport('Rome'), atemperature('Atlantis'),\n"
        "                           return_exceptions=True)\n"
        "got = [*got[:2], type(got[2]).__name__, 'no such city' in str(got[2]), str(inspect.signature(temperature))]"
    )
    out = await scene(delivers(code)).rlm(tools=tools).ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == repr(
        [70.7, {"city": "Rome", "sky": "clear"}, "ToolError", True, "(city: str, unit: str = 'C')"]
    )


def test_the_root_is_told_of_the_tools_there_are() -> None:
    specs = [each.spec for each in user_tools([distance, double])]
    told = prompts.system_for(Limits(), 0, "Be kind.", specs)
    assert told.startswith(prompts.system_for(Limits(), 0, None))
    assert "`double(number: int) -> int`  Twice the number.\n" in told
    assert "  How far it is.\n`double" in told


def named(name: str) -> BaseTool:
    return tool(double).model_copy(update={"name": name})


@tool
def of_an_agent(x: int, state: Annotated[dict[str, Any], InjectedState()]) -> int:
    """Reads an agent's state."""
    return x


@tool
def of_a_run(x: int, runtime: ToolRuntime) -> int:
    """Reads an agent's runtime."""
    return x


def undocumented(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ([named("get-weather")], "the tool's name 'get-weather' cannot be a function's name: rename it"),
        ([named("lambda")], "cannot be a function's name"),
        ([named("llm_query")], "the tool's name 'llm_query' is taken in the kernel: rename it"),
        ([named("context_0")], "is taken in the kernel"),
        ([named("print")], "is taken in the kernel"),
        ([double, named("double")], "two tools are named 'double': rename one"),
        ([of_an_agent], "the tool 'of_an_agent' wants 'state' injected by an agent"),
        ([of_a_run], "the tool 'of_a_run' wants 'runtime' injected by an agent"),
        ([undocumented], "the function 'undocumented' is no tool: Function must have a docstring"),
        (["double"], "a tool is a LangChain tool or a function with a docstring, not str"),
    ],
)
def test_a_tool_that_cannot_be_used_is_refused_when_the_rlm_is_made(tools: list[Any], told: str) -> None:
    with pytest.raises(UnusableTool, match=told):
        create_rlm(OfflineRoot(), OfflineReader(), tools=tools)


def refused(name: str) -> bool:
    try:
        user_tools([named(name)])
    except UnusableTool:
        return True
    return False


async def test_every_name_that_a_cell_finds_is_refused_as_a_tools_name() -> None:
    session = await start_session(KernelOptions(), name="test")
    code = "print(*[n for n in list(globals()) if n.isidentifier() and not n.startswith('_')])"
    facts = {"window": None, "reset_answer": False}
    done = await session.run(0, code, facts=facts)
    await session.close()
    assert isinstance(done, Done)
    found = set(done.stdout.split()) - {"In", "Out", "get_ipython", "open"}
    assert "llm_query" in found
    assert [name for name in found if not refused(name)] == []


async def test_a_tool_that_cancels_itself_cancels_nothing_else() -> None:
    @tool
    async def cancels() -> None:
        """Cancels itself, as a client may that ran out of time."""
        raise asyncio.CancelledError

    (mine,) = user_tools([cancels])
    reply = await call_tool(mine, {}, "id", {}, None)  # type: ignore[arg-type]
    assert reply == Reply(error="ToolError", message="the tool 'cancels' failed: CancelledError: CancelledError")


@pytest.mark.parametrize("given", [{"key": "x", "id": "forged"}, {"key": "x", "config": {}}, ["x"], None])
async def test_a_kernel_cannot_give_what_only_the_host_may(given: Any) -> None:
    (mine,) = user_tools([look_up])
    reply = await call_tool(mine, given, "id", {}, None)  # type: ignore[arg-type]
    assert reply.error == "ToolError"
    assert reply.message.startswith("the tool 'look_up' failed: TypeError: it")


@tool
def remember(word: str) -> str:
    """Adds a word to what is remembered, and gives what was there before."""
    before = get_store().get(("words",), "all")
    get_store().put(("words",), "all", {"words": word})
    return before.value["words"] if before else ""


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_tools_find_the_store_that_the_graph_was_made_with(scene: Scene, how: str) -> None:
    nested = "rlm_query('again', 'a text ' * 400)"
    root = scripted(f"```repl chunk\nanswer['content'] = remember('new') + {nested}; answer['ready'] = True\n```")
    store = InMemoryStore()
    store.put(("words",), "all", {"words": "old "})
    s = scene(root, delivers("got = remember('newest')"))
    rlm = s.rlm(tools=[remember], store=store)
    given = {"question": "q", "context": TEXT}
    out = await rlm.ainvoke(given) if how == "ainvoke" else await asyncio.to_thread(rlm.invoke, given)
    assert out["answer"] == "old 'new'"
    assert store.get(("words",), "all").value == {"words": "newest"}
