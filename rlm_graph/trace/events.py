"""The events of a run: one small typed set, and how much of a text each shows.

An *event* goes to `stream_mode="custom"` and is bounded: of a long text it has the beginning. An *entry* is the same
with all that a trajectory file holds. `said.py` makes them, by pure functions of a node's input and of its update, so
that they cannot say what the journal does not. After a resume the same may be said again: who reads takes the last, by
`run` and `index` (or `number`, or `id`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rlm_graph import models
from rlm_graph.identity import content_hash
from rlm_graph.outcome import Citation
from rlm_graph.state import Phase

HEAD = 200
"""Characters of a text that is not shown whole."""

ANSWER_HEAD = 4_000
"""The same for an answer."""


class Text(TypedDict):
    """A text, whole as `text` where it is short or was asked for; else its `head`.

    A head is the beginning of the text, without what looks like a key; of a text that is not cut, all but that.
    """

    chars: int
    hash: str
    """Hash of the whole (hex)."""
    head: NotRequired[str]
    text: NotRequired[str]


class Said(TypedDict):
    """What every event says. In the stream it also has `namespace`: LangGraph's, of that graph; a fork has others."""

    at: Annotated[float, Field(allow_inf_nan=False)]
    """Seconds since the epoch."""
    run: str
    """Which RLM it is about: its run id, which for a nested one is the id of the call that made it."""
    depth: int
    """0: the run that was asked for; 1: an RLM that its cells called; and so on."""


class Retry(TypedDict):
    """Who is asked again for answers in doubt: a model's name, and the hash of it and its settings."""

    model: str
    settings: str


class Below(TypedDict):
    """What a run's cells may call: hash of the sub-model and its settings, its window in tokens, the user's tools."""

    settings: str
    window: int | None
    tools: list[dict[str, Any]]
    retry: NotRequired[Retry]
    """Where that is another than the sub-model."""


class Run(Said):
    """`load` took a question in."""

    event: Literal["run"]
    tree: str
    """Run id of the top of the recursion tree and number of its question, `<run>.<number>`."""
    number: int
    """Which of the thread's questions it is, from 0."""
    question: str
    sources: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """The thread's contexts by reference (see `state.Source`), the present one last; in the stream that one alone."""
    models: list[str]
    """In a file alone, as what follows. Names: the root's, then one for each depth; the last serves all deeper ones."""
    below: Below
    limits: dict[str, float | None]


class Turn(Said):
    """The root replied."""

    event: Literal["turn"]
    id: str
    model: str
    reply: Text
    """In a file never cut: it holds the cells."""
    input_tokens: int
    output_tokens: int
    cost: float | None
    """US dollars; None while the price is not known."""
    seconds: float


class CellBegun(Said):
    """A cell begins."""

    event: Literal["cell"]
    index: int
    turn: int
    phase: Phase
    code: Text
    """In a file never cut."""


class Output(Said):
    """A cell has ended and stands in the journal."""

    event: Literal["output"]
    index: int
    turn: int
    phase: Phase
    stdout: Text
    error: Text | None
    asked: int
    failed: int
    refused: int
    lost: bool
    report: dict[str, Any]
    """In a file alone, as what follows."""
    code: Text
    context: int
    question: int


class Dispatch(Said):
    """A wave of calls goes out, for the cell `index`."""

    event: Literal["dispatch"]
    index: int
    wave: int
    plain: int
    nested: int


class Progress(Said):
    """How far the calls of the whole tree are; a few times a second, in the stream alone."""

    event: Literal["progress"]
    namespace: str
    asked: int
    done: int
    failed: int
    of: int
    """`max_calls`."""
    of_tokens: int | None
    of_cost: float | None
    """`max_tokens` and `max_cost`; None: not limited."""
    input_tokens: int
    output_tokens: int
    cost: float | None


class Answered(Said):
    """A call has its reply: in the stream those of nested RLMs alone, `progress` counts the others."""

    event: Literal["reply"]
    id: str
    index: int
    """The cell that asked."""
    kind: str
    prompt: Text
    context: NotRequired[Text]
    """What a nested RLM is asked of, or a tool's arguments (JSON)."""
    model: str | None
    """Who answered; None for a nested RLM, a refusal, or an answer from the cache."""
    status: str
    """`answered`, or the type of the error."""
    message: str
    reply: Text | None
    input_tokens: int
    output_tokens: int
    cost: float | None
    asked: float
    """When the cell asked (seconds since the epoch); `at` is when the reply came."""


class Verdict(Said):
    """`verify` has joined a wave."""

    event: Literal["verdict"]
    index: int
    wave: int
    uncertain: int
    """Structured asks whose answers are in doubt, and are asked again."""


class LimitReached(Said):
    """A limit has been reached."""

    event: Literal["limit"]
    limit: str


