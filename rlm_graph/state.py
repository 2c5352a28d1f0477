"""What flows: context → cells → calls → answers → answer.

What a checkpoint holds is plain data (`TypedDict`s of strings, numbers, lists), so that every saver, Studio
and a JSON client can write it and read it back. What lives on the host only is a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

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


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the running cell's for an answer.

    `number` is the kernel's own count and lives as long as the kernel; durable identity is the call id
    (see `identity.py`). Calls with one `group` were made by one `*_batched` call.
    """

    number: int
    kind: Literal["llm", "rlm"]
    prompt: str
    context: Any = None
    """For `rlm`: the child's context as JSON-like data (`str`, list, dict), or None."""
    model: str | None = None
    group: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call got: a text, or a typed error (`SubCallError`, `BudgetExceeded`, `PromptTooLong`) with its message."""

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
            "candidates": {"items": int, "chars": int} | None, "chunks": {"items", "chars", "tokens": [min, median, max],
            "over": int} | None}`. `over` counts chunks that do not fit the sub-model.
    """

    stdout: str
    error: str | None
    answer: dict[str, Any] | None
    report: dict[str, Any]
