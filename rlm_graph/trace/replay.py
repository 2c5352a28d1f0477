"""A recorded run, run again: its cells in a fresh kernel, its calls answered from the record, no model asked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from langchain_core.stores import BaseStore

from rlm_graph import models
from rlm_graph.errors import TraceError
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.kernel.kernel import Kernel, Rerun, Work, difference
from rlm_graph.kernel.session import KernelOptions, start_session
from rlm_graph.ledger import Limits
from rlm_graph.nodes.compose import answer_of
from rlm_graph.state import Call, Cell, Done, Reply, Source, State
from rlm_graph.store import default_store
from rlm_graph.trace.events import Answered, Output, Text, full, shown, whole
from rlm_graph.trace.trajectory import RunTold, Trajectory, read_trace

Store = BaseStore[str, bytes]

MOST = Limits(cell_seconds=3_600.0, cell_output=1_000_000, kernel_memory=16_000_000_000)
"""The most that a trajectory may ask for, of this machine and of models: it may come from anybody."""

_NAMES = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True, slots=True)
class Again:
    """A run that ran again.

    Attributes:
        run: Its id.
        cells: Its journal, with what the cells printed now.
        done: What came of them now.
        calls: What they asked: each call with its number among equal ones of its cell, its cell, and its reply.
        difference: The first place where it went another way than recorded, in words; None: nowhere.
    """

    run: str
    cells: list[Cell]
    done: list[Done]
    calls: list[tuple[Call, int, int, Reply]]
    difference: str | None


def assert_replays(
    path: str | os.PathLike[str], *, content_store: Store | None = None, isolation: Isolation = "auto"
) -> None:
    """Runs a recorded run again, without a model: a trajectory file as a regression test.

    Every run of its tree runs in a kernel of its own, nested ones too; one that was answered directly has no cells, and
    is the same. The context must still be where the file says
    that it is: in the content store, or in its files, unchanged.

    Args:
        path: A trajectory file. Written with whole texts it has the replies; else they come from the content store.
        content_store: Where the context is, and replies that the file has not; None: the default one.
        isolation: What the recorded code is kept in, as for `create_rlm`.

    Raises:
        AssertionError: It goes another way now; the message says where first.
        TraceError: It cannot be replayed: no trajectory, replies that are nowhere, or a cell without its key.
        ContextError: The context is gone or has changed.

    Example:
        >>> import tempfile
        >>> from rlm_graph import create_rlm, tracing
        >>> from rlm_graph.offline import OfflineReader, OfflineRoot
        >>> path = f"{tempfile.mkdtemp()}/run.jsonl"
        >>> with tracing(path, texts=True):
        ...     rlm = create_rlm(OfflineRoot(), OfflineReader(), direct_below=0)
        ...     out = rlm.invoke({"question": "When was it built?", "context": "It was built in 1907."})
        >>> assert_replays(path)
    """
    trajectory = read_trace(path)
    found = models.in_step(lambda: replay(trajectory, content_store, isolation))
    if found is not None:
        raise AssertionError(f"{path}: {found}")


async def replay(trajectory: Trajectory, store: Store | None = None, isolation: Isolation = "auto") -> str | None:
    """Runs every run of a trajectory again, in the order in which they began.

    Returns:
        The first place where one goes another way than recorded, in words; None: nowhere.

    Raises:
        TraceError: Replies are neither in the file nor in the store, or a key was taken out of a cell.
        ContextError: The context is gone or has changed.
    """
    for id, run in trajectory.runs.items():
        again = await run_again(trajectory, id, store, isolation)
        if again.difference is not None:
            where = f"nested run {id[:8]} ({run.run['question'][:60]!r}): " if run.run["depth"] else ""
            return where + again.difference
    return None


async def run_again(
    trajectory: Trajectory,
    id: str,
    store: Store | None = None,
    isolation: Isolation = "auto",
    cells: int | None = None,
) -> Again:
    """Runs one run's cells again in a fresh kernel.

    Args:
        trajectory: What was recorded.
        id: Which run of it.
        store: Where contexts are, and replies that the file has not.
        isolation: What its code is kept in.
        cells: How many of its cells; None: all.
    """
    store = store if store is not None else default_store()
    run = trajectory.runs[id]
    outputs = [run.outputs[index] for index in sorted(run.outputs)][:cells]
    journal = [_cell(output) for output in outputs]
    replies = await _replies(trajectory, run, store, len(outputs))
    calls: list[tuple[Call, int, int, Reply]] = []
    if not journal:
        return Again(id, [], [], [], None)

    async def on_record(ids: Sequence[str]) -> dict[str, Reply]:
        found = {id: replies[id] for id in ids if id in replies}
        index = kernel.work.index if kernel.work else 0
        calls.extend((kernel.waiting[id], kernel.nth[id], index, reply) for id, reply in found.items())
        return found

    session = await start_session(_options(run, isolation), name=f"replay-{id[:12]}")
    kernel = Kernel(id, session, lasting=False)
    try:
        reruns = await kernel.replay(_work(run, journal), store, on_record)
    finally:
        await session.close()
    again = {rerun.index: rerun for rerun in reruns}
    now = [_now(cell, again.get(cell["index"])) for cell in journal]
    told = _first_difference(outputs, again) or (_other_answer(run, now, reruns) if cells is None else None)
    return Again(id, now, [rerun.done for rerun in reruns], calls, told)


def _first_difference(outputs: Sequence[Output], again: dict[int, Rerun]) -> str | None:
    for output in outputs:
        rerun = again.get(output["index"])
        told = difference(_as_far_as_known(output, rerun.done), rerun) if rerun is not None else None
        if told is not None:
            return told
    return None


def _other_answer(run: RunTold, cells: list[Cell], reruns: Sequence[Rerun]) -> str | None:
    """Whether the answer is another now. It is worked out as `compose` does."""
    if run.answer is None or run.answer["stop_reason"] == "direct":
        return None
    drafts = [rerun.done.answer for rerun in reruns if rerun.done.answer is not None]
    turns = [{"note": "", "reply": _whole(turn["reply"], f"turn {n}")} for n, turn in enumerate(run.turns, 1)]
    first = next((at for at, cell in enumerate(cells) if cell["question"] == run.run["number"]), len(cells))
    start = {"question": run.run["number"], "turn": 0, "cell": first}
    state = cast(State, {"draft": drafts[-1] if drafts else None, "turns": turns, "journal": cells, "start": start})
    answer = answer_of(state)
    if whole(answer)["hash"] == run.answer["answer"]["hash"]:
        return None
    return f"the answer is another now: {answer[:200]!r}, and {shown(run.answer['answer'])[:200]!r} before"


def _as_far_as_known(output: Output, done: Done) -> Cell:
    """The cell as recorded; a text that is held out is taken for what is printed now where the hash is the same."""
    cell = _cell(output)
    cell["stdout"] = _known(output["stdout"], done.stdout)
    cell["error"] = None if output["error"] is None else _known(output["error"], done.error or "")
    return cell


def _known(recorded: Text, now: str) -> str:
    text = full(recorded)
    if text is None:
        return now if whole(now)["hash"] == recorded["hash"] else shown(recorded)
    return text


def _whole(text: Text, what: str) -> str:
    """A text that a file never cuts.

    Raises:
        TraceError: A key was taken out of it.
    """
    known = full(text)
    if known is None:
        raise TraceError(
            f"{what} holds what looks like a key, which the file leaves out, so it cannot run again: record the run "
            "with whole texts (--texts, or texts=True)"
        )
    return known


def _now(cell: Cell, rerun: Rerun | None) -> Cell:
    return cell if rerun is None else {**cell, "stdout": rerun.done.stdout, "error": rerun.done.error}


def _cell(output: Output) -> Cell:
    """An entry of the journal."""
    error = output["error"]
    return {
        "index": output["index"],
        "turn": output["turn"],
        "phase": output["phase"],
        "code": _whole(output["code"], f"cell {output['index']}"),
        "stdout": shown(output["stdout"]),
        "error": None if error is None else shown(error),
        "context": output["context"],
        "question": output["question"],
        "asked": output["asked"],
        "failed": output["failed"],
        "refused": output["refused"],
        "calls": None,
        "report": output["report"],
        "lost": output["lost"],
    }


def _work(run: RunTold, journal: list[Cell]) -> Work:
    below = run.run["below"]
    return Work(
        run=run.run["run"],
        depth=run.run["depth"],
        index=len(journal),
        journal=journal,
        sources=cast(list[Source], run.run["sources"]),
        cell=None,
        phase=journal[-1]["phase"],
        question=run.run["number"],
        model=below["settings"],
        window=below["window"],
        tools=below["tools"],
        retry=below["retry"]["settings"] if "retry" in below else None,
    )


def limits_of(run: RunTold) -> Limits:
    """The limits that the run had, as far as a file may set them: `MOST`.

    Raises:
        TraceError: They are no limits.
    """
    told = run.run["limits"]
    try:
        had = Limits(**{name: value for name, value in told.items() if name in _NAMES})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TraceError(f"the limits of run {run.run['run'][:8]} are none: {error}") from error
    return Limits(**{name: _narrower(getattr(MOST, name), getattr(had, name)) for name in _NAMES})


def _narrower(most: float | None, had: float | None) -> Any:
    if most is None or had is None:
        return had if most is None else most
    return type(most)(min(most, had))


def _options(run: RunTold, isolation: Isolation) -> KernelOptions:
    """The bounds of the kernel that the run had. What keeps its code in, a file may not say."""
    had = limits_of(run)
    return KernelOptions(
        cell_seconds=had.cell_seconds,
        cell_output=had.cell_output,
        kernel_memory=had.kernel_memory,
        isolation=isolation,
    )


async def _replies(trajectory: Trajectory, run: RunTold, store: Store, cells: int) -> dict[str, Reply]:
    """The replies by call id: from the file, and those that it holds out from the store.

    Raises:
        TraceError: Some are nowhere.
    """
    answered = [reply for reply in run.replies.values() if reply["index"] < cells]
    replies = {reply["id"]: known for reply in answered if (known := _reply(reply)) is not None}
    held_out = [reply["id"] for reply in answered if reply["id"] not in replies]
    top = trajectory.asked.run["run"]
    found = await store.amget([f"run/{top}/reply/{id}" for id in held_out])
    for id, data in zip(held_out, found, strict=True):
        if data is not None:
            replies[id] = Reply(text=json.loads(data)["text"])
    missing = len(answered) - len(replies)
    if missing:
        raise TraceError(
            f"{missing} of {len(answered)} replies are neither in the file nor in the content store: record the run "
            "with whole texts (--texts, or texts=True), or with a checkpointer and a thread, so that its record is kept"
        )
    return replies


def _reply(reply: Answered) -> Reply | None:
    if reply["status"] != "answered":
        return Reply(error=reply["status"], message=reply["message"])
    text = full(reply["reply"]) if reply["reply"] is not None else ""
    return None if text is None else Reply(text=text)
