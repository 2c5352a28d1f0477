"""What the servers of `test_remote.py` serve: an RLM whose reader takes some seconds, by the number in its text.

At 44444 it takes so long that it can only be cancelled.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.graph import StateGraph
from langgraph.types import interrupt

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.state import Input, Output


class SlowReader(OfflineReader):
    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **more: Any) -> Any:
        number = re.search(r"number is (\d+)", messages[-1].text)
        seconds = int(number[1]) if number else 0
        await asyncio.sleep(seconds % 5 if seconds != 44_444 else 600)
        return await super()._agenerate(messages, *args, **more)


reader = create_rlm(OfflineRoot(), SlowReader(), name="reader")
asking = create_rlm(OfflineRoot(), SlowReader(), direct_below=0, approve_above=0, name="asking")


class Questioned(Input, Output): ...


def asks_twice(state: Questioned) -> dict[str, Any]:
    answers = [interrupt("first?"), interrupt("second?")]
    usage = {"turns": 1, "calls": 0, "input_tokens": 0, "output_tokens": 0, "cost": 0.0, "by_depth": {}, "by_model": {}}
    usage |= {"failed": 0, "refused": 0}
    return {"answer": " ".join(answers), "stop_reason": "answered", "usage": usage}


twice = StateGraph(Questioned, input_schema=Input)
twice.add_node("ask", asks_twice)
twice.add_edge("__start__", "ask")
