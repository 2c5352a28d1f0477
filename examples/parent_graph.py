"""An RLM as a node in a graph of your own: it shares `question`, `context` and `answer` with its parent's state."""

from typing import Any

from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot


class State(TypedDict, total=False):
    topic: str
    question: str
    context: Any
    answer: str
    letter: str


def ask(state: State) -> State:
    return {"question": f"What does it say about {state['topic']}?"}


def write(state: State) -> State:
    return {"letter": f"Dear reader,\nyou asked about {state['topic']}.\n{state['answer']}"}


graph = StateGraph(State)
graph.add_node("ask", ask)
graph.add_node("rlm", create_rlm(OfflineRoot(), OfflineReader()))
graph.add_node("write", write)
graph.add_edge(START, "ask")
graph.add_edge("ask", "rlm")
graph.add_edge("rlm", "write")
graph.add_edge("write", END)
app = graph.compile()

report = "The pier was built in 1907.\n" + "The sea was calm that day.\n" * 5_000 + "The lighthouse needs new paint.\n"
for step in app.stream({"topic": "the lighthouse", "context": report}, stream_mode="updates"):
    print("ran:", *step)
    if "write" in step:
        print(step["write"]["letter"])
