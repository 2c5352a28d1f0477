"""The default content store does not grow without bound, and keeps what a live run needs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.stores import InMemoryByteStore
from langgraph.checkpoint.memory import InMemorySaver

from model_server import scripted
from rlm_graph.errors import RLMError
from rlm_graph.sweep import DAY, sweep

pytestmark = pytest.mark.usefixtures("runs_left_waiting")
TEXT = "some text to work on. " * 100
ROOT = scripted("```repl chunk\nx = llm_query('p')\n```", "```repl compose\nanswer['ready'] = True\n```")


async def run(scene: Any, thread: str, *, to_the_end: bool, text: str) -> None:
    rlm = scene(ROOT).rlm(checkpointer=InMemorySaver())
    stop = [] if to_the_end else ["compose"]
    config = {"configurable": {"thread_id": thread}}
    await rlm.ainvoke({"question": "q", "context": text}, config, interrupt_before=stop)


def runs(home: Path) -> int:
    return len(list((home / "run").glob("*")))


def contexts(home: Path) -> int:
    return len(list((home / "blob").glob("*")))


async def test_an_ended_run_goes_after_a_week_and_a_live_one_after_a_month(scene: Any, home: Path) -> None:
    await run(scene, "1", to_the_end=True, text=TEXT)
    await run(scene, "2", to_the_end=False, text=TEXT + "other")
    assert (runs(home), contexts(home)) == (2, 2)
    sweep(home, now=time.time() + 6 * DAY)
    assert (runs(home), contexts(home)) == (2, 2)
    sweep(home, now=time.time() + 8 * DAY)
    assert runs(home) == 1
    sweep(home, now=time.time() + 8 * DAY)
    assert contexts(home) == 1
    sweep(home, now=time.time() + 31 * DAY)
    sweep(home, now=time.time() + 31 * DAY)
    assert (runs(home), contexts(home)) == (0, 0)


async def test_copies_of_what_another_store_keeps_go_after_a_week(scene: Any, home: Path) -> None:
    rlm = scene(scripted("```repl compose\nanswer['content'] = context[:4]; answer['ready'] = True\n```")).rlm(
        content_store=InMemoryByteStore()
    )
    assert (await rlm.ainvoke({"question": "q", "context": TEXT}))["answer"] == TEXT[:4]
    assert len(list((home / "local").iterdir())) == 1
    sweep(home, now=time.time() + 6 * DAY)
    assert len(list((home / "local").iterdir())) == 1
    sweep(home, now=time.time() + 8 * DAY)
    assert list((home / "local").iterdir()) == []


async def test_a_run_whose_calls_were_swept_ends_in_an_error_that_says_so(scene: Any, home: Path) -> None:
    rlm = scene(ROOT).rlm(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    await rlm.ainvoke({"question": "q", "context": TEXT}, config, interrupt_before=["sub_call"])
    sweep(home, now=time.time() + 31 * DAY)
    with pytest.raises(RLMError, match=r"no longer has run/.*: ask the question again, on a new thread"):
        await rlm.ainvoke(None, config)


async def test_above_its_size_ended_runs_go_oldest_first_and_live_ones_never(scene: Any, home: Path) -> None:
    for thread in "123":
        await run(scene, thread, to_the_end=thread != "2", text=TEXT)
    folders = sorted((home / "run").iterdir(), key=lambda p: (p / "state").stat().st_mtime)
    for age, folder in zip((30, 20, 10), folders, strict=True):
        for file in [folder, *folder.rglob("*")]:
            os.utime(file, (time.time() - age, time.time() - age))
    sweep(home, most_bytes=_size(home) - 1)
    assert [f.exists() for f in folders] == [False, True, True]
    sweep(home, most_bytes=0)
    assert [f.exists() for f in folders] == [False, True, False]
    assert contexts(home) == 1


def _size(home: Path) -> int:
    return sum(p.stat().st_size for p in home.rglob("*") if p.is_file() and p.name != "swept")
