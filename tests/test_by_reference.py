"""A text of 10 MB is answered in three root turns, and nothing that travels or is kept holds it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from model_server import Request, scripted
from rlm_graph import hold
from rlm_graph.tokens import estimate

TURNS = scripted(
    "```repl probe\nprint(len(context), context[:60])\n```",
    "```repl filter\ncandidates = [l for l in context.splitlines() if l.startswith('ITEM')]\n```\n"
    "```repl chunk\nchunks = ['\\n'.join(candidates[i::200]) for i in range(200)]\n"
    "counts = llm_query_batched(['How many lines begin with ITEM?\\n' + c for c in chunks])\n```",
    "```repl compose\nanswer['content'] = str(sum(map(int, counts)))\nanswer['ready'] = True\n```",
)
FILLER = "The quick brown fox of paragraph {n} jumps over the lazy dog, and nothing of it concerns anybody at all."
THREAD: Any = {"configurable": {"thread_id": "1"}}
ALL_MODES = ["values", "updates", "tasks", "checkpoints", "debug", "custom", "messages"]


def count_items(request: Request) -> str:
    return str(sum(line.startswith("ITEM") for line in request.prompt.splitlines()))


@pytest.fixture(scope="module")
def book() -> str:
    lines = [FILLER.format(n=n) if n % 50 else f"ITEM number {n} is blue and stands alone" for n in range(105_000)]
    text = "\n".join(lines)
    assert len(text) > 10_000_000
    return text


def given(kind: str, book: str, tmp_path: Path) -> Any:
    if kind == "text":
        return book
    path = tmp_path / "book.txt"
    path.write_text(book, newline="")
    return path if kind == "path" else hold(path)


def middle_of(book: str) -> tuple[str, str]:
    """A line of the middle that is filtered out, and one that goes to a sub-model."""
    return FILLER.format(n=50_001), "ITEM number 50000 is blue"


@pytest.mark.parametrize("kind", ["path", "reference", "text"])
async def test_three_turns_and_200_calls_answer_it_within_8000_root_tokens(
    scene: Any, book: str, tmp_path: Path, kind: str
) -> None:
    s = scene(TURNS, count_items)
    out = await s.rlm().ainvoke({"question": "How many items?", "context": given(kind, book, tmp_path)})
    assert out["answer"] == "2100"
    assert (out["usage"]["turns"], out["usage"]["calls"]) == (3, 200)
    prompts = s.root_prompts()
    assert estimate(sum(map(len, prompts))) < 8_000
    assert not any(line in prompt for prompt in prompts for line in middle_of(book))


@pytest.mark.parametrize("kind", ["path", "reference", "text"])
async def test_no_checkpoint_in_memory_and_no_event_holds_it(scene: Any, book: str, tmp_path: Path, kind: str) -> None:
    s = scene(TURNS, count_items)
    saver = InMemorySaver()
    rlm = s.rlm(checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    events = []
    async for namespace, mode, event in rlm.astream(
        {"question": "How many items?", "context": given(kind, book, tmp_path)},
        config,
        stream_mode=ALL_MODES,
        subgraphs=True,
    ):
        events.append((namespace, mode, repr(event)))
    skipped, asked = middle_of(book)
    raw_inputs = [e for e in events if skipped in e[2]]
    # LangGraph keeps the raw input once, in the first checkpoint; both modes that show checkpoints show that one.
    assert len(raw_inputs) <= (2 if kind == "text" else 0)
    assert all(mode in {"checkpoints", "debug"} and "'source': 'input'" in event for _, mode, event in raw_inputs)
    assert not any(asked in event for e in events if e not in raw_inputs for event in e[2:])
    kept = [pickle_free(value) for value in all_of(saver)]
    for line in (skipped, asked):
        assert sum(line in text for text in kept) <= (1 if kind == "text" else 0)


@pytest.mark.parametrize("kind", ["path", "reference", "text"])
def test_no_sqlite_checkpoint_and_no_event_of_a_synchronous_run_holds_it(
    scene: Any, book: str, tmp_path: Path, kind: str
) -> None:
    s = scene(TURNS, count_items)
    file = tmp_path / "threads.sqlite"
    with SqliteSaver.from_conn_string(str(file)) as saver:
        events = s.rlm(checkpointer=saver).stream(
            {"question": "How many items?", "context": given(kind, book, tmp_path)},
            THREAD,
            stream_mode=["updates", "tasks", "custom", "messages"],
            subgraphs=True,
        )
        seen = [repr(event) for event in events]
        assert s.rlm(checkpointer=saver).get_state(THREAD).values["answer"] == "2100"
    assert not any(line in event for event in seen for line in middle_of(book))
    no_row_holds_it(file, book, kind)


async def test_no_sqlite_checkpoint_of_an_asynchronous_run_holds_it(scene: Any, book: str, tmp_path: Path) -> None:
    file = tmp_path / "threads.sqlite"
    async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
        asked = {"question": "How many items?", "context": given("path", book, tmp_path)}
        out = await scene(TURNS, count_items).rlm(checkpointer=saver).ainvoke(asked, THREAD)
    assert out["answer"] == "2100"
    no_row_holds_it(file, book, "path")


def no_row_holds_it(file: Path, book: str, kind: str) -> None:
    rows = rows_of(file)
    for line in middle_of(book):
        assert sum(line.encode() in row for row in rows) <= (1 if kind == "text" else 0)
    if kind != "text":
        assert sum(map(len, rows)) < 400_000


def rows_of(file: Path) -> list[bytes]:
    with sqlite3.connect(file) as db:
        blobs = [
            *db.execute("select checkpoint, metadata from checkpoints"),
            *db.execute("select value, channel from writes"),
        ]
    return [b"".join(v if isinstance(v, bytes) else str(v).encode() for v in row if v is not None) for row in blobs]


def all_of(saver: InMemorySaver) -> list[Any]:
    kept: list[Any] = []
    for namespaces in saver.storage.values():
        for checkpoints in namespaces.values():
            kept.extend(checkpoints.values())
    kept.extend(saver.blobs.values())
    for writes in saver.writes.values():
        kept.extend(writes.values())
    return kept


def pickle_free(value: Any) -> str:
    return repr(value)
