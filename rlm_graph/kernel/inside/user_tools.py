"""The user's tools as functions: they look like the real ones, and run on the host."""

from __future__ import annotations

import inspect
import json
import keyword
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .calls import Calls, Request, SubCallError
from .values import json_like

_MORE = "more"


class _Shown:
    """A type or a default that is only shown."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def signature(spec: Mapping[str, Any]) -> inspect.Signature:
    """The signature of a tool, as `help()` shows it. Arguments that are no Python names go by `**more`."""
    named = [row for row in spec["params"] if row[0].isidentifier() and not keyword.iskeyword(row[0])]
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=_Shown(kind),
            default=inspect.Parameter.empty if default is None else _Shown(default),
        )
        for name, kind, default in named
    ]
    if spec["more"] or len(named) < len(spec["params"]):
        free = _MORE
        while free in {row[0] for row in named}:
            free += "_"
        parameters.append(inspect.Parameter(free, inspect.Parameter.VAR_KEYWORD))
    returns = _Shown(spec["returns"]) if spec["returns"] else inspect.Signature.empty
    return inspect.Signature(parameters, return_annotation=returns)


def tool_names(calls: Calls, specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes the functions of the tools, their awaited twins and their batched forms."""
    functions = [_functions(calls, spec) for spec in specs]
    made = {each.__name__: each for _, twin, batched in functions for each in (twin, batched)}
    return made | {each.__name__: each for each, _, _ in functions}


def _functions(calls: Calls, spec: Mapping[str, Any]) -> tuple[Callable[..., Any], ...]:
    name, shape = spec["name"], signature(spec)

    def one(*args: Any, **kwargs: Any) -> Any:
        return _values(lambda: calls.ask([_request(name, shape, args, kwargs)]))[0]

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        try:
            texts = await calls.ask_async([_request(name, shape, args, kwargs)])
        except SubCallError as error:
            error.results = _decoded(error.results)
            raise
        return _decoded(texts)[0]

    def batched(each: Iterable[Any]) -> list[Any]:
        items = [((), item) if isinstance(item, Mapping) else ((item,), {}) for item in each]
        return _values(lambda: calls.ask([_request(name, shape, args, kwargs) for args, kwargs in items]))

    _dress(one, name, spec["doc"], shape)
    _dress(awaited, f"a{name}", f"As {name}, awaited.", shape)
    _dress(batched, f"{name}_batched", f"Many calls of {name} at once, each a dict of its arguments or its only one.")
    return one, awaited, batched


def _dress(function: Any, name: str, doc: str, shape: inspect.Signature | None = None) -> None:
    function.__name__ = function.__qualname__ = name
    function.__doc__, function.__module__ = doc, "__main__"
    if shape is not None:
        function.__signature__ = shape


def _request(name: str, shape: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Request:
    try:
        bound = shape.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}{shape}: {error}") from None
    given: dict[str, Any] = {}
    for parameter, value in bound.arguments.items():
        if shape.parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD:
            given |= value
        else:
            given[parameter] = value
    try:
        return Request("tool", name, json_like(given), None)
    except TypeError as error:
        raise TypeError(f"{name} takes JSON-like values, not one with {error} in it") from None


def _values(ask: Callable[[], list[str]]) -> list[Any]:
    try:
        return _decoded(ask())
    except SubCallError as error:
        error.results = _decoded(error.results)
        raise


def _decoded(texts: Iterable[str | None]) -> list[Any]:
    return [None if text is None else json.loads(text) for text in texts]
