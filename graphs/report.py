"""A parent app with the RLM as a node between nodes of its own: choose a text, ask about it, write a report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from langgraph.graph import END, START, StateGraph
from pydantic import Field
from typing_extensions import TypedDict

from graphs.samples import SAMPLES
from rlm_graph import create_rlm, hold
from rlm_graph.offline import OfflineReader, OfflineRoot


class Form(TypedDict, total=False):
    """A question, and what to read: a text of yours or one of the samples."""

    question: Annotated[str, Field(title="Question", description="What the report is to answer.")]
    text: Annotated[str, Field(title="Text", description="A text of yours. Leave it empty to have a sample read.")]
    sample: Annotated[
        Literal["handbook", "logbook", "python-json", "python-asyncio"],
        Field(title="Sample", description="A text that ships with this graph. Read where no text is given."),
    ]


class Report(TypedDict):
    """The finished report."""

    report: Annotated[str, Field(title="Report", description="The report, in Markdown.")]


class State(Form, Report, total=False):
    context: dict[str, Any]
    answer: str
    stop_reason: str
    usage: dict[str, Any]
    warnings: list[str]


def choose(state: State) -> dict[str, Any]:
    """Holds what is to be read, so that the state has a reference and no text."""
    if text := state.get("text"):
        # A text it is, even where it looks like a path; a newline says so.
        return {"context": hold(text + "\n", name="your text")}
    sample = state.get("sample") or "handbook"
    if sample not in SAMPLES:
        raise ValueError(f"there is no sample {sample!r}; choose one of {', '.join(SAMPLES)}")
    return {"context": hold(SAMPLES[sample], name=sample)}


def write(state: State) -> dict[str, str]:
    """Puts the answer into a report, with what it rests on."""
    source, usage = state["context"], state["usage"]
    facts = [
        f"Read: {source['name']}, {source['chars']:,} characters.",
        f"Ended: {state['stop_reason']}, after {usage['turns']} root turns and {usage['calls']} sub-calls.",
        *state["warnings"],
    ]
    lines = "\n".join(f"- {fact}" for fact in facts)
    return {"report": f"# {state['question']}\n\n{state['answer']}\n\n## How this was found\n\n{lines}\n"}


graph = StateGraph(State, input_schema=Form, output_schema=Report)
graph.add_node("choose", choose)
graph.add_node("rlm", create_rlm(OfflineRoot(), OfflineReader()))
graph.add_node("write", write)
graph.add_edge(START, "choose")
graph.add_edge("choose", "rlm")
graph.add_edge("rlm", "write")
graph.add_edge("write", END)
report = graph.compile(name="report")
