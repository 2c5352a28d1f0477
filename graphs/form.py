"""What is shown of a graph's input, in Studio and to other programs: what people fill in, and not all that it takes."""

from __future__ import annotations

from typing import Annotated

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages
from pydantic import Field
from typing_extensions import TypedDict

from graphs.samples import SAMPLES
from rlm_graph.graph import Graph


class Form(TypedDict, total=False):
    """A question, and what to read: a text of yours or the name of a sample."""

    question: Annotated[str, Field(title="Question", description="What to find out.")]
    context: Annotated[
        str,
        Field(
            title="Context",
            description=(
                f"A text of yours, or the name of a sample: {', '.join(SAMPLES)}. Left empty, what the thread's last "
                "question was about."
            ),
            examples=list(SAMPLES),
        ),
    ]


class Chat(Form, total=False):
    """A question, and what to read: a text of yours or the name of a sample. Or a conversation."""

    messages: Annotated[
        list[AnyMessage],
        Field(title="Messages", description="In place of a question: the last human message is it."),
        add_messages,
    ]


def with_form(graph: Graph, form: type) -> Graph:
    """The graph, which takes what it took before, with this form for its input."""
    graph.builder.input_schema = form  # read when somebody asks for the schema; its channels are made by now
    return graph
