"""What flows: context → cells → calls → answers → answer.

What a checkpoint holds is plain data (`TypedDict`s of strings, numbers, lists), so that every saver, Studio
and a JSON client can write it and read it back. What lives on the host only is a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.messages import AnyMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph.message import add_messages
from langgraph.managed import RemainingSteps
from pydantic import Field
from typing_extensions import TypedDict

from rlm_graph.budget import Budget, Granted
from rlm_graph.given import Given
from rlm_graph.outcome import Citation, Coverage

Phase = Literal["probe", "filter", "chunk", "compose"]
PHASES: tuple[Phase, ...] = ("probe", "filter", "chunk", "compose")


class Source(TypedDict, total=False):
    """A context, held by reference: what it is and where its bytes are, never the bytes.

    `{"type": "rlm_context", "id": …}` is enough to name one that is in the content store already.
    """

    type: Literal["rlm_context"]
    id: str
    """Hash of the content (hex)."""
    kind: Literal["text", "list", "documents", "mapping", "json", "file", "files", "directory"]
    name: str
    """What a reader calls it: a file's name, or a word for its kind."""
    chars: int
    """Characters in all its texts together; for files that no one has decoded yet, an estimate from the bytes."""
    tokens: int
    """Tokens of the same: counted where a vocabulary is cached and the text is small, else an estimate."""
    items: int
    """How many texts (1 for a plain text)."""
    head: str
    tail: str
    """First and last few hundred characters, for the description."""
    about: str
    """One or more lines on its shape: lengths of the items, keys, metadata fields, the files by suffix."""
    left_out: list[str]
    """What was not taken in, with the reason ("logo.png: binary"); at most 20 lines, the last one counts the rest."""
    path: str
    """For kinds that stay where they are (`file`, `files`, `directory`): the absolute path (of the root)."""
    encoding: str
    pin: str
    """Size, time and hash of what `path` was when it was taken in; changed since is an error."""


CallKind = Literal["llm", "rlm", "tool", "sub"]
"""A plain call, a nested RLM, one of the user's tools, one structured ask of `sub_call(…)`."""


Place = tuple[str | int, int, int]
"""Source, start and end of a part of the context."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the running cell's for an answer.

    `number` is the kernel's own count and lives as long as the kernel; durable identity is the call id
    (see `identity.py`). Calls with one `group` were made by one `*_batched` call.
    """

    number: int
    kind: CallKind
    prompt: str
    """What is asked. For `tool`: the tool's name; for `sub`: the task."""
    context: Any = None
    """JSON-like data. For `rlm`: the child's context, or None; for `tool`: the arguments by name; for `sub`: the
    chunk and how its answer is to look."""
    model: str | None = None
    group: int = 0
    place: Place | None = None
    """Where what it is about stands, as far as the kernel says; it is shown to who watches, and no part of the id."""


class Asked(TypedDict):
    """A call of a batch, as `dispatch` stores it for an `ask` task under its call id."""

    id: str
    kind: CallKind
    """An `rlm` that nests no deeper has become an `llm`."""
    prompt: str
    context: Any
    nth: int
    """How many equal calls came before it in its cell."""
    place: Place | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call got: a text, or a typed error (`SubCallError` or a kind of it) and its message."""

    text: str | None = None
    error: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The cell goes on computing or waits; these calls of its have not been reported before."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The cell has ended.

    Attributes:
        stdout: What it printed, standard error and the value of a last expression included; head and tail kept
            when it is longer than `cell_output` characters, the middle counted.
        error: The traceback in the model's own lines, or None.
        answer: `{"content": …, "ready": bool}` as JSON-like data, or None where the cell has not touched it.
        report: What the kernel says of its variables: `{"vars": [[name, type, size], …],
            "candidates": {"items": int, "chars": int} | None, "chunks": {"items", "chars", "over",
            "tokens": [min, median, max]} | None}`. `over` counts chunks that do not fit the sub-model.
    """

    stdout: str
    error: str | None
    answer: dict[str, Any] | None
    report: dict[str, Any]


class Queued(TypedDict):
    """A labelled cell of a reply that has not run yet."""

    phase: Phase
    code: str


class Cell(TypedDict):
    """An entry of the journal: a cell that ran, and what came of it. With the stored replies it can run again."""

    index: int
    turn: int
    phase: Phase
    code: str
    stdout: str
    error: str | None
    context: int
    """Which of the thread's contexts (`State.sources`) it ran on."""
    question: int
    """Which of the thread's questions it worked for, from 0."""
    asked: int
    """Calls that it made, and of those the ones that failed, and were refused by a limit."""
    failed: int
    refused: int
    calls: str | None
    """Key, in the content store, of the list of its call ids."""
    report: dict[str, Any]
    lost: bool
    """It ended its kernel, so a replay leaves it out."""


class Turn(TypedDict):
    """A turn of the root's: what the host told it beside the cells' outputs, and its reply."""

    note: str
    reply: str


