"""A thread can be interrupted, forked and asked again; nothing that was paid for is asked twice."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from model_server import Request, scripted

THREAD: Any = {"configurable": {"thread_id": "1"}}
TEXT = "\n".join(f"{n} ITEM" if n % 5 == 0 else f"{n} nothing" for n in range(500))
ROOT = scripted(
    "```repl probe\nn = len(context)\nprint(n)\n```",
    "```repl filter\ncandidates = [l for l in context.splitlines() if 'ITEM' in l]\nprint(len(candidates))\n```\n"
    "```repl chunk\nfound = llm_query_batched(candidates[:20])\nprint(len(found))\n```",
    "```repl compose\nanswer['content'] = f'{len(found)} {found[0]}'; answer['ready'] = True\n```",
)


def echo(request: Request) -> str:
    return f"<{request.prompt}>"


@pytest.mark.parametrize("node", ["load", "plan", "probe", "filter", "chunk", "dispatch", "sub_call", "verify", "compose"])
async def test_a_run_goes_on_after_an_interrupt_before_any_node(scene: Any, node: str) -> None:
    s = scene(ROOT, echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    given: Any = {"question": "q", "context": TEXT}
    out: dict[str, Any] = {}
    for _ in range(8):
        out = await rlm.ainvoke(given, THREAD, interrupt_before=[node]) or {}
        if out.get("stop_reason"):
            break
        given = None
    assert out["answer"] == "20 <0 ITEM>"
    assert (s.server.asked("root"), s.server.asked("sub")) == (3, 20)
