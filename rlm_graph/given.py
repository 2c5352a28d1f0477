"""A raw context on its way from the caller to `load`: no checkpoint keeps it, no stream shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from langgraph.channels.untracked_value import UntrackedValue
from pydantic import WithJsonSchema


class Opaque:
    """A raw context on its way from the caller to `load`.

    Streams, traces and their serializers show it by its type alone: the value is in a closure, out of their reach.
    """

    __slots__ = ("take",)

    def __init__(self, value: Any) -> None:
        self.take: Callable[[], Any] = lambda: value

    def __repr__(self) -> str:
        return f"<context: {type(self.take()).__name__}>"


class Intake(UntrackedValue[Any]):
    """A channel that no checkpoint keeps and no stream event shows the inside of."""

    def update(self, values: Sequence[Any]) -> bool:
        return super().update([v if v is None or isinstance(v, Opaque) else Opaque(v) for v in values])


Given = Annotated[
    Any,
    WithJsonSchema(
        {
            "title": "Context",
            "description": (
                "What to read: a text, or the name of one of the contexts that this graph offers; also a list of "
                "texts, a mapping of names to texts, JSON-like data, or a reference that hold() returned. Left "
                "empty, the thread's earlier context."
            ),
            "anyOf": [{"type": "string"}, {"type": "array", "items": {}}, {"type": "object"}],
        }
    ),
    Intake,
]
"""The channel, and what a form or a tool's description says of it."""
