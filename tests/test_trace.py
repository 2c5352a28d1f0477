"""What a run shows of itself: events while it works, and its trajectory on file. Both are what the record holds."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from langgraph.checkpoint.memory import InMemorySaver

import crash_program
from model_server import Answer, ModelServer, Request, by_model, scripted
from rlm_graph import Limits, assert_replays, create_rlm, hold, read_trace, tracing, write_trace
from rlm_graph.errors import TraceError
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.store import FolderStore
from rlm_graph.trace import recording, schema
from rlm_graph.trace.compare import compare
from rlm_graph.trace.events import ANSWER_HEAD, HEAD, full, shown, whole, without_texts
from rlm_graph.trace.report import write_report

TEXT = "some text\n" * 500
KEY = "sk-" + "a1b2" * 10
ROOT = scripted(
    "```repl probe\nprint('x' * 3000)\n```",
    "```repl chunk\nfound = llm_query_batched([f'part {i} ' + 'y' * 500 for i in range(3)])\n"
    "deep = rlm_query('look deeper', context='part ' * 100)\nprint(found, deep)\n```",
    "```repl compose\nanswer['content'] = found[0] + ' and ' + deep\nanswer['ready'] = True\n```",
)


def sub(request: Request) -> str:
    """Plain calls echo their beginning at some length; the nested RLM delivers at once."""
    if len(request.messages) > 1:
        return "```repl compose\nanswer['content'] = llm_query('leaf')\nanswer['ready'] = True\n```"
    return f"<{request.prompt[:6]}>" + "z" * 500


def streamed(rlm: Any, given: Any, config: Any = None) -> list[dict[str, Any]]:
    return [event for _, event in rlm.stream(given, config, stream_mode="custom", subgraphs=True)]


def thread(name: str = "1") -> dict[str, Any]:
    return {"configurable": {"thread_id": name}}


def in_file(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in {"at", "asked", "seconds"}}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run with a nested RLM: its events, its state, and its trajectory, written live and afterwards."""
    folder = tmp_path_factory.mktemp("recorded")
    patch = pytest.MonkeyPatch()
    patch.setenv("RLM_GRAPH_HOME", str(folder / "home"))
    with ModelServer(by_model({"root": ROOT, "sub": sub})) as server:
        from conftest import Scene

        rlm = Scene(server).rlm(checkpointer=InMemorySaver())
        with tracing(folder / "live.jsonl"):
            events = streamed(rlm, {"question": "What is it?", "context": TEXT}, thread())
        write_trace(rlm, thread(), folder / "after.jsonl")
        write_trace(rlm, thread(), folder / "texts.jsonl", texts=True)
        yield folder, events, rlm.get_state(thread()).values
    patch.undo()


def kinds(events: list[dict[str, Any]], depth: int) -> list[str]:
    return [e["event"] for e in events if e["depth"] == depth and e["event"] != "progress"]


def test_events_tell_the_run_as_it_goes(recorded: Any) -> None:
    _, events, _ = recorded
    assert kinds(events, 0) == [
        *("run", "turn", "cell", "output"),
        *("turn", "cell", "dispatch", "verdict", "dispatch", "reply", "verdict", "output"),
        *("turn", "cell", "output", "answer"),
    ]
    assert [e["phase"] for e in events if e["event"] == "cell" and e["depth"] == 0] == ["probe", "chunk", "compose"]


def test_a_nested_run_tells_the_same_one_level_deeper_under_the_id_of_its_call(recorded: Any) -> None:
    _, events, _ = recorded
    assert kinds(events, 1) == ["run", "turn", "cell", "dispatch", "verdict", "output", "answer"]
    (reply,) = [e for e in events if e["event"] == "reply"]
    assert {e["run"] for e in events if e["depth"] == 1} == {reply["id"]}
    assert reply["kind"] == "rlm"


def test_an_event_never_holds_a_whole_long_text(recorded: Any) -> None:
    _, events, _ = recorded
    assert not [e for e in events for run in ("x" * (HEAD + 1), "y" * HEAD, "z" * HEAD) if run in json.dumps(e)]
    assert max(len(json.dumps(e)) for e in events) < 1_500


def test_progress_counts_calls_tokens_and_cost_of_the_tree_against_the_limit(recorded: Any) -> None:
    _, events, state = recorded
    last = [e for e in events if e["event"] == "progress"][-1]
    assert (last["asked"], last["done"], last["failed"], last["of"]) == (5, 5, 0, 1_000)
    assert (last["of_tokens"], last["of_cost"]) == (None, None)
    assert 0 < last["input_tokens"] < state["usage"]["input_tokens"]
    assert "cost" in last


