"""A trajectory, read from its file; and the file of a run that is over, written from the record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.stores import BaseStore

from rlm_graph import models
from rlm_graph.errors import TraceError
from rlm_graph.graph import Graph
from rlm_graph.store import default_store
from rlm_graph.trace import log, recording
from rlm_graph.trace.events import (
    Answer,
    Answered,
    CellBegun,
    Entry,
    Header,
    Output,
    Run,
    Turn,
    fault,
    full,
)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a file holds, by run: the RLM that was asked, and the nested ones.

    Attributes:
        header: Its first line.
        top: Run id of the RLM that was asked.
        runs: What is told of each run, by run id, in the order in which they began.
        others: Every other entry (waves, verdicts, limits), in order.
    """

    header: Header
    top: str
    runs: dict[str, RunTold]
    others: list[Entry]

    @property
    def asked(self) -> RunTold:
        """The run at the top."""
        return self.runs[self.top]


@dataclass(frozen=True, slots=True)
class RunTold:
    """What is told of one run.

    Attributes:
        run: The question that it works on: its latest.
        turns: Its root's turns on that question.
        cells: All its cells by index, of earlier questions too.
        outputs: What came of them, by index; a cell without one had not ended.
        replies: The replies to its cells' calls, by call id. A nested run has the id of the call that made it.
        answer: How it ended; None where it did not.
    """

    run: Run
    turns: list[Turn]
    cells: dict[int, CellBegun]
    outputs: dict[int, Output]
    replies: dict[str, Answered]
    answer: Answer | None

    @property
    def models(self) -> list[str]:
        """Names of the models that it may ask: the root's, one for each depth, and who is asked again."""
        told: Mapping[str, Any] = self.run
        retry = told.get("below", {}).get("retry")
        return [*told.get("models", []), *([retry["model"]] if retry else [])]


def read_trace(path: str | os.PathLike[str]) -> Trajectory:
    """Reads a trajectory file, also one whose process was killed: a last line that is cut off is left out.

    Raises:
        TraceError: It is none, or of a later version than this one knows, or holds no run yet.
        OSError: It cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "run.jsonl")
        >>> _ = path.write_text("none")
        >>> read_trace(path)
        Traceback (most recent call last):
        ...
        rlm_graph.errors.TraceError: ...
    """
    header, entries = _lines(Path(path))
    return told(header, entries, str(path))


def told(header: Header, entries: Iterable[Entry], name: str) -> Trajectory:
    """Puts entries together, in order of time; the same said again replaces what was said before.

    Raises:
        TraceError: There is no run among them.
    """
    runs: dict[str, RunTold] = {}
    top = ""
    others: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: entry["at"]):
        if entry["event"] == "run":
            before = runs.get(entry["run"])
            kept = (before.cells, before.outputs, before.replies) if before else ({}, {}, {})
            runs[entry["run"]] = RunTold(entry, [], *kept, answer=None)
            top = entry["run"] if entry["depth"] == 0 else top
        elif (run := runs.get(entry["run"])) is not None:
            runs[entry["run"]] = _with(run, entry, others)
    if not top:
        raise TraceError(f"{name}: no run has begun in this trajectory")
    return Trajectory(header, top, runs, others)


def _with(run: RunTold, entry: Entry, others: list[Entry]) -> RunTold:
    match entry["event"]:
        case "turn":
            turns = {**{turn["id"]: turn for turn in run.turns}, entry["id"]: entry}
            return RunTold(run.run, list(turns.values()), run.cells, run.outputs, run.replies, run.answer)
        case "cell":
            # A fork, or a resume, runs the thread on from here: what stood here and behind is another branch's.
            for stale in [index for index in run.cells if index >= entry["index"]]:
                del run.cells[stale]
                run.outputs.pop(stale, None)
            run.cells[entry["index"]] = entry
        case "output":
            run.outputs[entry["index"]] = entry
        case "reply":
            run.replies[entry["id"]] = entry
        case "answer":
            return RunTold(run.run, run.turns, run.cells, run.outputs, run.replies, entry)
        case _:
            others.append(entry)
    return run


