"""What the kernel says, checked before it is believed: it was written by a process that runs hostile code."""

from __future__ import annotations

import re
from typing import Any, cast, get_args

from ..state import Call, CallKind, Done, Place
from .inside.bound import LATE_CHARACTERS, bounded, clean
from .inside.frames import Malformed
from .inside.reading import PARTS

# Escaping and the line that counts what is left out add to what the kernel was asked to keep.
_SLACK = 500
_ERROR_LIMIT = 8_000
_NAME_LIMIT = 200
_VARIABLES = 40
_MAP = re.compile(f"[0-9]{{{PARTS}}}")

NOWHERE = "0" * PARTS
"""The map of a text of which nothing was looked at."""
_UNREAD = 20
_MOST = 2**53
"""The most that a count may say: the largest whole number that JSON's readers agree on."""
_KINDS = frozenset(get_args(CallKind))


def read_calls(arg: Any) -> list[Call]:
    """Reads the rows of a `calls` message.

    Raises:
        Malformed: a row is no call.
    """
    if not isinstance(arg, list):
        raise Malformed("calls that are no list")
    return [_read_call(row) for row in arg]


def _read_call(row: Any) -> Call:
    if not (isinstance(row, list) and len(row) == 7):
        raise Malformed("a call without its seven fields")
    number, kind, prompt, context, model, group, place = row
    if not (
        type(number) is int
        and isinstance(kind, str)
        and kind in _KINDS
        and isinstance(prompt, str)
        and (model is None or isinstance(model, str))
        and type(group) is int
    ):
        raise Malformed("a call with fields of the wrong type")
    return Call(number, cast(CallKind, kind), prompt, context, model, group, _read_place(place))


def _read_place(value: Any) -> Place | None:
    if not _is_span(value):
        return None
    source, start, end = value
    return (source[:_NAME_LIMIT] if isinstance(source, str) else source), start, end


def weigh(call: Call) -> int:
    """Estimates what a call takes in memory, in bytes."""
    weight, left = 200 + len(call.prompt), [call.context]
    while left:
        value = left.pop()
        weight += 64
        if isinstance(value, str):
            weight += len(value)
        elif isinstance(value, list):
            left.extend(value)
        elif isinstance(value, dict):
            weight += sum(map(len, value))
            left.extend(value.values())
    return weight


def read_report(arg: dict[str, Any], output_limit: int) -> Done:
    """Reads the report of a cell's end, bounding whatever is to be shown.

    Raises:
        Malformed: it is no report.
    """
    output, error, late = arg.get("output"), arg.get("error"), arg.get("late")
    if not isinstance(output, str) or not (error is None or isinstance(error, str)):
        raise Malformed("a report without output")
    return Done(
        stdout=_shown(output, output_limit + _SLACK),
        error=None if error is None else _shown(error, _ERROR_LIMIT),
        answer=_read_answer(arg.get("answer")),
        report={
            "late": _shown(late, LATE_CHARACTERS + _SLACK) if isinstance(late, str) else "",
            "vars": _read_variables(arg.get("vars")),
            "candidates": _read_summary(arg.get("candidates")),
            "chunks": _read_summary(arg.get("chunks")),
            "coverage": _read_coverage(arg.get("coverage")),
        },
    )


def _shown(text: str, limit: int) -> str:
    return bounded(clean(text), limit)


def _read_answer(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or "content" not in value:
        raise Malformed("an answer without content")
    return {
        "content": value["content"],
        "ready": value.get("ready") is True,
        "citations": _read_citations(value.get("citations")),
    }


def _read_citations(value: Any) -> dict[str, Any]:
    rows = value.get("passages") if isinstance(value, dict) else None
    passages = [row for row in rows if _is_passage(row)] if isinstance(rows, list) else []
    return {"passages": passages, "more": _whole(value.get("more")) if isinstance(value, dict) else 0}


def _is_passage(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 4 and _is_span(row[:3]) and isinstance(row[3], str)


def _is_span(row: Any) -> bool:
    if not (isinstance(row, list) and len(row) == 3):
        return False
    named = isinstance(row[0], str) or (type(row[0]) is int and 0 <= row[0] <= _MOST)
    return named and type(row[1]) is int and type(row[2]) is int and 0 <= row[1] <= row[2] <= _MOST


def _read_coverage(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict) or not isinstance(value.get("unread"), list):
        return None
    unread = [row for row in value["unread"][:_UNREAD] if _is_span(row)]
    counts = {name: _whole(value.get(name)) for name in ("chars", "scanned", "read", "unread_more")}
    return counts | {"unread": unread, "map": _read_map(value.get("map"))}


def _read_map(value: Any) -> dict[str, str]:
    rows = value if isinstance(value, dict) else {}
    given = {name: rows.get(name) for name in ("scanned", "read")}
    return {name: row if isinstance(row, str) and _MAP.fullmatch(row) else NOWHERE for name, row in given.items()}


def _read_variables(value: Any) -> list[list[Any]]:
    if not isinstance(value, list):
        return []
    rows = [row for row in value[:_VARIABLES] if isinstance(row, list) and len(row) == 3]
    return [[str(row[0])[:_NAME_LIMIT], str(row[1])[:_NAME_LIMIT], _whole(row[2])] for row in rows]


def _read_summary(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    spread = value.get("tokens")
    tokens = [_whole(count) for count in [*(spread if isinstance(spread, list) else [])[:3], 0, 0, 0][:3]]
    return {name: _whole(value.get(name)) for name in ("items", "chars", "over")} | {"tokens": tokens}


def _whole(value: Any) -> int:
    """A count, as far as every format that it is kept in can hold it."""
    return min(max(value, 0), _MOST) if type(value) is int else 0
