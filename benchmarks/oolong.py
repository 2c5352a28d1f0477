"""OOLONG-like questions over labelled records of any length: does rlm-graph lose anything between labels and answer?

`python benchmarks/oolong.py --tokens 8000 131000 1000000` writes records from a seed and asks some 30 questions and 20
pair questions. The root is scripted; the leaf labels from a table of truth, so every score must be 1.0;
with `--wrong 0.05` it errs in a known way, and the score must be what its labels give, to the digit. Records and
questions are our own, in the form of OOLONG (Bertsch et al.) and of the pairs of arXiv 2512.24601.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from rlm_graph import Limits, create_rlm

sys.path.append(str(Path(__file__).parent))
import oolong_tasks as tasks

TASKS = Path(tasks.__file__)
HEAD = "The following lines contain {n} general-knowledge questions, one a line."
ASKED = (
    "You will be asked to answer questions about the aggregate label statistics across all {n} examples in this "
    "dataset. Each has one of the labels {labels}. Do not guess, estimate or approximate: calculate the exact answer."
)
LABELLING = "Which of these is the question about: {labels}?"
ROW_TOKENS, HEAD_TOKENS = 39, 418
MOST_USERS = 500
"""Beyond, pair answers have millions of lines."""
FIRST, DAYS = date(2022, 1, 1), 1_215

FORMS = {
    tasks.A: ("What does {x} stand for ?", "What is {x} {y} short for ?"),
    tasks.E: ("What breed of {x} has a {y} coat ?", "Which {x} is used to make {y} ?"),
    tasks.D: ("Why do {x} turn {y} in autumn ?", "How does a {x} keep its {y} ?"),
    tasks.H: ("Who invented the {x} {y} ?", "Who was the first to cross {x} with a {y} ?"),
    tasks.L: ("Where is the {x} of {y} ?", "What city has the oldest {x} and {y} ?"),
    tasks.N: ("How many {x} are in a {y} ?", "When was the {x} of {y} opened ?"),
}
WORDS = (
    *("anvil", "barge", "cellar", "drum", "engine", "ferry", "garden", "harbour"),
    *("island", "jetty", "kettle", "lantern", "mill", "needle", "orchard", "pier"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """A row: its date (`YYYY-MM-DD`), user, text and true label."""

    date: str
    user: str
    text: str
    label: str


def records(tokens: int, seed: int) -> list[Record]:
    """As many records as fit a window of so many tokens: labels of an uneven share, a fifth of the users busy."""
    rng = random.Random(seed)
    count = max(20, int((0.95 * tokens - HEAD_TOKENS) / ROW_TOKENS))
    heat = rng.randint(2, 6)
    weights = [math.exp(rng.gauss(0, 1) * 2 / heat) for _ in tasks.LABELS]
    users = [str(id) for id in rng.sample(range(10_000, 100_000), min(max(5, count // 7), MOST_USERS))]
    busy = users[: max(1, len(users) // 5)]
    made = []
    for number in range(count):
        label = rng.choices(tasks.LABELS, weights)[0]
        x, y = (f"{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in "xy")
        text = f"{rng.choice(FORMS[label]).format(x=x, y=y)[:-2]} , asked as number {number} ?"
        user = rng.choice(busy) if rng.random() < 0.8 else rng.choice(users)
        made.append(Record((FIRST + timedelta(rng.randrange(DAYS))).isoformat(), user, text, label))
    return made


def window(rows: Sequence[Record]) -> str:
    """The text that is asked about; labels are not in it."""
    asked = ASKED.format(n=len(rows), labels=", ".join(map(repr, tasks.LABELS)))
    lines = [f"Date: {_spoken(r.date)} || User: {r.user} || Instance: {r.text}" for r in rows]
    return "\n".join([HEAD.format(n=len(rows)), asked, *lines, f"Recall: {HEAD.format(n=len(rows))}", asked, ""])


def _spoken(day: str) -> str:
    return date.fromisoformat(day).strftime("%b %d, %Y")


def labelled(rows: Sequence[Record], labels: dict[str, str]) -> list[tuple[str, str, str]]:
    """The rows as the questions see them, with somebody's labels."""
    return [(r.date, r.user, labels[r.text]) for r in rows]


def labels_of(rows: Sequence[Record], wrong: float, seed: int) -> dict[str, str]:
    """A label for each text: the true one, or with this chance another."""
    rng = random.Random(seed)
    return {
        r.text: rng.choice([label for label in tasks.LABELS if label != r.label]) if rng.random() < wrong else r.label
        for r in rows
    }


class Leaf(BaseChatModel):
    """A sub-model that labels from a table."""

    labels: dict[str, str]

    @property
    def _llm_type(self) -> str:
        return "leaf"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        prompt = messages[-1].text
        texts = re.findall(r'^<text id="(\d+)">\n(.*?)\n</text>$', prompt, re.S | re.M)
        texts = texts or re.findall(r"^\[(\d+)\] (.*)$", prompt, re.M)
        rows = [{"id": id, "answer": self.labels[text.strip()], "quotes": [], "confidence": 1} for id, text in texts]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(json.dumps({"results": rows})))])