def test_a_file_s_lines_are_those_of_the_published_schema(recorded: Any) -> None:
    published = json.loads(schema.PUBLISHED.read_text())
    assert published == schema.schema(), "python -m rlm_graph.trace.schema"
    check = jsonschema.Draft202012Validator(published)
    folder, _, _ = recorded
    for name in ("live", "texts"):
        for line in in_file(folder / f"{name}.jsonl"):
            check.validate(line)


def test_the_file_says_what_the_journal_says(recorded: Any) -> None:
    folder, _, state = recorded
    run = read_trace(folder / "texts.jsonl").asked
    outputs = [run.outputs[index] for index in sorted(run.outputs)]
    assert [(o["phase"], full(o["code"]), full(o["stdout"]), o["asked"]) for o in outputs] == [
        (cell["phase"], cell["code"], cell["stdout"], cell["asked"]) for cell in state["journal"]
    ]
    assert [full(turn["reply"]) for turn in run.turns] == [turn["reply"] for turn in state["turns"]]
    assert full(run.answer["answer"]) == state["answer"]
    assert run.answer["usage"] == state["usage"]


def test_every_call_has_its_prompt_reply_model_tokens_and_times(recorded: Any) -> None:
    folder, _, _ = recorded
    calls = [e for e in in_file(folder / "live.jsonl") if e["event"] == "reply"]
    assert sorted((c["depth"], c["kind"], c["status"], c["model"]) for c in calls) == [
        *[(0, "llm", "answered", "sub")] * 3,
        (0, "rlm", "answered", None),
        (1, "llm", "answered", "sub"),
    ]
    plain = next(c for c in calls if c["kind"] == "llm")
    assert plain["prompt"]["head"].startswith("part") and plain["reply"]["head"].startswith("<part")
    assert plain["input_tokens"] > 0 and plain["output_tokens"] > 0 and plain["asked"] < plain["at"]


def test_the_input_and_long_texts_are_held_out_of_a_file_unless_asked_for(recorded: Any) -> None:
    folder, _, _ = recorded
    held_out, asked_for = (folder / f"{name}.jsonl" for name in ("live", "texts"))
    written = "".join(line for line in held_out.open() if '"answer":' not in line)
    assert "z" * (HEAD + 1) not in written and "x" * (HEAD + 1) not in written
    assert "z" * 500 in asked_for.read_text() and "x" * 3_000 in asked_for.read_text()
    assert TEXT[:100] not in asked_for.read_text()


def test_a_file_written_afterwards_says_what_the_live_one_said(recorded: Any) -> None:
    folder, _, _ = recorded
    live, after = (
        sorted(json.dumps(without_time(e), sort_keys=True) for e in in_file(folder / f"{name}.jsonl"))
        for name in ("live", "after")
    )
    assert after == live


def test_a_file_is_its_owner_s_alone(recorded: Any) -> None:
    folder, _, _ = recorded
    assert (folder / "live.jsonl").stat().st_mode & 0o077 == 0


def test_what_looks_like_a_key_is_taken_out(scene: Any, tmp_path: Path) -> None:
    root = scripted(f"```repl compose\nprint({KEY!r} + 'x' * 300)\nanswer['ready'] = True\n```")
    with tracing(tmp_path / "run.jsonl"):
        scene(root).rlm().invoke({"question": "?", "context": TEXT})
    output = read_trace(tmp_path / "run.jsonl").asked.outputs[0]
    assert output["stdout"]["head"].startswith("[key]")


@pytest.fixture
def with_a_key(scene: Any, tmp_path: Path) -> Path:
    """A run with a key wherever a text may hold one, recorded as `held_out.jsonl` and as `texts.jsonl`."""
    code = f"print({KEY!r})\nanswer.update(content={{'found': context[4:60]}}, citations=grep('key'), ready=True)"
    form = {"title": "F", "type": "object", "properties": {"found": {"type": "string"}}, "required": ["found"]}
    played = scene(scripted("no cell", f"It is {KEY}.\n```repl compose\n{code}\n```"))
    rlm = played.rlm(checkpointer=InMemorySaver(), response_format=form)
    given = {"question": f"What is {KEY} for?", "context": f"The key {KEY} opens it.\n" + TEXT}
    with tracing(tmp_path / "held_out.jsonl"):
        out = rlm.invoke(given, thread())
    assert KEY in json.dumps(out["structured_response"]) and KEY in out["citations"][0]["quote"]
    write_trace(rlm, thread(), tmp_path / "texts.jsonl", texts=True)
    return tmp_path


