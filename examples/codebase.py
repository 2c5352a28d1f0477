"""A question over a codebase: Python's own asyncio package, 33 files, which no model reads as a whole."""

import asyncio
from pathlib import Path

from rlm_graph import create_rlm, hold
from rlm_graph.offline import OfflineReader, OfflineRoot

code = hold(Path(asyncio.__file__).parent, exclude=["__pycache__"], name="asyncio")
print(f"{code['items']} files, {code['tokens']:,} tokens")

# For real answers: create_rlm("openai:gpt-5.1", "openai:gpt-5-mini")
rlm = create_rlm(OfflineRoot(), OfflineReader())
out = rlm.invoke({"question": "What does asyncio.run do with the debug mode?", "context": code})

print(out["answer"])
print(f"{out['stop_reason']}: {out['usage']['turns']} root turns, {out['usage']['calls']} sub-calls")
