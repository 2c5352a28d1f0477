"""A conversation: a thread keeps its context and its variables, so a follow-up is only a question."""

from langgraph.checkpoint.memory import InMemorySaver

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

report = "The pier was built in 1907.\n" + "The sea was calm that day.\n" * 5_000 + "The lighthouse needs new paint.\n"
rlm = create_rlm(OfflineRoot(), OfflineReader(), checkpointer=InMemorySaver())
thread = {"configurable": {"thread_id": "1"}}

out = rlm.invoke({"question": "When was the pier built?", "context": report}, thread)
print("1:", out["answer"].splitlines()[0])
out = rlm.invoke({"question": "And what does the lighthouse need?"}, thread)
print("2:", out["answer"].splitlines()[0])
