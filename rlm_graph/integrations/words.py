"""What agents' models are told, and those behind a chat model: every word of what stands in for parts of LangChain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ASKING = (
    "Answers a question about a text that is too large to read yourself; it reads all of it. Ask as often as you like, "
    "one question at a time; each is answered on its own. `source` names what to ask about: {sources}."
)
"""What an agent's model is told of the tool that asks an RLM."""
BY_ID = "the id of a kept text"
BY_RESULT = "the name of a tool, for its latest result"
BY_PATH = "the path of a file or folder"
BY_NAME = "one of the names {names}"
THE_QUESTION = "What you want to know. It has to make sense on its own, without the conversation."
THE_SOURCE = "What to ask about."

KEPT = """\
[This text is too long to be shown here. It is kept as {id}. To know what stands in it, call `{tool}` with \
source="{id}", as often as you like.
{description}]"""
"""What stands in an agent's conversation in place of a long text."""
KEPT_HISTORY = """\
[The earlier part of this conversation, {messages:,} messages, is too long to be shown here. It is kept as {id}. To \
know what was said in it, call `{tool}` with source="{id}", as often as you like.
{description}]"""
TAKEN_OUT = "[A text of {chars:,} characters, too long to be shown, is called {name!r}. It has been read for you.]"
CUT = (
    "[The earlier part of this conversation, {messages:,} messages, is too long to be shown. It has been read for you.]"
)
FINDINGS = """\
[What has been read for you, on the question {question!r}:
{findings}]"""
"""What a model with tools of its own is shown in place of long texts, and what was found in them."""
MORE_CITATIONS = "… and {more:,} more."
_CITED, _QUOTED = 20, 300
"""Citations that an agent's model is shown, and characters of each passage, or of a line of what was not read."""
LONG_ANSWER = """\
The answer is too long to be shown here. It is kept as {id}; ask about it with source="{id}".
{description}"""


def asking(*, results: bool, paths: bool, names: Sequence[str]) -> str:
    """How an agent's model is told of the tool that asks an RLM, by what it may name."""
    ways = [BY_ID]
    if results:
        ways.append(BY_RESULT)
    if names:
        ways.append(BY_NAME.format(names=", ".join(names)))
    if paths:
        ways.append(BY_PATH)
    return ASKING.format(sources="; or ".join(ways))


def answer_told(
    answer: str, citations: Sequence[Mapping[str, Any]], left_out: Sequence[str], stopped: str | None
) -> str:
    """An answer as an agent's model reads it: with what it rests on, and what did not go as it should.

    It adds at most some 20 000 characters to the answer, however many citations there are and however long their
    passages.
    """
    lines = [answer]
    if citations:
        cited = [f"[{n}] {_cited(c)}" for n, c in enumerate(citations[:_CITED], 1)]
        more = [MORE_CITATIONS.format(more=len(citations) - _CITED)] if len(citations) > _CITED else []
        lines.append("\n".join(["Citations:", *cited, *more]))
    if left_out:
        lines.append(f"Not read: {'; '.join(map(_short, left_out))}")
    if stopped:
        lines.append(f"It was stopped by a limit ({stopped}) before it was done; this is the best that it has.")
    return "\n\n".join(lines)


def _cited(citation: Mapping[str, Any]) -> str:
    place = f"{_short(str(citation.get('source')))}:{citation.get('start')}-{citation.get('end')}"
    return f"{place} {_short(citation.get('quote', ''))!r}"


def _short(text: str) -> str:
    """A text that fits a line: of a long one, how it begins and ends."""
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 100]} … {text[-100:]}"