def test_no_key_stands_in_a_file_or_its_page_unless_texts_are_asked_for(with_a_key: Path) -> None:
    held_out, texts = (with_a_key / f"{name}.jsonl" for name in ("held_out", "texts"))
    for file in (held_out, texts):
        write_report(file, file.with_suffix(".html"))
    assert KEY not in held_out.read_text() and KEY not in held_out.with_suffix(".html").read_text()
    run = read_trace(held_out).asked
    assert run.run["question"] == "What is [key] for?" and run.answer["citations"][0]["quote"].startswith(
        "The key [key]"
    )
    assert "print('[key]')" in shown(run.outputs[0]["code"]) and "[key]" in run.answer["structured_response"]["found"]
    assert shown(run.turns[1]["reply"]).startswith("It is [key].")
    assert "The key [key] opens it." in held_out.with_suffix(".html").read_text()
    whole = texts.read_text()
    assert whole.count(KEY) >= 6 and KEY in texts.with_suffix(".html").read_text()


def test_a_cell_whose_key_was_taken_out_is_not_run_without_it(with_a_key: Path) -> None:
    with pytest.raises(TraceError, match=r"cell 0 holds what looks like a key, which the file leaves out.*--texts"):
        assert_replays(with_a_key / "held_out.jsonl")
    assert_replays(with_a_key / "texts.jsonl")


def test_what_a_file_leaves_out_makes_no_difference_to_a_comparison(with_a_key: Path) -> None:
    pair = [read_trace(with_a_key / f"{name}.jsonl") for name in ("held_out", "texts")]
    rows = compare(*pair)
    assert [row.name for row in rows if row.differs] == []
    told = {row.name: row.left for row in rows}
    assert told["question"] == "What is [key] for?" and re.search(r"\(\d+ characters, hash \w{8}\)$", told["answer"])


def test_what_is_no_text_of_its_own_is_cut_as_well() -> None:
    long = {"rows": ["x" * 9_000, f"{'y' * (ANSWER_HEAD - 10)} {KEY}"], KEY: 1}
    entry: Any = {"event": "answer", "answer": whole("a"), "warnings": [KEY], "structured_response": long}
    held: Any = without_texts(entry)
    assert held["structured_response"]["rows"][0].endswith("x… (9,000 characters)")
    assert len(json.dumps(held)) < 2 * ANSWER_HEAD + 500
    assert "sk-a" not in json.dumps(held)


def test_a_refused_and_a_failed_call_are_told(scene: Any, tmp_path: Path) -> None:
    code = "for n in range(3):\n    try:\n        llm_query(f'{n}')\n    except SubCallError as e:\n        print(e)\n"
    root = scripted(f"```repl compose\n{code}answer['ready'] = True\n```")
    rlm = scene(root, lambda request: Answer(status=400, text="no")).rlm(limits=Limits(max_calls=1, max_tokens=90_000))
    with tracing(tmp_path / "run.jsonl"):
        events = streamed(rlm, {"question": "?", "context": TEXT})
    statuses = [r["status"] for r in read_trace(tmp_path / "run.jsonl").asked.replies.values()]
    assert statuses == ["SubCallError", "BudgetExceeded", "BudgetExceeded"]
    assert [e["limit"] for e in events if e["event"] == "limit"] == ["max_calls"]
    assert {(e["of"], e["of_tokens"]) for e in events if e["event"] == "progress"} == {(1, 90_000)}


def test_a_second_question_has_a_file_of_its_own_with_the_cells_before_it(scene: Any, tmp_path: Path) -> None:
    turn = "```repl compose\nn = globals().get('n', 0) + 1; answer['content'] = str(n); answer['ready'] = True\n```"
    rlm = scene(lambda request: turn).rlm(checkpointer=InMemorySaver())
    with tracing(tmp_path / "run.jsonl"):
        rlm.invoke({"question": "first?", "context": TEXT}, thread())
        rlm.invoke({"question": "second?"}, thread())
    first, second = (read_trace(tmp_path / name).asked for name in ("run.jsonl", "run-2.jsonl"))
    assert [run.run["question"] for run in (first, second)] == ["first?", "second?"]
    assert [full(run.answer["answer"]) for run in (first, second)] == ["1", "2"]
    assert [len(run.outputs) for run in (first, second)] == [1, 2]
    assert [len(run.turns) for run in (first, second)] == [1, 1]