class Wave(TypedDict):
    """What one `dispatch` lets go."""

    number: int
    batches: list[str]
    """Keys, in the content store, of batches (`Asked` by call id) for `ask` tasks."""
    alone: list[str]
    """Keys of batches of one call each: a tool that asks a human, in a task of its own."""
    nested: list[str]
    """Keys of the calls that are a whole RLM one level deeper, each."""
    calls: int
    """How many it lets go; 0 where all were refused or answered."""
    allowance: int
    """How many more plain calls a running `sub_call` may take up meanwhile."""
    kernel: str
    """Key of the waiting cell's kernel in the process that dispatched: a cache's name, nothing durable."""
    uncertain: int
    """How many structured asks `verify` sends back to `dispatch`."""


class Draft(TypedDict):
    """The answer as far as the kernel holds it."""

    ready: bool
    content: Any
    """The value, or where it is large its key in the content store as `{"stored": key}`."""
    cited: NotRequired[str]
    """Key of the passages that it rests on, as the kernel gave them: not checked yet."""


class Start(TypedDict):
    """Where the work on the present question begins in `turns` and `journal`."""

    question: int
    turn: int
    cell: int


class Usage(TypedDict):
    """What a question cost, its whole tree together.

    `cost` is in US dollars, None where the price of a model that was asked is not known; `seconds` are wall-clock,
    without those in which a human was waited for. `by_model` and `by_depth` map to
    `{"calls", "input_tokens", "output_tokens", "cost"}`.
    """

    turns: int
    calls: int
    failed: int
    refused: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    seconds: float
    by_model: dict[str, dict[str, Any]]
    by_depth: dict[str, dict[str, Any]]


StopReason = Literal[
    "answered",
    "direct",
    "max_turns",
    "max_calls",
    "max_tokens",
    "max_cost",
    "max_seconds",
    "max_steps",
    "errors",
    "refused",
]


def _append(entries: Sequence[Any] | None, writes: Sequence[Sequence[Any]]) -> list[Any]:
    joined = list(entries or ())
    for write in writes:
        joined.extend(write)
    return joined


class Input(TypedDict, total=False):
    """What a caller gives.

    `question`, or `messages` whose last human message is the question. From Python, `context` may also be documents or
    a `pathlib.Path` (or several, or a directory); a path and a held context cost no checkpoint anything.
    """

    question: Annotated[
        str,
        Field(title="Question", description="What to find out. Left empty, the last human message is the question."),
    ]
    messages: Annotated[list[AnyMessage], Field(title="Messages", description="In place of a question."), add_messages]
    context: Given
    budget: Granted


class NestedInput(TypedDict, total=False):
    """What a `sub_call` gives to the RLM one level deeper: a context by reference, and whose tree it belongs to."""

    question: str
    sources: list[Source]
    run: str
    tree: str


class NestedCall(TypedDict):
    """What `dispatch` stores for a call that a whole RLM answers."""

    id: str
    question: str
    source: Source
    share: Budget | None
    """What one that runs elsewhere may come to."""
    place: Place | None


class Output(TypedDict, total=False):
    """What a caller gets."""

    answer: str | None
    messages: Annotated[list[AnyMessage], add_messages]
    usage: Usage
    stop_reason: StopReason | None
    warnings: list[str]
    """What did not go as it should, though the run went on: a kernel that was rebuilt and ran another way, chunks that
    a model refused. And that no chunk held an answer, where none did."""
    citations: list[Citation]
    coverage: Coverage
    structured_response: Any
    """The answer as `response_format` wants it; None where it could not be had."""
    verified: int
    """How many answers of `sub_call(…)` stood the check."""


class State(Input, Output, total=False):
    """All that a thread holds. Everything beyond `Input` and `Output` is private."""

    run: str
    tree: str
    """Run id and question of the top of the recursion tree: the ledger's key, and the stored replies'."""
    earlier: list[str]
    """What was said on the thread before the present question, cut to what fits a prompt."""
    asked: str
    """The question being worked on; `question` is cleared when it has been taken in, so that a follow-up shows."""
    sources: list[Source]
    started: float
    """When `load` took the question in (seconds since the epoch)."""
    start: Start
    turns: Annotated[list[Turn], DeltaChannel(_append, list)]
    journal: Annotated[list[Cell], DeltaChannel(_append, list)]
    queue: list[Queued]
    running: Queued | None
    """The cell that has begun and not ended: computing, or waiting for answers."""
    phase: Phase
    wave: Wave | None
    notice: str
    """What the host has to say to the root before its next turn (no cell found, queue dropped, limit reached)."""
    errors: int
    """Turns in a row that brought nothing: no cell, or a failed one."""
    draft: Draft | None
    misfits: list[str]
    """What was wrong with each answer to the present question that did not have the form asked for."""
    limit: StopReason | None
    """The limit that has been reached, if one has: it gives its name to the end."""
    over: StopReason | None
    """The limit that allows the root no further turn, if one does not."""
    steps: RemainingSteps


class SubCall(TypedDict):
    """What `dispatch` sends to a `sub_call` task: references only."""

    run: str
    tree: str
    cell: int
    """Index of the cell that asks."""
    kernel: str
    batch: NotRequired[str]
    nested: NotRequired[str]
    alone: NotRequired[bool]
    """The batch is one tool that asks a human: its interrupt is this task's own."""
    allowance: NotRequired[int]
    """Set on the one task of a wave that also takes up the plain calls which the cell makes meanwhile."""


class SubCallOutput(TypedDict):
    """Nothing: replies go on record and to the cell."""