class Root(BaseChatModel):
    """A root that has the records labelled once, and answers all questions from the labels."""

    answers: str
    """The expression that answers them."""
    packed: bool

    @property
    def _llm_type(self) -> str:
        return "scripted-root"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        cells = [FILTER, CHUNK.format(packed=self.packed), COMPOSE.format(answers=self.answers)]
        return ChatResult(generations=[ChatGeneration(message=AIMessage("\n\n".join(cells)))])


FILTER = f"""\
```repl filter
{TASKS.read_text()}
import datetime, re
from typing import Literal
candidates = grep(r"^Date: .* \\|\\| Instance: ")
fields = [re.match(r"Date: (.*?) \\|\\| User: (\\d+) \\|\\| Instance: ", line) for line in candidates]
```"""
CHUNK = f"""\
```repl chunk
texts = [line[field.end():] for line, field in zip(candidates, fields)]
task = {LABELLING.format(labels=", ".join(tasks.LABELS))!r}
labels = sub_call(texts, task, Literal[LABELS], {{packed}}, quotes=False)
rows = [
    (datetime.datetime.strptime(field[1], "%b %d, %Y").date().isoformat(), field[2], label.answer)
    for field, label in zip(fields, labels, strict=True)
]
print(len(rows), sum(not label.verified for label in labels))
```"""
COMPOSE = """\
```repl compose
answer["content"] = {answers}
answer["ready"] = True
```"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one window: scores as they are and as the leaf's own labels give them.

    `pairs_longest` is the most pairs of an answer, `whole` whether every pair answer came as it was built.
    """

    tokens: int
    records: int
    questions: int
    score: float
    expected: float
    pairs: float
    pairs_expected: float
    pairs_longest: int
    whole: bool
    calls: int
    seconds: float


async def ask(tokens: int, *, packed: bool, wrong: float = 0.0, seed: int = 0) -> Outcome:
    """Asks all questions over one window, in one run: its records are labelled once."""
    rows = records(tokens, seed)
    labels = labels_of(rows, wrong, seed)
    right, given = labelled(rows, labels_of(rows, 0, seed)), labelled(rows, labels)
    questions, numbers = tasks.tasks(right, seed), list(tasks.PAIRS)
    answers = f"[solve(task, rows) for task in {questions!r}] + [pairs(number, rows) for number in {numbers}]"
    limits = Limits(max_calls=200_000, max_breadth=5_000)
    rlm = create_rlm(Root(answers=answers, packed=packed), Leaf(labels=labels), direct_below=0, limits=limits)
    begun = time.monotonic()
    question = "\n".join(task["prompt"] for task in questions)
    out = await rlm.ainvoke({"question": question, "context": window(rows)})
    said = json.loads(out["answer"])
    scored = [
        (tasks.solve(task, right)[0], tasks.kind_of(task), tasks.solve(task, given), got)
        for task, got in zip(questions, said[: len(questions)], strict=True)
    ]
    paired = [
        (tasks.pairs(number, right), tasks.pairs(number, given), got)
        for number, got in zip(numbers, said[len(questions) :], strict=True)
    ]
    return Outcome(
        tokens,
        len(rows),
        len(questions),
        score=_mean([tasks.score(_first(got), gold, kind) for gold, kind, _, got in scored]),
        expected=_mean([tasks.score(_first(by_leaf), gold, kind) for gold, kind, by_leaf, _ in scored]),
        pairs=_mean([tasks.f1(got, gold) for gold, _, got in paired]),
        pairs_expected=_mean([tasks.f1(by_leaf, gold) for gold, by_leaf, _ in paired]),
        pairs_longest=max(got.count("\n") + 1 for _, _, got in paired),
        whole=all(got == by_leaf for _, by_leaf, got in paired),
        calls=out["usage"]["calls"],
        seconds=round(time.monotonic() - begun, 1),
    )


def _first(answers: Sequence[str]) -> str:
    return answers[0] if answers else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def is_lost(outcome: Outcome, wrong: float) -> bool:
    """Whether anything was lost: a score is not what the leaf's labels give, or not 1.0 where all of them are true."""
    scores, given = (outcome.score, outcome.pairs), (outcome.expected, outcome.pairs_expected)
    return not outcome.whole or scores != given or (wrong == 0 and scores != (1.0, 1.0))


def main() -> int:
    """Prints a line for each length; exit code 1 where a score is not what the labels give: 1.0 without `--wrong`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8_000, 131_000, 1_000_000])
    parser.add_argument("--one-a-call", action="store_true", help="a call for each record, instead of packed ones")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of the records that the leaf labels wrongly")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lost = False
    for tokens in args.tokens:
        outcome = asyncio.run(ask(tokens, packed=not args.one_a_call, wrong=args.wrong, seed=args.seed))
        print(outcome)
        lost = lost or is_lost(outcome, args.wrong)
    return int(lost)


if __name__ == "__main__":
    raise SystemExit(main())
