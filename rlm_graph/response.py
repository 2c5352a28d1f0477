"""`response_format`: what an answer must look like, and whether it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlm_graph import prompts
from rlm_graph.checks import repaired
from rlm_graph.schemas import validator

_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Format:
    """The form of an answer.

    Attributes:
        schema: As JSON schema.
        made: Makes the answer of a JSON-like value; raises ValueError with what is wrong.
    """

    schema: dict[str, Any]
    made: Callable[[Any], Any]


def format_of(response_format: Any) -> Format | None:
    """The form that a caller asks for: a pydantic class, a dataclass, a TypedDict, or a JSON schema.

    Raises:
        TypeError: It is none of these.
    """
    if response_format is None:
        return None
    if isinstance(response_format, dict):
        return Format(response_format, _by_schema(response_format))
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(response_format)
        return Format(adapter.json_schema(), _by_type(adapter))
    except Exception as error:
        raise TypeError(
            f"response_format={response_format!r:.100}: a pydantic class, a dataclass, a TypedDict or a JSON schema"
        ) from error


def _by_schema(schema: dict[str, Any]) -> Callable[[Any], Any]:
    try:
        check = validator(schema)
    except ValueError as error:
        raise TypeError(f"response_format: {error}") from error

    def made(value: Any) -> Any:
        errors = [f"{_place(e.instance_path)}{e.message}" for e, _ in zip(check.iter_errors(value), range(_ERRORS))]  # noqa: B905
        if errors:
            raise ValueError("; ".join(errors))
        return value

    return made


def _by_type(adapter: TypeAdapter[Any]) -> Callable[[Any], Any]:
    def made(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            told = [f"{_place(e['loc'])}{e['msg']}" for e in error.errors(include_url=False)[:_ERRORS]]
            raise ValueError("; ".join(told)) from error

    return made


def structured(format: Format, content: Any) -> Any:
    """The answer in its form. A text that holds JSON is taken for what it holds.

    Raises:
        ValueError: It does not have the form; the message says what is wrong, for the root.
    """
    value = content
    if isinstance(content, str) and format.schema.get("type") != "string":
        try:
            value = json.loads(content)
        except ValueError:
            value = repaired(content) or content
    try:
        return format.made(value)
    except ValueError as error:
        raise ValueError(prompts.NOT_THE_FORMAT.format(error=str(error)[:1500])) from error


def _place(path: Any) -> str:
    where = "".join(f"[{part!r}]" for part in path)
    return f"{where}: " if where else ""