def test_of_a_forked_thread_the_branch_that_is_asked_for_is_written(scene: Any, tmp_path: Path) -> None:
    replies = iter(["'a'", "'b'"])
    root = scripted(
        "```repl probe\nprint(1)\n```",
        lambda: f"```repl compose\nanswer['content'] = {next(replies)}; answer['ready'] = True\n```",
    )

    def taken(request: Request) -> str:
        reply = root(request)
        return reply() if callable(reply) else reply

    rlm = scene(taken).rlm(checkpointer=InMemorySaver())
    rlm.invoke({"question": "?", "context": TEXT}, thread())
    (before,) = [s for s in rlm.get_state_history(thread()) if s.next == ("plan",) and s.values.get("journal")]
    fork = rlm.update_state(before.config, {"notice": "Think again."})
    assert rlm.invoke(None, fork)["answer"] == "b"
    write_trace(rlm, thread(), tmp_path / "run.jsonl")
    run = read_trace(tmp_path / "run.jsonl").asked
    assert full(run.answer["answer"]) == "b"
    assert (len(run.turns), len(run.outputs)) == (2, 2)


def test_a_direct_answer_is_a_turn_and_an_answer(tmp_path: Path) -> None:
    with tracing(tmp_path / "run.jsonl"):
        create_rlm(OfflineRoot(), OfflineReader()).invoke({"question": "Which text?", "context": TEXT})
    run = read_trace(tmp_path / "run.jsonl").asked
    assert (len(run.turns), len(run.outputs), run.answer["stop_reason"]) == (1, 0, "direct")


