"""The compiled graph as a node of somebody's own graph: it shares what is public, and brings nothing else along."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import add
from pathlib import Path
from typing import Annotated, Any

from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command
from typing_extensions import TypedDict

from model_server import Request, scripted
from rlm_graph import read_trace, tracing
from rlm_graph.state import Input, Output, State

ASKS = scripted(
    "```repl probe\nprint(len(context))\n```\n"
    "```repl chunk\nfound = llm_query_batched(['What is it?\\n' + context[:9], 'And here?\\n' + context[9:18]])\n```\n"
    "```repl compose\nFINAL(' and '.join(found))\n```"
)
LONG = [HumanMessage("a reef, a pier, and much else. " * 300), HumanMessage("What do you see?")]
PRIVATE = set(State.__annotations__) - set(Input.__annotations__) - set(Output.__annotations__)


def sub(request: Request) -> str:
    return "a reef" if "And" not in request.prompt else "a pier"


class Tracer(BaseTracer):
    """Keeps the runs that a trace shows."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


def all_runs(runs: list[Run]) -> Iterator[Run]:
    for run in runs:
        yield run
        yield from all_runs(run.child_runs)


def test_messages_alone_are_enough(scene: Callable[..., Any]) -> None:
    rlm = scene(ASKS, sub).rlm(name="reader")
    parent = StateGraph(MessagesState).add_node("reader", rlm).add_edge(START, "reader").compile()
    out = parent.invoke({"messages": LONG})
    assert set(out) == {"messages"}
    said = out["messages"][-1]
    assert (said.type, said.name, said.text) == ("ai", "reader", "a reef and a pier")


class Parent(TypedDict, total=False):
    question: str
    context: Any
    answer: str
    report: str
    journal: str
    """A name that the RLM has for itself, too."""
    run: int


def test_the_parent_keeps_its_own_keys_and_sees_nothing_private(scene: Callable[..., Any]) -> None:
    def ask(state: Parent) -> Parent:
        return {"question": "What do you see?", "journal": "mine", "run": 7}

    def write(state: Parent) -> Parent:
        return {"report": f"Seen: {state['answer']}."}

    rlm = scene(ASKS, sub).rlm()
    graph = StateGraph(Parent).add_node("ask", ask).add_node("rlm", rlm).add_node("write", write)
    graph.add_edge(START, "ask").add_edge("ask", "rlm").add_edge("rlm", "write")
    parent = graph.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    updates = list(parent.stream({"context": "a reef, a pier"}, thread, stream_mode="updates"))
    state = parent.get_state(thread).values
    assert state["report"] == "Seen: a reef and a pier."
    assert (state["journal"], state["run"]) == ("mine", 7)
    [update] = [u["rlm"] for u in updates if "rlm" in u]
    assert not PRIVATE & set(update)
    assert not (PRIVATE - {"journal", "run"}) & set(state)


def test_several_stand_side_by_side(scene: Callable[..., Any]) -> None:
    s = scene(ASKS, sub)
    graph = StateGraph(MessagesState)
    for name in ("one", "two", "three"):
        graph.add_node(name, s.rlm(name=name)).add_edge(START, name)
    out = graph.compile(checkpointer=InMemorySaver()).invoke({"messages": LONG}, {"configurable": {"thread_id": "1"}})
    said = [m for m in out["messages"] if isinstance(m, AIMessage)]
    assert {m.name for m in said} == {"one", "two", "three"}
    assert {m.text for m in said} == {"a reef and a pier"}


@dataclass
class Who:
    name: str


class Seen(MessagesState):
    users: Annotated[list[str], add]


async def test_the_parent_s_saver_store_cache_and_context_serve_as_ever(scene: Callable[..., Any]) -> None:
    async def note(state: Seen, runtime: Runtime[Who]) -> dict[str, Any]:
        assert runtime.store is not None
        await runtime.store.aput(("seen",), runtime.context.name, {"answer": state["messages"][-1].text})
        return {"users": [runtime.context.name]}

    s = scene(ASKS, sub)
    graph = StateGraph(Seen, context_schema=Who).add_node("rlm", s.rlm(), cache_policy=CachePolicy())
    graph.add_node("note", note).add_edge(START, "rlm").add_edge("rlm", "note")
    store = InMemoryStore()
    parent = graph.compile(checkpointer=InMemorySaver(), store=store, cache=InMemoryCache())
    messages = [m.model_copy(update={"id": f"m{n}"}) for n, m in enumerate(LONG)]
    for thread in ("1", "2"):
        config = {"configurable": {"thread_id": thread}}
        out = await parent.ainvoke({"messages": messages}, config, context=Who(f"user {thread}"))
        assert out["messages"][-1].text == "a reef and a pier"
    assert s.server.asked("root") == 1, "the second time the node's result came from the parent's cache"
    assert {item.key for item in await store.asearch(("seen",))} == {"user 1", "user 2"}


def test_a_question_to_a_human_interrupts_the_parent(scene: Callable[..., Any], runs_left_waiting: None) -> None:
    s = scene(ASKS, sub)
    graph = StateGraph(MessagesState).add_node("rlm", s.rlm(approve_above=1)).add_edge(START, "rlm")
    parent = graph.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    out = parent.invoke({"messages": LONG}, thread)
    assert out["__interrupt__"][0].value["calls"] == 2
    out = parent.invoke(Command(resume="approve"), thread)
    assert out["messages"][-1].text == "a reef and a pier"
    assert s.server.asked("root") == 1


