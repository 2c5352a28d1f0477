"""A recorded run as a regression test: it runs again without a model, and says where it first goes another way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from model_server import Answer, Request, scripted
from rlm_graph import Limits, assert_replays, read_trace, tracing, write_trace
from rlm_graph.errors import ContextError, TraceError
from rlm_graph.trace.compare import compare
from rlm_graph.trace.replay import MOST, _options, limits_of

TEXT = "some text\n" * 500
ROOT = scripted(
    "```repl probe\nprint(len(context))\n```",
    "```repl chunk\nfound = llm_query_batched([f'part {i} ' + 'y' * 300 for i in range(5)])\n"
    "deep = rlm_query('look deeper', context='part')\nprint(found, deep)\n```",
    "```repl compose\nanswer['content'] = ''.join(found) + deep\nanswer['ready'] = True\n```",
)
COMMAND = [sys.executable, "-m", "rlm_graph.cli"]


def sub(request: Request) -> str:
    if len(request.messages) > 1:
        return "```repl compose\nprint('leaf'); answer['content'] = llm_query('leaf'); answer['ready'] = True\n```"
    return f"<{request.prompt[:6]}>" + "z" * 300


def thread() -> dict[str, Any]:
    return {"configurable": {"thread_id": "1"}}


def deliver(code: str) -> Callable[[Request], Any]:
    return scripted(f"```repl compose\n{code}\nanswer['ready'] = True\n```")


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The trajectory with its entries changed."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def recorded(scene: Any, tmp_path: Path) -> Path:
    with tracing(tmp_path / "run.jsonl", texts=True):
        scene(ROOT, sub).rlm().invoke({"question": "What is it?", "context": TEXT})
    return tmp_path / "run.jsonl"


def run(*arguments: object) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_a_recorded_run_replays_with_its_nested_runs_and_asks_nobody(scene: Any, tmp_path: Path) -> None:
    played = scene(ROOT, sub)
    with tracing(tmp_path / "run.jsonl", texts=True):
        played.rlm().invoke({"question": "What is it?", "context": TEXT})
    asked = len(played.server.seen)
    assert_replays(tmp_path / "run.jsonl")
    assert len(played.server.seen) == asked


def test_another_reply_shows_at_the_first_cell_that_prints_it(recorded: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        if entry["event"] == "reply" and entry["kind"] == "llm" and entry["depth"] == 0:
            entry["reply"]["text"] = "another"

    with pytest.raises(AssertionError, match="cell 1 printed something else than before"):
        assert_replays(edited(recorded, change))


def test_another_reply_of_a_nested_run_names_that_run(recorded: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        if entry["event"] == "reply" and entry["depth"] == 1:
            entry["reply"]["text"] = "another"

    with pytest.raises(AssertionError, match=r"nested run \w{8} \('look deeper'\): the answer is another now"):
        assert_replays(edited(recorded, change))


def test_a_cell_that_asks_something_else_is_told(recorded: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        if entry["event"] == "output" and entry["index"] == 1:
            entry["code"]["text"] = entry["code"]["text"].replace("part {i}", "piece {i}")

    with pytest.raises(AssertionError, match="cell 1 made 5 calls that it had not made before"):
        assert_replays(edited(recorded, change))


def test_a_cell_that_never_prints_the_same_is_told(scene: Any, tmp_path: Path) -> None:
    with tracing(tmp_path / "run.jsonl"):
        scene(deliver("import time; print(time.time_ns())")).rlm().invoke({"question": "?", "context": TEXT})
    with pytest.raises(AssertionError, match="cell 0 printed something else"):
        assert_replays(tmp_path / "run.jsonl")


def test_failed_and_refused_calls_and_failed_cells_replay(scene: Any, tmp_path: Path) -> None:
    code = "for n in 'abc':\n    try:\n        llm_query(n)\n    except SubCallError as e:\n        print(type(e), e)"
    root = scripted("```repl probe\n1 / 0\n```", f"```repl compose\n{code}\nanswer['ready'] = True\n```")
    rlm = scene(root, lambda request: Answer(status=400, text="no")).rlm(limits=Limits(max_calls=1))
    with tracing(tmp_path / "run.jsonl", texts=True):
        rlm.invoke({"question": "?", "context": TEXT})
    assert_replays(tmp_path / "run.jsonl")


def test_structured_asks_replay_and_their_attempts_are_told(scene: Any, tmp_path: Path) -> None:
    code = "r = sub_call('Paid by Mr. A.', 'Who paid?')[0]\nprint(r.answer, r.verified)\nanswer['content'] = r.answer"
    result = {"id": "1", "answer": "A", "quotes": ["Paid by Mr. A."], "confidence": 0.9}
    rlm = scene(deliver(code), lambda request: json.dumps({"results": [result]})).rlm()
    with tracing(tmp_path / "run.jsonl", texts=True):
        assert rlm.invoke({"question": "Who?", "context": TEXT})["answer"] == "A"
    run = read_trace(tmp_path / "run.jsonl").asked
    models = {reply["model"] for reply in run.replies.values() if reply["kind"] == "sub"}
    assert models == {"sub", None}
    assert_replays(tmp_path / "run.jsonl")


def test_an_answer_that_a_limit_ended_replays(scene: Any, tmp_path: Path) -> None:
    rlm = scene(scripted("```repl probe\nprint('so far')\n```")).rlm(limits=Limits(max_turns=1))
    with tracing(tmp_path / "run.jsonl"):
        assert rlm.invoke({"question": "?", "context": TEXT})["answer"].endswith("the last output was: so far")
    assert_replays(tmp_path / "run.jsonl")


def test_replies_that_the_file_holds_out_come_from_the_record_of_a_thread(scene: Any, tmp_path: Path) -> None:
    rlm = scene(ROOT, sub).rlm(checkpointer=InMemorySaver())
    rlm.invoke({"question": "What is it?", "context": TEXT}, thread())
    write_trace(rlm, thread(), tmp_path / "run.jsonl")
    assert_replays(tmp_path / "run.jsonl")


def test_replies_that_are_nowhere_are_told(scene: Any, tmp_path: Path) -> None:
    with tracing(tmp_path / "run.jsonl"):
        scene(ROOT, sub).rlm().invoke({"question": "What is it?", "context": TEXT})
    with pytest.raises(TraceError, match="6 of 6 replies are neither in the file nor in the content store"):
        assert_replays(tmp_path / "run.jsonl")


def test_a_follow_up_replays_on_the_cells_before_it(scene: Any, tmp_path: Path) -> None:
    root = deliver("n = globals().get('n', 0) + len(llm_query('ask')); print(n); answer['content'] = n")
    rlm = scene(lambda request: root(request) if len(request.messages) < 3 else "", sub).rlm(
        checkpointer=InMemorySaver()
    )
    rlm.invoke({"question": "first?", "context": TEXT}, thread())
    with tracing(tmp_path / "run.jsonl", texts=True):
        rlm.invoke({"question": "second?", "context": "another text\n" * 50}, thread())
    assert len(read_trace(tmp_path / "run.jsonl").asked.outputs) == 2
    assert_replays(tmp_path / "run.jsonl")


def test_a_file_does_not_say_what_its_code_is_kept_in(recorded: Path, tmp_path: Path) -> None:
    escaped = tmp_path / "escaped"

    def change(entry: dict[str, Any]) -> None:
        if entry["event"] == "run":
            entry["limits"] = {**entry["limits"], "isolation": "process"}
        if entry["event"] == "output":
            entry["code"]["text"] = f"open({str(escaped)!r}, 'w').write('out')"

    with pytest.raises((AssertionError, TraceError)):
        assert_replays(edited(recorded, change))
    assert not escaped.exists()


@pytest.mark.parametrize("name", ["cell_seconds", "cell_output", "kernel_memory"])
def test_what_a_file_may_ask_of_this_machine_is_bounded(recorded: Path, name: str) -> None:
    trajectory = read_trace(recorded)
    trajectory.asked.run["limits"][name] = 10**30
    assert getattr(_options(trajectory.asked, "auto"), name) == getattr(MOST, name)
    trajectory.asked.run["limits"][name] = None
    with pytest.raises(TraceError, match=f"{name}=None"):
        _options(trajectory.asked, "auto")


def test_the_limits_of_a_run_are_those_of_its_file_and_never_wider_than_ours(recorded: Path) -> None:
    run = read_trace(recorded).asked
    run.run["limits"] |= {"max_calls": 7, "max_turns": 10**9, "max_cost": 0.5, "max_depth": 99, "cell_seconds": 600.0}
    assert limits_of(run) == Limits(max_calls=7, max_cost=0.5, cell_seconds=600.0)


def test_a_context_that_has_changed_is_told(scene: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    with tracing(tmp_path / "run.jsonl", texts=True):
        scene(deliver("answer['content'] = context[:9]")).rlm().invoke({"question": "?", "context": text})
    assert_replays(tmp_path / "run.jsonl")
    text.write_text("changed")
    with pytest.raises(ContextError, match="changed"):
        assert_replays(tmp_path / "run.jsonl")


@pytest.mark.slow
def test_the_command_says_the_same_or_where_it_differs(recorded: Path, tmp_path: Path) -> None:
    assert run("replay", recorded) == (0, "the same: 4 cells of 2 runs\n")

    def change(entry: dict[str, Any]) -> None:
        if entry["event"] == "answer" and entry["depth"] == 0:
            entry["answer"] = {"chars": 3, "hash": "0", "text": "\x1b[31mold"}

    code, told = run("replay", edited(recorded, change))
    assert code == 4 and told.startswith("differs: the answer is another now: '<part ")
    assert "\x1b" not in told
    (tmp_path / "no").write_text("no")
    assert run("replay", tmp_path / "no") == (1, f"error: {tmp_path / 'no'}: not a trajectory of rlm-graph's\n")


def test_two_runs_are_compared_in_rows(recorded: Path, scene: Any, tmp_path: Path) -> None:
    numbered = "".join(f"this is line number {n:03}\n" for n in range(100))
    code = "grep('line'); llm_query(context[: len(context) // 2]); answer['content'] = 'short'"
    with tracing(tmp_path / "other.jsonl"):
        scene(deliver(code)).rlm().invoke({"question": "What is it?", "context": numbered})
    rows = {row.name: row for row in compare(read_trace(recorded), read_trace(tmp_path / "other.jsonl"))}
    assert not rows["question"].differs and not rows["models"].differs
    assert (rows["calls"].left, rows["calls"].right) == ("7", "1")
    assert (rows["turns"].left, rows["turns"].right) == ("4", "1")
    assert rows["answer"].right == "short"
    assert rows["cost"].left is None
    coverage = rows["coverage"]
    assert (coverage.left, coverage.right) == ("scanned 0.0%, read 0.0%", "scanned 100.0%, read 50.0%")


@pytest.mark.slow
def test_the_command_says_of_a_run_without_cells_what_it_is(scene: Any, tmp_path: Path) -> None:
    with tracing(tmp_path / "run.jsonl"):
        scene(lambda request: "ok").rlm(direct_below=100_000).invoke({"question": "?", "context": TEXT})
    assert_replays(tmp_path / "run.jsonl")
    told = "answered directly, without cells: there is nothing to replay\n"
    assert run("replay", tmp_path / "run.jsonl") == (0, told)
    begun = [line for line in (tmp_path / "run.jsonl").read_text().splitlines(True) if '"answer"' not in line]
    (tmp_path / "run.jsonl").write_text("".join(begun))
    told = "no cell has run: there is nothing to replay; the run had not ended\n"
    assert run("replay", tmp_path / "run.jsonl") == (0, told)


@pytest.mark.slow
def test_the_command_compares(recorded: Path) -> None:
    code, told = run("compare", recorded, recorded)
    assert code == 0
    assert "What is it?" in told and "stop reason" in told and "answered" in told
