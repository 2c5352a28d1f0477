"""What once hung, leaked, overspent or passed in silence: each a case of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from langchain_core.stores import InMemoryByteStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from model_server import Answer, Request, scripted
from rlm_graph import Limits, context, hold, models, tree
from rlm_graph.errors import NothingRead
from rlm_graph.given import Opaque
from rlm_graph.kernel import pool
from rlm_graph.kernel.session import KernelOptions, Session, close_all
from rlm_graph.nodes import dispatch
from rlm_graph.sweep import DAY, sweep

TEXT = "some text to work on. " * 100
GIVEN: Any = {"question": "q", "context": TEXT}
THREAD: Any = {"configurable": {"thread_id": "1"}}


def one_cell(code: str) -> Any:
    return scripted(f"```repl chunk\n{code}\nanswer['ready'] = True\n```")


def deep(code: str) -> Any:
    """A sub-model whose nested runs are one cell; plain prompts are echoed."""
    reply = f"```repl chunk\n{code}\nanswer['ready'] = True\n```"
    return lambda request: reply if len(request.messages) > 1 else f"<{request.prompt}>"


def run(rlm: Any, how: str, given: Any = GIVEN, config: Any = None) -> Any:
    """Runs it the synchronous or the asynchronous way."""
    return rlm.invoke(given, config) if how == "invoke" else asyncio.run(rlm.ainvoke(given, config))


BOTH = pytest.mark.parametrize("how", ["invoke", "ainvoke"])
ECHO_DEEP = deep("answer['content'] = context")


@BOTH
def test_more_nested_runs_than_a_wave_may_hold_go_in_several(scene: Any, how: str) -> None:
    s = scene(one_cell("answer['content'] = str(rlm_query_batched(['q'] * 3, list('abc')))"), ECHO_DEEP)
    assert run(s.rlm(limits=Limits(max_breadth=2)), how)["answer"] == "['a', 'b', 'c']"


@BOTH
@pytest.mark.parametrize("code", ["llm_query_batched(['p'] * 250)", "rlm_query_batched(['q'] * 2, list('ab'))"])
def test_langgraphs_own_bound_of_one_task_at_a_time_is_no_deadlock(scene: Any, how: str, code: str) -> None:
    s = scene(one_cell(f"answer['content'] = len({code})"), ECHO_DEEP)
    assert run(s.rlm(), how, config={"max_concurrency": 1})["answer"] in {"250", "2"}


class FullDisk(InMemoryByteStore):
    """A store that cannot take the reply of a nested run."""

    async def amset(self, key_value_pairs: Any) -> None:
        if any("/reply/" in key for key, _ in key_value_pairs):
            raise OSError(28, "No space left on device")
        await super().amset(key_value_pairs)


@BOTH
def test_a_failing_store_under_a_nested_run_ends_the_run(scene: Any, how: str) -> None:
    s = scene(one_cell("answer['content'] = rlm_query('q', context='a')"), ECHO_DEEP)
    rlm = s.rlm(content_store=FullDisk(), checkpointer=InMemorySaver())
    with pytest.raises(OSError, match="No space left"):
        run(rlm, how, config=THREAD)


@pytest.mark.usefixtures("runs_left_waiting")
async def test_a_nested_run_asks_a_human_for_itself_and_each_is_heard(scene: Any) -> None:
    code = "try:\n    got = len(llm_query_batched(['p'] * 9))\nexcept BudgetExceeded:\n    got = 'none'\n"
    s = scene(
        one_cell("answer['content'] = str(rlm_query_batched(['q'] * 2, list('ab')))"),
        deep(f"{code}answer['content'] = f'{{context}} {{got}}'"),
    )
    rlm = s.rlm(checkpointer=InMemorySaver(), approve_above=5)
    out = await rlm.ainvoke(GIVEN, THREAD)
    first, second = out["__interrupt__"]
    out = await rlm.ainvoke(Command(resume={first.id: "approve", second.id: "refuse"}), THREAD)
    assert sorted(eval(out["answer"])) in (["a 9", "b none"], ["a none", "b 9"])


async def test_a_second_nested_call_does_not_stop_the_threads(scene: Any) -> None:
    """Both nested runs are answered only once all 200 plain prompts have come."""
    code = (
        "import threading\nfrom concurrent.futures import ThreadPoolExecutor\ndeep = []\n"
        "def nested(): deep.append(rlm_query('q', context='a'))\n"
        "threads = [threading.Thread(target=nested) for _ in range(2)]\nthreads[0].start()\n"
        "def plain(i):\n    if i == 40: threads[1].start()\n    return llm_query(f'p{i}')\n"
        "with ThreadPoolExecutor(8) as pool: got = list(pool.map(plain, range(200)))\n"
        "for t in threads: t.join()\nanswer['content'] = f'{len(set(got))} {len(deep)}'"
    )

    def sub(request: Request) -> Answer:
        if len(request.messages) > 1:
            return Answer(ECHO_DEEP(request), until=lambda: plain() == 200)
        return Answer("x" + request.prompt, latency=0.02)

    def plain() -> int:
        return sum(r.prompt.startswith("p") for r in s.server.seen)

    s = scene(one_cell(code), sub)
    assert (await s.rlm().ainvoke(GIVEN))["answer"] == "200 2"
    asked = [r for r in s.server.seen if r.model == "sub"]
    nested, last = [r for r in asked if len(r.messages) > 1], [r for r in asked if r.prompt.startswith("p")][-1]
    assert len(nested) == 2 and all(r.sent is not None and r.sent > last.arrived for r in nested)


async def test_threads_use_up_the_calls_that_are_left_to_the_last(scene: Any) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\ngot = []\ndef one(i):\n"
        "    try: got.append(llm_query(f'p{i}'))\n    except BudgetExceeded: pass\n"
        "with ThreadPoolExecutor(16) as pool: list(pool.map(one, range(60)))\nanswer['content'] = str(len(got))"
    )
    s = scene(one_cell(code))
    out = await s.rlm(limits=Limits(max_calls=23)).ainvoke(GIVEN)
    assert (out["answer"], out["stop_reason"], s.server.asked("sub")) == ("23", "max_calls", 23)
    assert out["usage"]["refused"] == 37


@pytest.mark.timeout(300)
async def test_no_more_kernels_live_than_may_and_nested_runs_wait_for_a_place(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MOST", 3)
    most = [0]

    def sub(request: Request) -> str:
        with pool._lock:
            most[0] = max(most[0], pool._living())
        return str(ECHO_DEEP(request))

    s = scene(one_cell("answer['content'] = ''.join(rlm_query_batched(['q'] * 8, list('abcdefgh')))"), sub)
    assert (await s.rlm().ainvoke(GIVEN))["answer"] == "abcdefgh"
    assert most[0] <= 3


async def test_a_kernel_that_takes_in_its_context_makes_no_room_for_others(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MOST", 2)
    started: list[str] = []
    start, binding = pool.start_session, context.binding

    async def counted(options: KernelOptions, *, name: str) -> Session:
        started.append(name)
        return await start(options, name=name)

    def slow(*given: Any) -> dict[str, Any]:
        time.sleep(1.0)
        return binding(*given)

    monkeypatch.setattr(pool, "start_session", counted)
    monkeypatch.setattr(context, "binding", slow)
    rlm = scene(one_cell("answer['content'] = len(context)")).rlm()
    outs = await asyncio.gather(*[rlm.ainvoke(GIVEN) for _ in range(4)])
    assert len({out["answer"] for out in outs}) == 1
    assert len(started) == 4


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    with pool._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            pool.died("a run", 0)
            os._exit(0 if (pool._kernels, pool._sweeping) == ({}, None) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.usefixtures("runs_left_waiting")
async def test_two_branches_of_a_thread_run_at_the_same_time(scene: Any) -> None:
    root = scripted(
        "```repl probe\nkept = 7\n```",
        "```repl chunk\ngot = llm_query_batched(list('abcdef'))\n"
        "answer['content'] = f'{kept} {len(got)}'; answer['ready'] = True\n```",
    )
    s = scene(root, lambda r: Answer(r.prompt, latency=0.2))
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke(GIVEN, THREAD, interrupt_after=["probe"])
    here = (await rlm.aget_state(THREAD)).config
    forks = [await rlm.aupdate_state(here, {"notice": note}) for note in ("one", "two")]
    outs = await asyncio.gather(*[rlm.ainvoke(None, fork) for fork in forks])
    assert [out["answer"] for out in outs] == ["7 6", "7 6"]
    assert all(out["warnings"] == [] for out in outs)


async def test_a_context_in_use_is_not_swept_however_old_it_is(scene: Any, home: Path) -> None:
    import os

    held = hold(TEXT)
    for file in [p for p in home.rglob("*") if p.is_file()]:
        os.utime(file, (0, 0))
    s = scene(one_cell("answer['content'] = len(context)"))
    assert (await s.rlm().ainvoke({"question": "q", "context": held}))["answer"] == "2200"
    sweep(home, now=(home / "source" / held["id"]).stat().st_mtime + 6 * DAY)
    assert (await s.rlm().ainvoke({"question": "q2", "context": held}))["answer"] == "2200"


@pytest.mark.usefixtures("runs_left_waiting")
async def test_the_contexts_of_nested_runs_are_kept_as_long_as_their_run(scene: Any, home: Path) -> None:
    s = scene(one_cell("answer['content'] = rlm_query('q', context='a deep text')"), ECHO_DEEP)
    rlm = s.rlm(checkpointer=InMemorySaver())
    await rlm.ainvoke(GIVEN, THREAD, interrupt_before=["verify"])
    sweep(home, now=time.time() + 8 * DAY)
    assert len(list((home / "source").iterdir())) == 2


@pytest.mark.usefixtures("runs_left_waiting")
async def test_a_replay_that_asks_less_than_before_is_told(scene: Any, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"import pathlib\nn = 2 if pathlib.Path({str(flag)!r}).exists() else 3\ngot = llm_query_batched(['p'] * n)"
    s = scene(scripted(f"```repl chunk\n{code}\n```", "```repl compose\nanswer['ready'] = True\n```"))
    rlm = s.rlm(checkpointer=InMemorySaver(), isolation="process")  # a cage would hide the file
    await rlm.ainvoke(GIVEN, THREAD, interrupt_after=["chunk"])
    await rlm.ainvoke(None, THREAD, interrupt_before=["plan"])
    close_all()
    flag.touch()
    out = await rlm.ainvoke(None, THREAD)
    assert out["warnings"][1:] == ["The kernel was rebuilt, and cell 0 made 2 calls, and 3 before."]


async def test_a_reply_that_was_cut_is_an_error_that_says_so(scene: Any) -> None:
    root = scripted("```repl chunk\nllm_query('p')\n```", "FINAL(done)")
    s = scene(root, lambda r: Answer("The suppliers are A, B, C an", finish_reason="length"))
    with pytest.raises(NothingRead, match="was cut at its maximum length"):
        await s.rlm().ainvoke(GIVEN)
    assert "the reply of 'sub' was cut at its maximum length, after 28 characters" in s.root_prompts()[1]


async def test_a_direct_answer_that_was_cut_is_warned_of(scene: Any) -> None:
    s = scene(lambda r: Answer("It is bl", finish_reason="length"))
    out = await s.rlm(direct_below=16_000).ainvoke(GIVEN)
    assert out["answer"] == "It is bl" and "was cut at its maximum length" in out["warnings"][0]


async def test_a_nested_run_that_nobody_waits_for_any_more_ends_with_the_cell(scene: Any) -> None:
    code = (
        "import threading, time\nthreading.Thread(target=lambda: rlm_query('q', context='a'), daemon=True).start()\n"
        "time.sleep(0.3)\nanswer['content'] = 'enough'"
    )
    s = scene(one_cell(code), lambda r: Answer("```repl probe\n1\n```", latency=0.2))
    out = await s.rlm(limits=Limits(max_turns=50)).ainvoke(GIVEN)
    assert out["answer"] == "enough"
    assert len([r for r in s.server.seen if r.model == "sub"]) < 10


def test_no_serializer_sees_inside_a_context_on_its_way_in() -> None:
    from langsmith._internal._serde import dumps_json

    secret = Opaque("the whole text")
    assert b"whole text" not in orjson.dumps({"context": secret}, default=repr)
    assert b"whole text" not in dumps_json({"context": secret})


async def test_a_key_that_a_provider_echoes_goes_nowhere(scene: Any) -> None:
    root = scripted("```repl chunk\nllm_query('p')\n```", "FINAL(done)")
    s = scene(root, lambda r: Answer("Incorrect API key provided: sk-subsecret1234567890.", status=401))
    with pytest.raises(NothingRead, match=r"Incorrect API key provided: \[key\]"):
        await s.rlm().ainvoke(GIVEN)
    assert "Incorrect API key provided: [key]" in s.root_prompts()[1]


async def test_cells_cannot_fill_the_store_with_what_they_ask(
    scene: Any, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(tree, "MOST_KEPT", 1_000_000)
    code = (
        "got = []\nfor i in range(9):\n"
        "    try: got.append(rlm_query('q', context=f'{i} ' + 'x' * 300_000))\n"
        "    except BudgetExceeded as error: got.append(str(error)[:24])\n"
        "answer['content'] = ' '.join(got)"
    )
    s = scene(one_cell(code), deep("answer['content'] = context[0]"))
    out = await s.rlm(checkpointer=InMemorySaver()).ainvoke(GIVEN, THREAD)
    assert out["answer"].startswith("0 1 2 what the calls") and out["usage"]["refused"] == 6
    assert sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) < 1_500_000


@pytest.mark.parametrize("code", ["llm_query(f'p{n}')", "llm_query_batched([f'p{n}', f'q{n}'])"])
async def test_a_cell_that_goes_on_asking_for_what_it_cannot_have_is_ended(
    scene: Any, monkeypatch: pytest.MonkeyPatch, home: Path, code: str
) -> None:
    monkeypatch.setattr(dispatch, "MOST_REFUSALS", 30)
    loop = f"import random\nwhile True:\n    n = random.random()\n    try: {code}\n    except Exception: pass"
    s = scene(scripted(f"```repl chunk\n{loop}\n```", "```repl compose\nanswer['content'] = 'on'\n```", "FINAL(on)"))
    out = await s.rlm(limits=Limits(max_calls=2), checkpointer=InMemorySaver()).ainvoke(GIVEN, THREAD)
    assert out["answer"] == "on"
    assert "KernelError: its calls were refused over and over" in s.root_prompts()[1]
    assert len(list(home.rglob("reply/*"))) < 200


@pytest.mark.parametrize("begins", ["sk-", "AIza", "gsk_", "hf_", "xai-", "ghp_", "github_pat_", "AKIA"])
def test_what_looks_like_a_key_is_taken_out(begins: str) -> None:
    """Whoever gave it out."""
    key = begins + "A1B2" * 4 + ("" if begins == "AKIA" else "c3d4" * 5)
    assert models.without_keys(f"token {key} was refused") == "token [key] was refused"
    for said in (f"Bearer {'a1' * 8}", f"sk_live_{'a1' * 12}", f"key-{'0f' * 16}"):
        assert "[key]" in models.without_keys(f"{said} was refused") and "a1a1" not in models.without_keys(said)
    assert models.without_keys("hf_hub_download failed in ASIA") == "hf_hub_download failed in ASIA"


@pytest.mark.parametrize(
    "code",
    [
        "skip_unless_reliable_fork",
        "key_value_pairs_2024_total",
        "keyword_arguments_1",
        "f'Bearer {token}'",
        "skipinitialspace",
    ],
)
def test_a_name_in_code_is_no_key(code: str) -> None:
    assert models.without_keys(code) == code


def test_failing_synchronous_runs_leave_no_threads_and_no_trees(scene: Any) -> None:
    from rlm_graph.trees import _trees

    s = scene(scripted("```repl chunk\ngot = llm_query_batched(list('abcdefghij'))\n```", Answer("down", status=500)))
    rlm, trees, before = s.rlm(), {*_trees}, {*threading.enumerate()}
    counts = []
    for _ in range(4):
        with pytest.raises(Exception, match="the root model 'root' failed"):
            rlm.invoke(GIVEN)
        # A thread that is to end takes a moment.
        deadline = time.monotonic() + 30
        while threads_of_models() - before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not threads_of_models() - before
        counts.append(threading.active_count())
    assert not {*_trees} - trees
    assert counts[-1] <= counts[0] + 5


def threads_of_models() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("rlm-model")}