async def test_the_parent_s_stream_shows_the_inside(scene: Callable[..., Any]) -> None:
    s = scene(ASKS, sub)
    parent = StateGraph(MessagesState).add_node("rlm", s.rlm()).add_edge(START, "rlm").compile()
    nodes = []
    async for namespace, update in parent.astream({"messages": LONG}, stream_mode="updates", subgraphs=True):
        nodes += [(len(namespace), node) for node in update]
    assert [node for depth, node in nodes if depth == 1] == [
        "load", "plan", "probe", "chunk", "dispatch", "sub_call", "verify", "chunk", "compose",
    ]  # fmt: skip
    assert (2, "ask") in nodes


def nested(request: Request) -> str:
    """A sub-model that is also the root of the RLM one level deeper."""
    if request.messages[0]["role"] == "system":
        return "```repl compose\nFINAL(llm_query('Which colour?\\n' + context))\n```"
    return "blue"


LINES = "".join(f"line {n:02} has a reef or a pier in it\n" for n in range(40))


RESULT = {"answer": "a reef", "quotes": ["a reef or a pier"], "confidence": 1}


def test_a_trace_tells_a_call_from_another_and_where_what_it_is_about_stands(
    scene: Callable[..., Any], tmp_path: Path
) -> None:
    code = (
        "lines = grep('line')\nsub_call(lines[:2], 'What?')\nsub_call(lines[4:6], 'What?', pack=True)\n"
        "llm_query(lines[2])\nllm_query('What? ' + lines[3])\nFINAL(rlm_query('What?', context=lines[6]))"
    )
    answer = json.dumps({"results": [{"id": id, **RESULT} for id in "12"]})
    deep = "```repl compose\nFINAL(llm_query('What? ' + context))\n```"
    s = scene(scripted(f"```repl chunk\n{code}\n```"), lambda r: deep if len(r.messages) > 1 else answer)
    tracer = Tracer()
    with tracing(tmp_path / "run.jsonl", texts=True):
        s.rlm().invoke({"question": "What?", "context": LINES}, {"callbacks": [tracer]})
    runs, told = list(all_runs(tracer.runs)), read_trace(tmp_path / "run.jsonl")
    calls = [run for run in runs if run.name == "sub_call" and run.run_type == "llm"]
    asked = [reply["id"] for each in told.runs.values() for reply in each.replies.values() if reply["model"]]
    assert sorted(run.metadata["rlm_call"] for run in calls) == sorted(asked)
    own = [run.metadata for run in calls if run.metadata["rlm_run"] == told.top]
    assert {m["rlm_cell"] for m in own} == {0}
    size = len(LINES) // 40
    places = {tuple(m.get(f"rlm_{name}") for name in ("source", "start", "end")) for m in own}
    spans = [(0, size - 1), (size, 2 * size - 1), (2 * size, 3 * size - 1), (4 * size, 6 * size - 1)]
    # What was put together by hand knows no place.
    assert places == {("text", start, end) for start, end in spans} | {(None, None, None)}
    inside = [run for run in runs if "rlm_within_start" in run.metadata]
    assert {run.name for run in inside} >= {"load", "root", "cell 0", "sub_call"}
    assert {run.metadata["rlm_within_start"] for run in inside} == {6 * size}
    ours = [{k: v for k, v in run.metadata.items() if k.startswith("rlm_")} for run in runs]
    assert max(len(json.dumps(each)) for each in ours) < 400


def test_a_trace_shows_every_phase_cell_and_call_by_name_and_usage_is_counted_once(scene: Callable[..., Any]) -> None:
    s = scene(scripted("```repl compose\nFINAL(rlm_query('Which colour?', context=context[:20]))\n```"), nested)
    parent = StateGraph(MessagesState).add_node("reader", s.rlm(name="reader")).add_edge(START, "reader").compile()
    tracer, usage = Tracer(), UsageMetadataCallbackHandler()
    out = parent.invoke({"messages": LONG}, {"callbacks": [tracer, usage]})
    assert out["messages"][-1].text == "blue"

    runs = list(all_runs(tracer.runs))
    names = {run.name for run in runs}
    assert names >= {"reader", "load", "plan", "compose", "cell 0", "dispatch", "sub_call", "rlm", "reader_1", "verify"}
    models = [(run.name, run.metadata["rlm_depth"]) for run in runs if run.run_type == "llm"]
    assert sorted(models) == [("root", 0), ("root", 1), ("sub_call", 2)]
    cells = [run for run in runs if run.name == "cell 0"]
    assert {(run.metadata["rlm_depth"], run.metadata["rlm_phase"]) for run in cells} == {(0, "compose"), (1, "compose")}
    # A nested run has the id of its call, and all that belongs to it says so.
    (child,) = {run.metadata["rlm_run"] for run in runs if run.name == "reader_1"}
    of_it = [(run.name, run.metadata.get("rlm_cell")) for run in runs if run.metadata.get("rlm_run") == child]
    assert {("reader_1", None), ("load", None), ("root", None), ("cell 0", 0), ("sub_call", 0)} <= set(of_it)

    counted = {name: sum(u[name] for u in usage.usage_metadata.values()) for name in ("input_tokens", "output_tokens")}
    said = out["messages"][-1].usage_metadata
    assert said and {name: said[name] for name in counted} == counted
    assert set(usage.usage_metadata) == {"root", "sub"}
