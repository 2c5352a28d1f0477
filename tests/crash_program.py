"""A run in a process of its own, to be killed and gone on with in another. Not a test: `test_faults.py` starts it."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from model_server import Answer, Request, scripted, spread
from rlm_graph import Limits, create_rlm

QUESTION = "How many items, and what does the deep part say?"
TEXT = "\n".join(f"{n} ITEM" if n % 5 == 0 else f"{n} nothing here" for n in range(600))
CANDIDATES = [line for line in TEXT.splitlines() if "ITEM" in line][:60]
TOGETHER, THREADS = 30, 6
"""The first candidates are one batch, and when all have come, so many threads ask the rest one by one."""

ASKED = 3 + len(CANDIDATES) + 2 + 3
"""What it asks, when nothing disturbs it: the root's turns, plain calls, the nested RLM's turns, and its leaves."""
ANSWER = "60 items: 0 ITEM … 295 ITEM; deep: 3 leaves of 'part'"

ROOT = scripted(
    "```repl probe\nlines = context.splitlines()\nprint(len(lines))\n```",
    "```repl filter\ncandidates = [l for l in lines if 'ITEM' in l][:60]\nprint(len(candidates))\n```\n"
    "```repl chunk\nfrom concurrent.futures import ThreadPoolExecutor\n"
    f"first = llm_query_batched(candidates[:{TOGETHER}])\n"
    f"with ThreadPoolExecutor({THREADS}) as pool:\n    rest = list(pool.map(llm_query, candidates[{TOGETHER}:]))\n"
    "found = first + rest\ndeep = rlm_query('look deeper', context='part')\nprint(len(found), deep)\n```",
    "```repl compose\nassert found == [f'<{c}>' for c in candidates]\n"
    "answer['content'] = f'{len(found)} items: {candidates[0]} … {candidates[-1]}; deep: {deep}'\n"
    "answer['ready'] = True\n```",
)


def sub(request: Request) -> Answer:
    """Plain calls echo; the nested RLM asks three leaves and says so."""
    if len(request.messages) > 1:
        code = "got = llm_query_batched([f'leaf {i} ' + context for i in range(3)])"
        end = "answer['content'] = f'{len(got)} leaves of {context!r}'; answer['ready'] = True"
        turn = sum(m["role"] == "assistant" for m in request.messages)
        return Answer(f"```repl chunk\n{code if turn == 0 else end}\n```", latency=0.02)
    return Answer(f"<{request.prompt}>", latency=0.01 + spread(request.prompt) / 20)


# What a client loads when it is first made, the fork server loads once for all processes.
ChatOpenAI(model="root", base_url="http://127.0.0.1:9/v1", api_key="none")


@dataclass(frozen=True)
class Task:
    """What a process is to do: begin a run, or go on with it."""

    base_url: str
    home: str
    saver: str
    thread: str
    result: str
    resume: bool

    def graph(self, checkpointer: Any) -> Any:
        root, sub = (
            ChatOpenAI(model=m, base_url=self.base_url, api_key="none", max_retries=0) for m in ("root", "sub")
        )
        return create_rlm(root, sub, direct_below=0, limits=Limits(max_concurrency=8), checkpointer=checkpointer)


def saver_of(name: str) -> AbstractAsyncContextManager[Any]:
    if name.startswith("postgresql"):
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        return AsyncPostgresSaver.from_conn_string(name)
    return AsyncSqliteSaver.from_conn_string(name)


def run(task: Task) -> None:
    os.environ["RLM_GRAPH_HOME"] = task.home
    asyncio.run(_run(task))


async def _run(task: Task) -> None:
    async with saver_of(task.saver) as saver:
        await saver.setup()
        config = {"configurable": {"thread_id": task.thread}}
        rlm = task.graph(saver)
        given: Any = {"question": QUESTION, "context": TEXT}
        if task.resume and (await rlm.aget_state(config)).created_at is not None:
            given = None
        out = await rlm.ainvoke(given, config)
        Path(task.result).write_text(json.dumps({k: out[k] for k in ("answer", "stop_reason", "usage", "warnings")}))