def test_the_source_is_named_by_reference(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    source = hold(tmp_path / "text.txt")
    with tracing(tmp_path / "run.jsonl"):
        create_rlm(OfflineRoot(), OfflineReader()).invoke({"question": "Which text?", "context": source})
    (told,) = read_trace(tmp_path / "run.jsonl").asked.run["sources"]
    assert {name: told[name] for name in ("id", "path", "pin", "chars")} == {
        name: source[name] for name in ("id", "path", "pin", "chars")
    }
    assert "head" not in told and "tail" not in told


def test_a_thread_without_a_run_and_a_record_that_is_gone_are_told(scene: Any, tmp_path: Path) -> None:
    rlm = scene(ROOT).rlm(checkpointer=InMemorySaver())
    with pytest.raises(TraceError, match="holds no run"):
        write_trace(rlm, thread(), tmp_path / "run.jsonl")


def test_what_is_no_trajectory_is_told(tmp_path: Path) -> None:
    for text, told in (("", "not a trajectory"), ('{"a": 1}\n', "not a trajectory"), ("%PDF", "not a trajectory")):
        (tmp_path / "file").write_text(text)
        with pytest.raises(TraceError, match=told):
            read_trace(tmp_path / "file")
    later = {"event": "trace", "version": 99, "by": "rlm-graph 9", "texts": False}
    (tmp_path / "file").write_text(json.dumps(later) + "\n")
    with pytest.raises(TraceError, match="rlm-graph 9, in version 99"):
        read_trace(tmp_path / "file")


def test_a_file_that_is_no_trajectory_is_not_written_over(scene: Any, tmp_path: Path) -> None:
    kept = tmp_path / "notes.txt"
    kept.write_text("mine")
    rlm = scene(ROOT, sub).rlm(checkpointer=InMemorySaver())
    with pytest.raises(TraceError, match="is there already and is no trajectory"), tracing(kept):
        pass
    (tmp_path / "run-2.jsonl").write_text("mine")
    with tracing(tmp_path / "run.jsonl") as files:
        rlm.invoke({"question": "?", "context": TEXT}, thread())
        with pytest.raises(TraceError, match=r"run-2\.jsonl is there already"):
            rlm.invoke({"question": "and?"}, thread())
    with pytest.raises(TraceError, match="is there already"):
        write_trace(rlm, thread(), kept)
    assert {kept.read_text(), (tmp_path / "run-2.jsonl").read_text()} == {"mine"}
    assert files == [tmp_path / "run.jsonl"]
    with tracing(files[0]):  # one of ours is replaced
        pass
    assert files[0].read_text() == ""


@pytest.mark.parametrize(
    ("event", "change", "told"),
    [
        ("trace", {"version": "1"}, "first line .*version: "),
        ("run", {"question": 5}, "line 2 .*question: "),
        ("run", {"sources": []}, "line 2 .*sources: "),
        ("run", {"at": "x"}, "line 2 .*at: "),
        ("run", {"at": float("nan")}, "line 2 .*at: "),
        ("answer", {"citations": [1]}, "citations"),
        ("turn", {"reply": None}, "reply"),
        ("run", {"event": "none"}, "line 2 "),
    ],
)
def test_a_line_of_another_form_is_told(tmp_path: Path, event: str, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "run.jsonl"
    with tracing(path):
        create_rlm(OfflineRoot(), OfflineReader()).invoke({"question": "Which text?", "context": TEXT})
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**e, **(change if e["event"] == event else {})}) + "\n" for e in entries))
    with pytest.raises(TraceError, match=told):
        read_trace(path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_run_leaves_a_trajectory_that_can_be_read_and_replayed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RLM_GRAPH_TRACE", str(tmp_path / "traces"))
    killed = threading.Event()

    def sub(request: Request) -> Answer:
        """The run is in its last calls when it is killed, however long that takes."""
        held = {"until": killed.is_set} if request.number >= 40 else {}
        return replace(crash_program.sub(request), **held)

    with ModelServer(by_model({"root": crash_program.ROOT, "sub": sub})) as server:
        task = {"base_url": server.base_url, "home": str(tmp_path / "home"), "saver": str(tmp_path / "t.sqlite")}
        given = crash_program.Task(**task, thread="1", result=str(tmp_path / "out"), resume=False)
        process = multiprocessing.get_context("spawn").Process(target=crash_program.run, args=(given,))
        process.start()
        deadline = time.monotonic() + 60
        while sum(r.sent is not None for r in server.seen) < 30 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        killed.set()
        process.join(60)
    (path,) = (tmp_path / "traces").iterdir()
    run = read_trace(path).asked
    assert sorted(run.outputs) == [0, 1] and sorted(run.cells) == [0, 1, 2]
    assert len(run.replies) > 10 and run.answer is None
    store = FolderStore(tmp_path / "home")
    assert_replays(path, content_store=store)
    write_report(path, tmp_path / "run.html", content_store=store)
    page = (tmp_path / "run.html").read_text("utf-8")
    data = json.loads(page.partition('id="run">')[2].partition("</script>")[0])
    assert data["question"] == run.run["question"] and not data["ended"]
    (told,) = data["runs"]
    assert [(cell["index"], cell["ended"]) for cell in told["cells"]] == [(0, True), (1, True), (2, False)]
    assert [cell["code"]["text"] for cell in told["cells"]] == [full(run.cells[n]["code"]) for n in range(3)]


def heard(rlm: Any, given: Any) -> tuple[list[str], list[str]]:
    """What `stream_mode="messages"` yields: its messages' ids, and their texts joined by id."""
    texts: dict[str, str] = {}
    for _, (message, _) in rlm.stream(given, stream_mode="messages", subgraphs=True):
        texts[message.id] = texts.get(message.id, "") + message.text
    return list(texts), list(texts.values())


def test_the_messages_stream_has_the_answer_and_no_sub_call_s_or_root_s_tokens(scene: Any) -> None:
    _, texts = heard(scene(ROOT, sub).rlm(), {"question": "?", "context": TEXT})
    (answer,) = texts
    assert answer.startswith("<part ")


def test_the_messages_stream_has_a_direct_answer_s_tokens_once(scene: Any) -> None:
    rlm = scene(lambda request: "a direct answer in several words").rlm(direct_below=100_000)
    chunks = [m for m, _ in rlm.stream({"question": "?", "context": TEXT}, stream_mode="messages")]
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == "a direct answer in several words"
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_disk_that_was_full_for_a_moment_is_told_and_leaves_no_torn_file(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, written = recording._opened, []

    class FullOnce:
        def __init__(self, path: Path, how: int) -> None:
            self.file = opened(path, how)

        def write(self, line: str) -> None:
            written.append(line)
            if len(written) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(line)

        def close(self) -> None:
            self.file.close()

    monkeypatch.setattr(recording, "_opened", FullOnce)
    rlm = scene(scripted("```repl compose\nanswer['content'] = len(context); answer['ready'] = True\n```")).rlm()
    with pytest.raises(OSError, match="No space left"), tracing(tmp_path / "run.jsonl"):
        await rlm.ainvoke({"question": "q", "context": "some text " * 100})
    assert len(written) == 4
    assert read_trace(tmp_path / "run.jsonl").asked.run["question"] == "q"
