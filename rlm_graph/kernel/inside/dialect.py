"""The names that a cell finds: the dialect of the RLM paper, which models are trained on, and its awaited forms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from .calls import BudgetExceeded, Calls, PromptTooLong, Request, SubCallError, ToolError
from .pieces import place_of
from .values import json_like, plain_text


class Answer(dict[str, Any]):
    """The `answer` of the run: a dict that knows whether it was touched."""

    def __init__(self, content: Any = "", ready: Any = False) -> None:
        super().__init__(content=content, ready=ready)
        self.touched = False

    def __setitem__(self, key: str, value: Any) -> None:
        self.touched = True
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        self.touched = True
        super().update(*args, **kwargs)

    def __ior__(self, other: Any) -> Answer:  # type: ignore[override,misc]
        self.update(other)
        return self


def call_names(calls: Calls) -> dict[str, Any]:
    """Makes the functions that ask sub-models, and the errors that they raise."""

    def llm_query(prompt: str, model: str | None = None) -> str:
        """Ask a model one question; gives its reply."""
        return calls.ask([_llm("llm_query", prompt, model)])[0]

    def llm_query_batched(prompts: Iterable[str], model: str | None = None) -> list[str]:
        """Ask many questions at once; gives the replies in order."""
        return calls.ask(_llm_batch("llm_query_batched", prompts, model))

    def rlm_query(question: str, context: Any = None, model: str | None = None) -> str:
        """Let a recursive model answer a question over a context of any size."""
        return calls.ask([_rlm("rlm_query", question, context, model)])[0]

    def rlm_query_batched(questions: Iterable[Any], contexts: Any = None, model: str | None = None) -> list[str]:
        """Let recursive models answer many questions at once, each over its own context."""
        return calls.ask(_rlm_batch("rlm_query_batched", questions, contexts, model))

    async def allm_query(prompt: str, model: str | None = None) -> str:
        """As llm_query, awaited."""
        return (await calls.ask_async([_llm("allm_query", prompt, model)]))[0]

    async def allm_query_batched(prompts: Iterable[str], model: str | None = None) -> list[str]:
        """As llm_query_batched, awaited."""
        return await calls.ask_async(_llm_batch("allm_query_batched", prompts, model))

    async def arlm_query(question: str, context: Any = None, model: str | None = None) -> str:
        """As rlm_query, awaited."""
        return (await calls.ask_async([_rlm("arlm_query", question, context, model)]))[0]

    async def arlm_query_batched(questions: Iterable[Any], contexts: Any = None, model: str | None = None) -> list[str]:
        """As rlm_query_batched, awaited."""
        return await calls.ask_async(_rlm_batch("arlm_query_batched", questions, contexts, model))

    functions: list[Any] = [llm_query, llm_query_batched, rlm_query, rlm_query_batched]
    functions += [allm_query, allm_query_batched, arlm_query, arlm_query_batched]
    errors: list[Any] = [SubCallError, BudgetExceeded, PromptTooLong, ToolError]
    return {each.__name__: each for each in functions + errors}


def answer_names(
    namespace: dict[str, Any], own: Callable[[], list[list[Any]]], deliver: Callable[[Any], None]
) -> dict[str, Any]:
    """Makes the names that show variables and set the answer."""

    def SHOW_VARS() -> str:
        """List the variables that you have made: name, type, size."""
        rows = [f"{name}: {kind}" + (f", {length:,}" if length else "") for name, kind, length in own()]
        return "\n".join(rows) or "No variables made yet."

    def FINAL(value: Any) -> None:
        """Give the final answer."""
        deliver(value)

    def FINAL_VAR(value: Any) -> None:
        """Give the value of a variable, named or passed, as the final answer."""
        deliver(_named(value, namespace, own))

    return {each.__name__: each for each in (SHOW_VARS, FINAL, FINAL_VAR)}


def _named(value: Any, namespace: dict[str, Any], own: Callable[[], list[list[Any]]]) -> Any:
    if not isinstance(value, str):
        return value
    name = value.strip().strip("\"'")
    if name in namespace:
        return namespace[name]
    passed = any(value is other for other in list(namespace.values()))
    if passed or not name.isidentifier():
        return value
    names = ", ".join(row[0] for row in own()) or "none yet"
    raise NameError(f"FINAL_VAR: there is no variable {name!r}. Your variables: {names}")


def exit_names() -> dict[str, Any]:
    """Makes an `exit` and a `quit` that end the cell alone."""

    def exit(code: Any = None) -> NoReturn:
        """End this cell."""
        sys.exit(code)

    return {"exit": exit, "quit": exit}


def _llm(name: str, prompt: Any, model: Any) -> Request:
    return Request("llm", _text(name, "prompt", prompt), None, _model(name, model), place_of(prompt))


def _rlm(name: str, question: Any, context: Any, model: Any) -> Request:
    text = _text(name, "question", question)
    try:
        value = json_like(context)
    except TypeError as error:
        raise TypeError(
            f"{name} takes a str, a list, a dict or documents as context, not one with {error} in it"
        ) from None
    place = place_of(*context) if isinstance(context, list) else place_of(context)
    return Request("rlm", text, value, _model(name, model), place)


def _llm_batch(name: str, prompts: Any, model: Any) -> list[Request]:
    items, model = _items(name, "prompts", prompts), _model(name, model)
    return [
        Request("llm", _text(name, f"prompts[{i}]", item), None, model, place_of(item)) for i, item in enumerate(items)
    ]


def _rlm_batch(name: str, questions: Any, contexts: Any, model: Any) -> list[Request]:
    items = _items(name, "questions", questions)
    if contexts is None:
        pairs = [item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None) for item in items]
    else:
        values = _items(name, "contexts", contexts)
        if len(values) != len(items):
            raise ValueError(f"{name}: {len(items)} questions but {len(values)} contexts")
        pairs = list(zip(items, values, strict=True))
    return [_rlm(name, question, context, model) for question, context in pairs]


def _items(name: str, what: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, dict)):
        raise TypeError(f"{name} takes a list as {what}, got {type(values).__name__}")
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{name} takes a list as {what}, got {type(values).__name__}") from None


def _text(name: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: {what} must be a str, got {type(value).__name__}")
    text = plain_text(value)
    if not text or text.isspace():
        raise ValueError(f"{name}: {what} is blank")
    return text


def _model(name: str, model: Any) -> str | None:
    if model is None or isinstance(model, str):
        return None if model is None else plain_text(model)
    raise TypeError(f"{name}: model must be a str or None, got {type(model).__name__}")