class Answer(Said):
    """The run has ended."""

    event: Literal["answer"]
    answer: Text
    stop_reason: str
    usage: dict[str, Any]
    """Of the whole tree so far."""
    warnings: list[str]
    citations: NotRequired[list[Citation]]
    coverage: NotRequired[dict[str, Any] | None]
    structured_response: NotRequired[Any]


class Header(TypedDict):
    """The first line of a trajectory file."""

    event: Literal["trace"]
    version: int
    """Of the schema; it grows when a reader of the older one would misread."""
    by: str
    """Who wrote it: name and version."""
    texts: bool
    """Whether prompts, replies and outputs are whole."""


Entry = Run | Turn | CellBegun | Output | Dispatch | Answered | Verdict | LimitReached | Answer
Event = Entry | Progress

_UNCUT = {"turn": ("reply",), "cell": ("code",), "output": ("code",)}
"""Texts that a file never cuts."""

_PLAIN = ("citations", "structured_response", "warnings")
"""What holds texts that are no `Text`."""

_FILE_ONLY = {"run": ("models", "below", "limits"), "output": ("code", "context", "question", "report")}


class AtCell(TypedDict):
    """Which cell asks."""

    run: str
    depth: int
    index: int


class Made(AtCell):
    """A call that a cell has made."""

    kind: str
    prompt: Text
    context: NotRequired[Text]
    asked: float


@cache
def form() -> TypeAdapter[Header | Entry]:
    """The form of one line of a trajectory file."""
    return TypeAdapter(Annotated[Header | Entry, Field(discriminator="event")])


def fault(line: Any) -> str | None:
    """What is wrong with the value of a line, in words; None where it has the form."""
    try:
        form().validate_python(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None


def whole(text: str) -> Text:
    """A text as it is."""
    hash = content_hash(text.encode("utf-8", "surrogatepass"))
    return {"chars": len(text), "hash": hash, "text": text}


def full(text: Text) -> str | None:
    """The text where it is held whole, else None."""
    return text.get("text")


def shown(text: Text) -> str:
    """What is held of the text."""
    return text.get("text", text.get("head", ""))


def held_out(text: Text, head: int = HEAD) -> Text:
    """A long text by its beginning; one that is short stays whole."""
    full = text.get("text")
    if full is None:
        return text
    # A key that the cut goes through is seen whole.
    shown = models.without_keys(full[: head + models.KEY_CHARS])[:head]
    if len(full) <= head and shown == full:
        return text
    return {"chars": text["chars"], "hash": text["hash"], "head": shown}


def beginning(text: str, most: int = ANSWER_HEAD) -> str:
    """As `held_out`, of a text that is no `Text`: what is cut off is counted."""
    shown = models.without_keys(text[: most + models.KEY_CHARS])
    return shown if len(text) <= most else f"{shown[:most]}… ({len(text):,} characters)"


def without_texts(entry: Entry, *, all: bool = False) -> Entry:
    """An entry with its long texts held out, those that a file may do without, or all of them; and without keys."""
    uncut = () if all else _UNCUT.get(entry["event"], ())
    head = ANSWER_HEAD if entry["event"] == "answer" and not all else HEAD
    held: dict[str, Any] = dict(entry)
    for name, value in entry.items():
        if name in _PLAIN:
            held[name] = _beginnings(value)
        elif is_text(value):
            text = cast(Text, value)
            held[name] = held_out(text, text["chars"] if name in uncut else head)
    if entry["event"] == "run":
        held["question"] = models.without_keys(entry["question"])
    return cast(Entry, held)


def _beginnings(value: Any) -> Any:
    if isinstance(value, str):
        return beginning(value)
    if isinstance(value, Mapping):
        return {beginning(str(key)): _beginnings(each) for key, each in value.items()}
    return [_beginnings(each) for each in value] if isinstance(value, list | tuple) else value


def event_of(entry: Entry, namespace: str) -> dict[str, Any]:
    """The entry as the stream shows it: bounded."""
    event: dict[str, Any] = dict(without_texts(entry, all=True))
    for name in _FILE_ONLY.get(entry["event"], ()):
        event.pop(name, None)
    if entry["event"] == "run":
        sizes = ("name", "kind", "chars", "tokens", "items")
        event["sources"] = [{k: v for k, v in s.items() if k in sizes} for s in entry["sources"][-1:]]
        event["question"] = event["question"][:HEAD]
    if entry["event"] == "answer":
        event = {k: v for k, v in event.items() if k not in {"citations", "coverage", "structured_response"}}
        event["warnings"] = [line[:HEAD] for line in event["warnings"][:5]]
    if entry["event"] == "reply":
        event["message"] = entry["message"][:HEAD]
    return {**event, "namespace": namespace}


def is_text(value: Any) -> bool:
    """Whether it is a `Text`."""
    return isinstance(value, Mapping) and "hash" in value and "chars" in value
