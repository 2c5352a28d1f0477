"""A human approves the bill: the run stops before it makes more calls than were allowed, and says which."""

import asyncio
from pathlib import Path

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

rlm = create_rlm(OfflineRoot(), OfflineReader(), checkpointer=InMemorySaver(), approve_above=5)
thread = {"configurable": {"thread_id": "1"}}
given = {"question": "How does a task group cancel its tasks?", "context": Path(asyncio.__file__).parent}
out = rlm.invoke(given, thread)

bill = out["__interrupt__"][0].value
print(f"It is about to make {bill['calls']} calls of {bill['model']}.")

# The run waits in the checkpointer, for a minute or a week. The answer is "approve", "refuse" or a number of calls.
out = rlm.invoke(Command(resume="approve"), thread)
print(f"Approved: {out['usage']['calls']} calls were made.")
print(out["answer"])
