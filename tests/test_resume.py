"""A thread can be interrupted, forked and asked again; nothing that was paid for is asked twice."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.stores import InMemoryByteStore
from langgraph.checkpoint.memory import InMemorySaver

from conftest import kernels
from model_server import Answer, Request, scripted
from rlm_graph import Limits
from rlm_graph.errors import ModelError
from rlm_graph.kernel import pool
from rlm_graph.kernel.session import close_all

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


@pytest.mark.parametrize(
    "node", ["load", "plan", "probe", "filter", "chunk", "dispatch", "sub_call", "verify", "compose"]
)
@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_run_goes_on_after_an_interrupt_at_any_node(scene: Any, node: str, side: str) -> None:
    s = scene(ROOT, echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    given: Any = {"question": "q", "context": TEXT}
    out: dict[str, Any] = {}
    for _ in range(8):
        out = await rlm.ainvoke(given, THREAD, **{f"interrupt_{side}": [node]}) or {}
        if out.get("stop_reason"):
            break
        given = None
    assert out["answer"] == "20 <0 ITEM>"
    assert (s.server.asked("root"), s.server.asked("sub")) == (3, 20)


@pytest.mark.parametrize("node", ["sub_call", "verify", "compose"])
async def test_another_graph_on_the_same_saver_and_store_goes_on_without_asking_again(
    scene: Any, home: Path, node: str
) -> None:
    s, saver, store = scene(ROOT, echo), InMemorySaver(), InMemoryByteStore()
    given = {"question": "q", "context": TEXT}
    await s.rlm(checkpointer=saver, content_store=store).ainvoke(given, THREAD, interrupt_before=[node])
    paid = s.server.seen
    close_all()
    out = await s.rlm(checkpointer=saver, content_store=store).ainvoke(None, THREAD)
    assert (out["answer"], out["warnings"]) == ("20 <0 ITEM>", [])
    assert (s.server.asked("root"), s.server.asked("sub"), len(paid)) == (3, 20, 2 if node == "sub_call" else len(paid))
    assert list(store.yield_keys()) and not [path for path in home.rglob("*") if "reply" in path.parts]
    # What a folder of LangChain's (LocalFileStore) takes as a key.
    assert all(re.fullmatch(r"[a-zA-Z0-9_.\-/]+", key) for key in store.yield_keys())


async def test_an_interrupted_run_finds_its_variables_after_its_kernel_was_idle_too_long(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(pool, "ORPHAN_SECONDS", 0.3)
    monkeypatch.setattr(pool, "_sweeping", None)  # an earlier test's next sweep is an hour away
    s = scene(ROOT, echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "q", "context": TEXT}, THREAD, interrupt_before=["compose"])
    deadline = time.monotonic() + 30
    while kernels() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert kernels() == set()
    out = await rlm.ainvoke(None, THREAD)
    assert (out["answer"], out["warnings"]) == ("20 <0 ITEM>", [])
    assert (s.server.asked("root"), s.server.asked("sub")) == (3, 20)


async def test_follow_ups_find_the_variables_of_the_first_question_also_after_an_eviction(scene: Any) -> None:
    root = scripted(
        "```repl probe\nn = len(context)\nanswer['content'] = llm_query('first'); answer['ready'] = True\n```"
    )
    later = scripted(
        "```repl compose\nn += 1\nanswer['content'] = f'{n} {sorted(answer)}'; answer['ready'] = True\n```"
    )
    s = scene(lambda r: later(r) if "And" in str(r.messages) else root(r), echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    first = await rlm.ainvoke({"question": "How long?", "context": TEXT}, THREAD)
    second = await rlm.ainvoke({"question": "And one more?"}, THREAD)
    close_all()
    third = await rlm.ainvoke({"question": "And another?"}, THREAD)
    assert (first["answer"], second["answer"], third["answer"]) == (
        "<first>",
        f"{len(TEXT) + 1} ['content', 'ready']",
        f"{len(TEXT) + 2} ['content', 'ready']",
    )
    assert s.server.asked("sub") == 1
    assert (third["usage"]["calls"], second["warnings"], third["warnings"]) == (0, [], [])


async def test_each_wave_of_a_follow_up_is_dispatched_once(scene: Any) -> None:
    cells = "".join(f"```repl chunk\nlast = llm_query('{{0}} {n}')\n```\n" for n in range(5))
    ready = "```repl compose\nanswer['content'] = last; answer['ready'] = True\n```"
    s = scene(lambda r: (cells + ready).format("second" if "And" in str(r.messages) else "first"), echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "How many?", "context": TEXT}, THREAD)
    updates = [u async for u in rlm.astream({"question": "And then?"}, THREAD, stream_mode="updates")]
    out = (await rlm.aget_state(THREAD)).values
    assert (out["answer"], out["usage"]["calls"], out["warnings"]) == ("<second 4>", 5, [])
    assert [sum(node in u for u in updates) for node in ("dispatch", "sub_call", "verify")] == [5, 5, 5]


async def test_a_wave_whose_tasks_did_nothing_is_dispatched_again(scene: Any) -> None:
    s = scene(ROOT, echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "q", "context": TEXT}, THREAD, interrupt_before=["sub_call"])
    await rlm.aupdate_state(THREAD, {}, as_node="sub_call")
    updates = [u async for u in rlm.astream(None, THREAD, stream_mode="updates")]
    assert [next(iter(u)) for u in updates][:4] == ["verify", "chunk", "dispatch", "sub_call"]
    assert (await rlm.aget_state(THREAD)).values["answer"] == "20 <0 ITEM>"
    assert s.server.asked("sub") == 20


@pytest.mark.parametrize("ending", ["interrupted", "failed"])
async def test_the_time_between_a_run_and_its_resume_does_not_count(
    scene: Any, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    passed = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed)
    monkeypatch.setattr("rlm_graph.ledger.time", clock)

    def root(request: Request) -> str | Answer:
        down = ending == "failed" and not passed and request.number > 0
        return Answer("no such key", status=401) if down else ROOT(request)

    s = scene(root, echo)
    rlm = s.rlm(checkpointer=InMemorySaver(), limits=Limits(max_seconds=500))
    given = {"question": "q", "context": TEXT}
    if ending == "failed":
        with pytest.raises(ModelError, match="no such key"):
            await rlm.ainvoke(given, THREAD)
    else:
        await rlm.ainvoke(given, THREAD, interrupt_before=["dispatch"])
    passed = 1_000.0
    out = await rlm.ainvoke(None, THREAD)
    assert (out["answer"], out["stop_reason"]) == ("20 <0 ITEM>", "answered")
    assert out["usage"]["seconds"] < 500


async def test_a_follow_up_with_a_new_context_keeps_the_old_one(scene: Any) -> None:
    root = scripted("```repl probe\nn = len(context)\nanswer['content'] = str(n); answer['ready'] = True\n```")
    later = scripted(
        "```repl compose\nanswer['content'] = f'{n} {len(context_0)} {context}'; answer['ready'] = True\n```"
    )
    s = scene(lambda r: later(r) if "And" in str(r.messages) else root(r))
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "How long?", "context": TEXT}, THREAD)
    out = await rlm.ainvoke({"question": "And now?", "context": "a new one"}, THREAD)
    assert out["answer"] == f"{len(TEXT)} {len(TEXT)} a new one"


async def test_a_fork_after_filter_goes_another_way_and_leaves_the_first_branch_untouched(scene: Any) -> None:
    other = iter(["```repl compose\nanswer['content'] = f'other {len(candidates)}'; answer['ready'] = True\n```"])
    forked = []

    def root(request: Request) -> str:
        return next(other) if forked and "FORK" in str(request.messages) else str(ROOT(request))

    s = scene(root, echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    first = await rlm.ainvoke({"question": "q", "context": TEXT}, THREAD)
    history = [h async for h in rlm.aget_state_history(THREAD)]
    after_filter = next(h for h in history if h.next == ("chunk",) and not h.values.get("running"))
    forked.append(True)
    config = await rlm.aupdate_state(after_filter.config, {"queue": [], "notice": "FORK"}, as_node="filter")
    second = await rlm.ainvoke(None, config)
    assert (first["answer"], second["answer"]) == ("20 <0 ITEM>", "other 100")
    old = await rlm.aget_state(history[0].config)
    assert old.values["answer"] == "20 <0 ITEM>"
    assert [c["phase"] for c in old.values["journal"]] == ["probe", "filter", "chunk", "compose"]
    again = await rlm.ainvoke(None, after_filter.config)
    assert again["answer"] == "20 <0 ITEM>"
    assert s.server.asked("sub") == 20


async def test_a_fork_from_any_checkpoint_takes_no_turn_again(scene: Any) -> None:
    s = scene(ROOT, echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "q", "context": TEXT}, THREAD)
    history = [h async for h in rlm.aget_state_history(THREAD) if h.next and h.values.get("run")]
    for state in history:
        again = await rlm.ainvoke(None, state.config)
        assert again["answer"] == "20 <0 ITEM>"
    assert (s.server.asked("root"), s.server.asked("sub")) == (3, 20)


async def test_a_replay_that_prints_something_else_is_told_to_the_root_and_to_the_caller(scene: Any) -> None:
    root = scripted(
        "```repl probe\nimport time\nstamp = time.perf_counter_ns()\nprint(stamp)\n```",
        "```repl compose\nanswer['content'] = context and 'done'; answer['ready'] = True\n```",
    )
    s = scene(root)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "q", "context": TEXT}, THREAD, interrupt_after=["probe"])
    close_all()
    out = await rlm.ainvoke(None, THREAD)
    assert out["answer"] == "done"
    assert out["warnings"] == ["The kernel was rebuilt, and cell 0 printed something else than before."]


async def test_a_replay_that_asks_something_else_is_told_and_asks_nothing(scene: Any) -> None:
    root = scripted(
        "```repl probe\nimport time\nx = llm_query(f'at {time.perf_counter_ns()}')\n```",
        "```repl probe\nprint('look')\n```",
        "```repl compose\nanswer['content'] = 'done'; answer['ready'] = True\n```",
    )
    s = scene(root, echo)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "q", "context": TEXT}, THREAD, interrupt_before=["verify"])
    await rlm.ainvoke(None, THREAD, interrupt_before=["plan"])
    close_all()
    out = await rlm.ainvoke(None, THREAD)
    assert out["warnings"] == [
        "The kernel was rebuilt, and cell 0 made 1 calls that it had not made before; they failed."
    ]
    assert s.server.asked("sub") == 1
    assert "Check its variables before you use them" in s.root_prompts()[-1]


async def test_a_follow_up_tells_the_root_what_was_said_before(scene: Any) -> None:
    root = scripted("```repl probe\nanswer['content'] = 'A red car.'; answer['ready'] = True\n```")
    s = scene(root)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "What is it?", "context": TEXT}, THREAD)
    await rlm.ainvoke({"question": "And how fast?"}, THREAD)
    last = s.root_prompts()[-1]
    assert "Question: And how fast?" in last
    assert "Question: What is it?\nAnswer: A red car." in last
    assert "SHOW_VARS()" in last.split("Said before on this thread")[1]


async def test_a_conversation_before_the_question_is_told_to_the_root(scene: Any) -> None:
    from langchain_core.messages import AIMessage, HumanMessage

    s = scene(scripted("```repl\nFINAL(context[:4])\n```"))
    said = [HumanMessage("I mean the red car."), AIMessage("I see."), HumanMessage("How fast is it?")]
    await s.rlm().ainvoke({"messages": said, "context": TEXT})
    assert "human: I mean the red car.\nai: I see." in s.root_prompts()[0]
