"""The sentences or lines of a passage that fit a question best, by words alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rlm_graph.kernel.inside.words import keywords, terms

NOT_FOUND = "NOT FOUND"

_CODE_FILE = re.compile(r"\.(py|pyi|js|ts|jsx|tsx|java|c|h|cc|cpp|cs|go|rs|rb|php|swift|kt|scala|sh|sql)\]?$")
_CODE_LINE = re.compile(
    r"^\s*(def |class |async def |import |from \S+ import|return\b|raise\b|function |const |let |var |func |fn "
    r"|public |private |#include|@\w+|(if|for|while|elif|else|try|except|with)\b.*:$)"
    r"|[;{}]\s*$|^\s*[\w.\[\]]+ = "
)
_DEFINITION = re.compile(r"^(\s*)(?:async def|def|class)\s+\w+")
_HEADING = re.compile(r"^\[([^\]\n]+)\]$", re.M)
_SENTENCE = re.compile(
    r"\S.*?(?:(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\be\.g)(?<!\bi\.e)[.!?]+[\"”’')\]]*(?=\s|$)|$)", re.S
)
_PROSE = re.compile(r"^[^=(){}\[\];|]*$")


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence or a line, with the `def` and `class` lines that it stands under."""

    text: str
    under: tuple[str, ...] = ()


def best_of(question: str, text: str, most: int = 3) -> str:
    """Up to `most` sentences (of source code: lines, under their `def`) of a text that answer best, in order.

    A word weighs the more the rarer it is in the text, and names weigh double. `NOT FOUND` where fewer than about
    half of the question's keywords occur. `[name]` lines are taken as headings that name what follows.
    """
    words = keywords(question)
    units = [unit for heading, body in _blocks(text) for unit in _units(heading, body)]
    hits = [frozenset(words).intersection(terms(unit.text)) for unit in units]
    titles = frozenset(words).intersection(terms(" ".join(_HEADING.findall(text))))
    covered = titles.union(*hits)
    if not any(hits) or len(covered) < min(len(words) // 2 + 1, 4):
        return NOT_FOUND
    times = Counter(word for hit in hits for word in hit)
    names = set(terms(" ".join(re.findall(r"(?<=\s)[A-Z]\w+", question))))
    weight = {word: (2 if word in names else 1) / (1 + times[word]) ** 0.5 for word in words}
    scores = [sum(weight[word] for word in hit) * _telling(unit.text) for hit, unit in zip(hits, units, strict=True)]
    return _written([units[at] for at in _chosen(scores, hits, most)])


def _telling(line: str) -> float:
    """How much a sentence or a line is worth for its form: imports and decorators say little, long ones dilute."""
    if re.match(r"\s*(import\b|from \S+ import\b|@\w)", line):
        return 0.2
    return float(min(1.0, 300 / max(1, len(line))) ** 0.5)


def _chosen(scores: list[float], hits: list[frozenset[str]], most: int) -> list[int]:
    """The best unit, and others that are nearly as good or add a word, in the order of the text."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    chosen = order[:1]
    seen = hits[order[0]]
    for at in order[1:]:
        if len(chosen) == most or scores[at] < scores[order[0]] / 3:
            break
        if hits[at] - seen or scores[at] >= 0.8 * scores[order[0]]:
            chosen.append(at)
            seen |= hits[at]
    return sorted(chosen)


def _written(units: list[Unit]) -> str:
    lines: list[str] = []
    for unit in units:
        lines += [line for line in (*unit.under, unit.text) if line not in lines]
    return "\n".join(lines)


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """The parts of a text between its `[name]` lines, with their names."""
    at, heading = 0, ""
    for found in _HEADING.finditer(text):
        yield heading, text[at : found.start()]
        at, heading = found.end(), found[1]
    yield heading, text[at:]


def _units(heading: str, body: str) -> Iterator[Unit]:
    lines = body.splitlines()
    filled = [line for line in lines if line.strip()]
    if _CODE_FILE.search(heading) or sum(bool(_CODE_LINE.search(line)) for line in filled) > len(filled) / 5:
        yield from _of_code(lines)
    elif _is_wrapped(filled):
        yield from (Unit(sentence) for part in re.split(r"\n\s*\n", body) for sentence in _sentences(part))
    else:
        yield from (Unit(line.strip()) for line in filled)


def _is_wrapped(lines: list[str]) -> bool:
    """Whether lines run on, as in prose; in logs and tables nearly none begins with a small letter."""
    return len(lines) < 2 or sum(line.lstrip()[0].islower() for line in lines[1:]) > len(lines) * 0.3


def _of_code(lines: list[str]) -> Iterator[Unit]:
    """Lines of code, and the sentences of the comments and docstrings between them."""
    under: list[tuple[int, str]] = []
    prose: list[str] = []
    for line in [*lines, "="]:
        bare = line.strip().strip("#\"' ")
        if _PROSE.match(bare) and len(bare.split()) > 3 and not _CODE_LINE.search(line):
            prose.append(bare)
            continue
        here = tuple(text for _, text in under[-2:])
        yield from (Unit("    " * bool(here) + sentence, here) for sentence in _sentences("\n".join(prose)))
        prose.clear()
        if definition := _DEFINITION.match(line):
            under = [outer for outer in under if outer[0] < len(definition[1])]
            here = tuple(text for _, text in under[-2:])
            under.append((len(definition[1]), line.rstrip()))
        if line.strip("= "):
            yield Unit(line.rstrip(), here)


def _sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph, its lines joined; lines where there is no end in sight."""
    for sentence in _SENTENCE.findall(" ".join(paragraph.split())):
        if len(sentence) <= 600:
            yield sentence
        else:
            yield from (line.strip() for line in paragraph.splitlines() if line.strip() and line.strip() in sentence)