def write_trace(
    rlm: Graph,
    config: RunnableConfig,
    path: str | os.PathLike[str],
    *,
    texts: bool = False,
    content_store: BaseStore[str, bytes] | None = None,
) -> None:
    """Writes the trajectory of a thread's latest question, ended or not, from the record.

    It takes the graph and the thread rather than a result, because a result holds no journal: the checkpointer has
    that, and the content store has the replies and what nested runs did. A run without a thread leaves no record; use
    `tracing(path)` around it. With a checkpointer that is only asynchronous, call this in a thread
    (`asyncio.to_thread`).

    Args:
        rlm: What `create_rlm` returned, with a checkpointer.
        config: The thread, and the checkpoint where it is not the latest.
        path: The file; a trajectory that is there already is replaced.
        texts: Whether replies and outputs are written whole, rather than by their beginning and hash; else what looks
            like a key is left out everywhere.
        content_store: The one that the graph was made with, where it was made with one.

    Raises:
        TraceError: The thread holds no run, or its record is gone, or the file is there already and is no trajectory.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from langgraph.checkpoint.memory import InMemorySaver
        >>> from rlm_graph import create_rlm, read_trace
        >>> from rlm_graph.offline import OfflineRoot
        >>> rlm, thread = create_rlm(OfflineRoot(), checkpointer=InMemorySaver()), {"configurable": {"thread_id": "1"}}
        >>> out = rlm.invoke({"question": "When was it built?", "context": "It was built in 1907."}, thread)
        >>> path = f"{tempfile.mkdtemp()}/run.jsonl"
        >>> write_trace(rlm, thread, path)
        >>> len(read_trace(path).runs)
        1
    """
    state = rlm.get_state(config).values
    if not state.get("run"):
        raise TraceError("this thread holds no run of an RLM: is it the graph's own checkpointer and thread_id?")
    store = content_store if content_store is not None else default_store()
    entries = _of(state, models.in_step(lambda: log.past(store, state["run"])))
    if not any(entry["event"] == "run" for entry in entries):
        raise TraceError(
            f"the record of run {state['run']} is not in the content store: it went with age, or it is in another store"
        )
    file = recording.Recording(path, texts=texts)
    file.open(state["tree"])
    file.write(state["tree"], entries)
    file.close()


def _of(state: Mapping[str, Any], entries: list[Entry]) -> list[Entry]:
    """The entries of what the thread holds here: not those of another branch of it, or of a later question."""
    later = [e["at"] for e in entries if e["event"] == "run" and _is_later(e, state)]
    return [e for e in entries if e["at"] < min(later, default=float("inf")) and _belongs(e, state)]


def _is_later(run: Run, state: Mapping[str, Any]) -> bool:
    return run["run"] == state["run"] and run["number"] > int(state["start"]["question"])


def _belongs(entry: Entry, state: Mapping[str, Any]) -> bool:
    if entry["run"] != state["run"]:
        return True
    if entry["event"] == "turn" and state.get("turns"):
        return any(turn["reply"] == full(entry["reply"]) for turn in state["turns"])
    if entry["event"] != "cell" and entry["event"] != "output":
        return True
    journal = state.get("journal") or []
    if entry["index"] >= len(journal):
        return not state.get("stop_reason")
    return bool(full(entry["code"]) == journal[entry["index"]]["code"])


def _lines(path: Path) -> tuple[Header, list[Entry]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = list(file)
    if not lines or not isinstance(first := _parsed(lines[0]), dict) or first.get("event") != "trace":
        raise TraceError(f"{path}: not a trajectory of rlm-graph's")
    if type(version := first.get("version")) is int and version > recording.VERSION:
        raise TraceError(
            f"{path}: written by {str(first.get('by'))[:60]}, in version {version} of the schema; this one knows "
            f"{recording.VERSION}: pip install --upgrade rlm-graph"
        )
    if told := fault(first):
        raise TraceError(f"{path}: its first line is none of a trajectory: {told}")
    entries: list[Entry] = []
    for number, line in enumerate(lines[1:], start=2):
        if (entry := _parsed(line)) is None and number == len(lines):
            break
        if told := fault(entry):
            raise TraceError(f"{path}: line {number} is no entry of a trajectory: {told}")
        entries.append(cast(Entry, entry))
    return cast(Header, first), entries


def _parsed(line: str) -> Any:
    """The value of a line; None where it is cut off, as the last of a killed process may be."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
