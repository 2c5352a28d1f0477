"""`sub_call`: asks about chunks, and gives each answer with its quotes, their places, and whether it was verified."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from json import loads
from typing import Any, ClassVar

from .calls import Calls, Request, SubCallError
from .pieces import Piece, Places, place_of
from .values import json_like, plain_text

PACKED_TOKENS = 16_000
"""Tokens of a packed call, at most half of the model's window: a model that is given more loses count as well."""
PACKED_CHUNKS = 300
"""Chunks of a packed call: a model that has to give more answers at once loses count."""


@dataclass(slots=True)
class Result:
    """What a sub-model said of one chunk, checked by code.

    Attributes:
        answer: The answer, of the asked type; None where there is none.
        quotes: Passages of the chunk that show it, verbatim: pieces with source, start and end.
        confidence: The model's own, from 0 to 1; None where it gave none.
        verified: Whether schema, quotes, id and confidence stood the check.
        why: What did not, in words; empty where all did.
        chunk: The chunk that was asked about.
        status: "found"; "absent": the chunk does not say; "empty": an answer without content; "refused": the model
            would not answer; "failed": no answer came, or none that can be used.
    """

    TOLD: ClassVar = ("answer", "quotes", "confidence", "verified", "why", "status")
    """What of it is delivered, where it is part of the answer."""

    answer: Any
    quotes: list[str]
    confidence: float | None
    verified: bool
    why: str
    chunk: str
    status: str

    def __repr__(self) -> str:
        told = f"Result({self.status}, {self.answer!r:.200}, verified={self.verified}"
        return f"{told}, why={self.why!r:.120})" if self.why else f"{told}, {len(self.quotes)} quotes)"


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer is to look like: as JSON schema, and how it is made into what the cell asked for."""

    schema: dict[str, Any] | None
    made: Callable[[Any], Any] | None


def sub_call_names(
    calls: Calls,
    context: Callable[[], Any],
    facts: Callable[[], dict[str, Any]],
    places: Places,
    keep: Callable[[list[Result]], None],
    read: Callable[[str | int, int, int], None],
) -> dict[str, Any]:
    """Makes `sub_call` and `asub_call`."""

    def prepared(
        name: str, chunks: Any, task: Any, schema: Any, pack: Any, quotes: Any, model: Any
    ) -> tuple[list[str], Form, list[list[int]], list[Request]]:
        if not isinstance(task, str) or not task.strip():
            raise ValueError(f"{name}: task must be a text that says what to find")
        texts = [as_chunk(each.source, each.text, each.start, each.known) for each in places.of(chunks, context())]
        if not texts:
            return [], Form(None, None), [], []
        form, quoted = form_of(name, schema), not pack if quotes is None else bool(quotes)
        groups = list(packed(texts, pack, facts().get("window")))
        ask = {"schema": form.schema, "quotes": quoted}
        requests = [
            Request(
                "sub",
                plain_text(task),
                {"texts": {str(n): plain_text(texts[at]) for n, at in enumerate(group, 1)}, **ask},
                None if model is None else str(model),
                place_of(*(texts[at] for at in group)),
            )
            for group in groups
        ]
        return texts, form, groups, requests

    def finished(texts: list[str], form: Form, groups: list[list[int]], replies: Sequence[str | None]) -> list[Result]:
        results = [blank(text) for text in texts]
        unread = {at for group in groups for at in group}
        asked = len(unread)
        for group, reply in zip(groups, replies, strict=True):
            for at, row in zip(group, loads(reply) if reply is not None else (), strict=False):
                results[at] = result(row, texts[at], form)
                if row["status"] != "failed":
                    unread.discard(at)
        if len(unread) < asked:  # where nothing was read, the blank chunks between were not either
            for at, text in enumerate(texts):
                if at not in unread and isinstance(text, Piece):
                    read(text.source, text.start, text.end)
        keep(results)
        return results

    def failed(error: SubCallError, texts: list[str], form: Form, groups: list[list[int]]) -> list[Result]:
        """The results that did arrive and the failed ones, marked; raises where the cell must act."""
        results = finished(texts, form, groups, error.results)
        for position, message in error.errors:
            for at in groups[position]:
                results[at] = Result(None, [], None, False, message, texts[at], "failed")
        if type(error) is SubCallError and any(reply is not None for reply in error.results):
            return results
        raise type(error)(str(error), results, [(at, why) for p, why in error.errors for at in groups[p]]) from None

    def sub_call(
        chunks: Any,
        task: str,
        schema: Any = None,
        pack: bool | int = False,
        quotes: bool | None = None,
        model: str | None = None,
    ) -> list[Result]:
        """Asks a model about each chunk, checks its answers by code, and gives a Result for each, in order.

        sub_call(chunks, "Who pays for repairs, if it says so?")
        sub_call(chunks, "List the items made before 1900", schema=list[str])
        sub_call(lines, "Which class?", schema=Literal["spam", "ham"], pack=True)   hundreds of records a call

        schema   a pydantic class, any type of Python's, or a JSON schema; without it the answer is a str
        pack     True: up to 300 chunks and 16,000 tokens a call; a number: up to 300 and so many tokens
        quotes   whether an answer must be shown by quotes; without it: not for packed chunks

        Each Result has .answer (None where the chunk does not say), .quotes (verbatim pieces), .confidence,
        .verified, .why, .chunk and .status. What fails the check is asked again, told why; what still fails is
        marked, not dropped: [r for r in results if not r.verified].
        """
        texts, form, groups, requests = prepared("sub_call", chunks, task, schema, pack, quotes, model)
        try:
            return finished(texts, form, groups, calls.ask(requests))
        except SubCallError as error:
            return failed(error, texts, form, groups)

    async def asub_call(
        chunks: Any,
        task: str,
        schema: Any = None,
        pack: bool | int = False,
        quotes: bool | None = None,
        model: str | None = None,
    ) -> list[Result]:
        """As sub_call, awaited."""
        texts, form, groups, requests = prepared("asub_call", chunks, task, schema, pack, quotes, model)
        try:
            return finished(texts, form, groups, await calls.ask_async(requests))
        except SubCallError as error:
            return failed(error, texts, form, groups)

    return {"sub_call": sub_call, "asub_call": asub_call, "Result": Result}


def as_chunk(source: str | int, text: str, start: int, known: bool) -> str:
    """A chunk as results hold it: a piece where its place in the context is known."""
    return text if not known or isinstance(text, Piece) else Piece(text, source, start)


def packed(texts: Sequence[str], pack: bool | int, window: int | None) -> Iterator[list[int]]:
    """Which chunks go into one call, by position; blank ones into none."""
    most = pack if pack > 1 else min(PACKED_TOKENS, window // 2) if window else PACKED_TOKENS
    group: list[int] = []
    size = 0
    for at, text in enumerate(texts):
        if not text or text.isspace():
            continue
        tokens = math.ceil(len(text) / 4) + 8
        if group and (not pack or size + tokens > most or len(group) == PACKED_CHUNKS):
            yield group
            group, size = [], 0
        group.append(at)
        size += tokens
    if group:
        yield group


def form_of(name: str, schema: Any) -> Form:
    """The form of an answer, of whatever the cell gave as its schema."""
    if schema is None or schema is str:
        return Form(None, None)
    if isinstance(schema, dict):
        return Form(json_like(schema), None)
    from pydantic import TypeAdapter

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(schema)
        return Form(json_like(adapter.json_schema()), adapter.validate_python)
    except Exception as error:
        raise TypeError(f"{name}: schema {schema!r:.100} cannot be used: {error}") from None


def blank(text: str) -> Result:
    """The result for a chunk that nobody was asked about, having nothing in it."""
    return Result(None, [], None, True, "", text, "absent")


def result(row: dict[str, Any], chunk: str, form: Form) -> Result:
    """A delivered row as a Result: quotes as parts of the chunk, the answer as what the cell asked for."""
    quotes: list[str] = [chunk[start:end] for start, end in row["quotes"]]
    answer, verified, why = row["answer"], row["verified"], row["why"]
    if form.made is not None and answer is not None:
        try:
            answer = form.made(answer)
        except Exception as error:
            if verified:
                verified, why = False, f"the answer is not as the schema says: {error}"[:500]
    return Result(answer, quotes, row["confidence"], verified, why, chunk, row["status"])
