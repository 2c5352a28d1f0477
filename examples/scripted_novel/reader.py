"""The sub-model of the novel: it reads a passage by rules of English, and knows nothing but its prompt."""

import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from scripted_novel.text import spelled

NUMBERS = {spelled(number): number for number in range(100)} | {"second": 2, "third": 3}
SENTENCE = re.compile(r"[^.!?\n]+[.!?]”?")
NAME = r"[A-Z][\w']+(?: (?:of )?(?:the )?[A-Z][\w']+)*"
THING = rf"[Tt]he (?P<name>{NAME})(?:, (?:which [a-z ]+ calls?|better known as) the (?P<alias>{NAME}))?,?"
PERSON = r"(?P<maker>[A-Z]\w+ [A-Z]\w+) of (?P<town>[A-Z]\w+)"
WORK = r"(?:made|forged|cast|wove|woven|carved|built|painted)\b(?! (?:up|fast|ready|way)\b)"
TELLS_OF_WORK = [
    re.compile(form)
    for form in (
        rf"{THING} [^;]*; in truth {PERSON} {WORK} it",
        rf"{THING} was {WORK}(?: by {PERSON})?",
        rf"{PERSON} (?:who )?{WORK} {THING}",
        rf"{THING} was the work of {PERSON}",
    )
]
IT_WAS_MADE_BY = re.compile(rf"{PERSON} had {WORK} it\b")
EVENTS = [
    (re.compile(r"year (?P<year>\d+) (?P<also>.+?), and .* called (?P<name>.+?), or (?P<short>.+?) for"), "happened"),
    (re.compile(r"(?P<name>The .+?) (?:came|was held) in the year (?P<year>\d+)"), "happened"),
    (re.compile(rf"(?P<name>{NAME}) was crowned in the year (?P<year>\d+)"), "began"),
    (re.compile(rf"(?P<name>{NAME}) died in the year (?P<year>\d+)"), "ended"),
]

Calendar = dict[str, tuple[str, int]]
"""What an event, reign or other name of one is: happened, began or ended, and in which year."""


class RuleReader(BaseChatModel):
    """Answers a `sub_call` about events or about made things. Every third text it first reads with a careless quote."""

    @property
    def _llm_type(self) -> str:
        return "rule-reader"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        prompt = messages[-1].text
        task, _, rest = prompt.partition("\n\nAnswer ")
        texts = re.findall(r'^<text id="(\w+)">\n(.*?)\n</text>$', rest, re.S | re.M)
        texts = texts or re.findall(r"^\[(\w+)\] (.*)$", rest, re.M)
        again = "It was asked before" in rest
        results = [{"id": id, **answered(task, text, careful=again)} for id, text in texts]
        reply = json.dumps({"results": results})
        read, written = len(prompt) // 4, len(reply) // 4
        usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(reply, usage_metadata=usage))])


def answered(task: str, text: str, *, careful: bool) -> dict[str, Any]:
    """What the text says to the task, with the sentences that show it."""
    found = list(events(text) if "calendar" in task.splitlines()[0] else made_things(task, text))
    quotes = [quote for _, quote in found]
    if quotes and not careful and zlib.crc32(text.encode()) % 3 == 0:
        quotes[0] = "It is told at length how this came to be, and that the work took many years."
    return {"answer": [answer for answer, _ in found] or None, "quotes": quotes, "confidence": 0.9}


def events(text: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The events whose year the text says."""
    for sentence in SENTENCE.finditer(text):
        for form, kind in EVENTS:
            if match := form.search(sentence[0]):
                said = match.groupdict()
                also = [said[key] for key in ("also", "short") if said.get(key)]
                name = re.sub("^The ", "the ", said["name"])
                yield {"name": name, "also": also, "kind": kind, "year": int(said["year"])}, sentence[0].strip()
                break


def made_things(task: str, text: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The made things that the text names, each dated by the calendar in the task."""
    calendar: Calendar = {}
    for name, also, kind, year in re.findall(r"^- (.+?)(?: \((.+)\))?: (\w+) in (\d+)$", task, re.M):
        calendar |= {each: (kind, int(year)) for each in [name, *filter(None, also.split("; "))]}
    event = calendar[re.findall(r"before (the [A-Z]\w+ [A-Z]\w+)", task)[0]][1]
    sentences = [(match.start(), match.end()) for match in SENTENCE.finditer(text)]
    for before, (start, end) in zip([(0, 0), *sentences], sentences, strict=False):
        sentence = text[start:end]
        match = next((match for form in TELLS_OF_WORK if (match := form.search(sentence))), None)
        said = match.groupdict() if match else {}
        if not match and (match := IT_WAS_MADE_BY.search(sentence)):
            thing = re.search(THING, text[slice(*before)])
            said = {**thing.groupdict(), **match.groupdict()} if thing else {}
            start = before[0]
        if said:
            when = dated(sentence.rpartition("; in truth ")[2], calendar, event)
            also = [said["alias"]] if said.get("alias") else []
            answer = {"name": said["name"], "also": also, "maker": said["maker"], "town": said["town"], "when": when}
            yield answer, text[start:end].strip()


def dated(said: str, calendar: Calendar, event: int) -> str:
    """Whether what is told here was before or after the event's year, or whether that is not said."""
    if match := re.search(r"[Ii]n the year (\d+)", said):
        return side(int(match[1]), event)
    names = "|".join(map(re.escape, sorted(calendar, key=len, reverse=True)))
    if match := re.search(rf"([\w-]+) (?:years?|winter|spring) (before|after) ({names})", said):
        years = NUMBERS.get(match[1].lower(), 1)
        return side(calendar[match[3]][1] + (years if match[2] == "after" else -years), event)
    if match := re.search(rf"({names})'s eve", said):
        return side(calendar[match[1]][1] - 1, event)
    if match := re.search(rf"(?:[Ww]hen|[Uu]nder) ({names})", said):
        kind, year = calendar[match[1]]
        if kind == "ended" and year <= event:
            return "before"
        if kind == "began" and year >= event:
            return "after"
    return "unsaid"


def side(year: int, event: int) -> str:
    return "before" if year < event else "after"
