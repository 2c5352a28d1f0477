"""JSON schemas that may be hostile: a cell's code sends them, and the host checks answers by them. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from rlm_graph import models

DEEPEST = 50
"""Levels to which an answer may be nested."""
MOST_CHECKS = 10_000_000
"""Checks of a value against a part of a schema that one answer may take: a second of computing, about.

A schema of 1 kB that refers to parts of itself twice, those to others twice, and so on, takes 2^n.
"""

_MOST_PARTS = 50_000
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies", "extends")
_EITHER = ("properties", "prefixItems")
_DEEPER = (
    "patternProperties", "additionalProperties", "items", "additionalItems", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip


def validator(schema: Any) -> jsonschema_rs.Validator:
    """A validator that reads nothing from elsewhere and whose patterns take linear time.

    Raises:
        ValueError: It is no JSON schema, or takes too many checks.
    """
    try:
        made = jsonschema_rs.validator_for(
            schema, retriever=_nothing_elsewhere, pattern_options=jsonschema_rs.RegexOptions()
        )
        most = checks_taken(schema, 0)
    except Exception as error:
        raise ValueError(f"not a JSON schema: {models.first_line(error)}") from error
    if most > MOST_CHECKS // 1_000:
        raise ValueError(f"not a JSON schema to check by: it takes more than {MOST_CHECKS // 1_000:,} checks a value")
    return made


def _nothing_elsewhere(uri: str) -> Any:
    raise ValueError(f"a reference to {uri[:100]}: only references inside the schema are followed")


def takes_too_long(schema: Any, value: Any) -> bool:
    """Whether to check this value by this schema could take more than `MOST_CHECKS`."""
    depth, count = extent(value)
    try:
        return checks_taken(schema, depth) * count > MOST_CHECKS
    except (ValueError, LookupError, RecursionError):  # parts that only a deep value reaches
        return True


def extent(value: Any) -> tuple[int, int]:
    """Levels to which a value is nested, and how many values there are in it."""
    depth, count, level = 0, 1, [value]
    while level:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth, count = depth + bool(level), count + len(level)
    return depth, count


def checks_taken(schema: Any, depth: int) -> int:
    """How many parts of a schema are checked, at most, on the way from a value to one so many levels deeper.

    Raises:
        ValueError: It refers to what cannot be followed, or to itself without end.
    """
    known: dict[tuple[int, int], int | None] = {}

    def taken(part: Any, depth: int) -> int:
        if not isinstance(part, dict):
            return 1
        key = (id(part), depth)
        if key in known:
            if (before := known[key]) is None:
                raise ValueError("it refers to itself without end")
            return before
        if len(known) >= _MOST_PARTS:
            raise ValueError("it has too many parts")
        known[key] = None
        total = 1 + sum(taken(each, depth) for each in _in_place(part, schema))
        if depth:
            total += max((taken(each, depth - 1) for name in _EITHER for each in _parts(part.get(name))), default=0)
            total += sum(taken(each, depth - 1) for name in _DEEPER for each in _parts(part.get(name), name))
        known[key] = min(total, MOST_CHECKS + 1)
        return min(total, MOST_CHECKS + 1)

    return taken(schema, depth)


def _in_place(part: dict[str, Any], schema: Any) -> Iterator[Any]:
    """The parts that are checked against the same value."""
    if part is not schema and any(isinstance(part.get(name), str) for name in ("$id", "id")):
        raise ValueError("a part with a name of its own ($id) is not followed")
    if any(name in part for name in ("$dynamicRef", "$recursiveRef")):
        raise ValueError("$dynamicRef and $recursiveRef are not followed")
    for name in _IN_PLACE:
        yield from _parts(part.get(name), name)
    if "$ref" in part:
        yield _referred(part["$ref"], schema)


def _parts(value: Any, name: str = "properties") -> list[Any]:
    """The schemas that a keyword holds: one, or several in a list or by name."""
    if isinstance(value, list):
        return value
    named = name in ("properties", "patternProperties", "dependentSchemas", "dependencies")
    if isinstance(value, dict):
        return list(value.values()) if named else [value]
    return []


def _referred(reference: Any, schema: Any) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise ValueError(f"a reference to {reference!r:.100}: only '#/…' is followed")
    at = schema
    for step in reference.split("/")[1:]:
        if at is not schema and isinstance(at, dict) and isinstance(at.get("$id"), str):
            raise ValueError("a part with a name of its own ($id) is not followed")
        step = step.replace("~1", "/").replace("~0", "~")
        at = at[int(step)] if isinstance(at, list) else at[step]
    return at
