"""The task that RLMs are explained with: list everything made before an event, anywhere in a novel of 2 million tokens.

Nothing may be missed, most dates make sense only by what is told elsewhere, and things have two names. The novel is
written from a seed by `scripted_novel/text.py`, which knows the truth; the sub-model reads by rules and does not
(`scripted_novel/reader.py`). The root is fixed cells, as a good root model would write them: they are here to be read.
"""

import argparse
import json
import time
from itertools import combinations

from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langgraph.checkpoint.memory import InMemorySaver

from rlm_graph import create_rlm, hold
from scripted_novel.reader import RuleReader
from scripted_novel.text import Novel, write_novel

QUESTION = "List all items made before the Great Catastrophe, mentioned anywhere in this novel, with maker and town."
PAIRS_QUESTION = "Which pairs of these items were made in the same town?"

PROBE = """\
I look at how the novel is built, which words tell of making, and how it says dates.

```repl probe
print(peek(n=300))
print(len(split(by="chapter", tokens=8_000)), "chapters")
for word in ("made", "forged", "built", "Great Catastrophe", "before", "year"):
    print(f"{word!r}: {len(grep(word)):,} paragraphs")
for line in grep(r"Great Catastrophe", limit=2_000)[::400] + grep(r"the year \\d+")[:6]:
    print("-", line[:300])
```"""

CALENDAR = """\
Dates hang on other events and on reigns, so first I need the novel's own calendar. Years are said in few paragraphs: \
all of them go to the model, many in a call.

```repl chunk
from typing import Literal
from pydantic import BaseModel

class Event(BaseModel):
    name: str
    also: list[str] = []
    kind: Literal["happened", "began", "ended"]
    year: int

dated = grep(r"\\bthe year \\d{3,4}\\b")
told = sub_call(
    dated,
    "For a calendar: list each event, and each reign's beginning or end, of which the text says the year; "
    "with the other names that it has. Leave out the making of things.",
    schema=list[Event], pack=True, quotes=True,
)
calendar = {}
for event in [event for r in told if r.verified and r.answer for event in r.answer]:
    known = calendar.setdefault((event.name, event.kind), event)
    known.also = dedupe(known.also + event.also)
    assert known.year == event.year, (known, event)

def line(event):
    also = f" ({'; '.join(event.also)})" if event.also else ""
    return f"- {event.name}{also}: {event.kind} in {event.year}"

by_date = "\\n".join(map(line, sorted(calendar.values(), key=lambda event: event.year)))
print(by_date)
print(f"{len(dated)} paragraphs; doubtful: {[r for r in told if not r.verified]}")
```"""

ITEMS = """\
Now the items. A paragraph is a candidate if it tells of making and names something. The whole chapter around it is \
read, since name and date may stand apart. What is later or undated is reported too: another chapter may say more of it.

```repl filter
import re
MAKING = r"\\b(?:made|make|forged|cast|wove|woven|carved|built|painted|wrought|sewn|work of)\\b"
NAMED = re.compile(r"\\b[Tt]he (?!(?:Great )?Catastrophe)[A-Z]")
candidates = [line for line in grep(MAKING) if NAMED.search(line)]
```
```repl chunk
from bisect import bisect_left
starts = [line.start for line in candidates]
chunks = [c for c in split(by="chapter", tokens=8_000) if bisect_left(starts, c.start) < bisect_left(starts, c.end)]

class Item(BaseModel):
    name: str
    also: list[str] = []
    maker: str | None = None
    town: str | None = None
    when: Literal["before", "after", "unsaid"]

results = sub_call(
    chunks,
    "List each named thing that somebody made: its name as it stands there, without the article; other names that are "
    "said to be its; who made it; the maker's town; and whether it was made before the Great Catastrophe or after, "
    "'unsaid' where this text does not tell. What people merely say, or what was never made, does not count. "
    "Quote, for each, the sentence that tells it.\\nDates hang on these:\\n" + by_date,
    schema=list[Item],
)
doubtful = [r for r in results if not r.verified]
good = [r for r in results if r.verified and r.answer]
mentions = [(item, [q for q in r.quotes if item.name in q]) for r in good for item in r.answer]
unshown = [item for item, quotes in mentions if not quotes]
print(f"{len(chunks)} chapters, {len(mentions)} mentions; without a quote: {unshown}; doubtful: {doubtful}")
print(*mentions[:5], sep="\\n")
```"""

COMPOSE = """\
Mentions that share a name are one item: who made it may be told in one chapter, and when in another.

```repl compose
groups = {}
for item, quotes in mentions:
    group = {"names": dedupe([item.name, *item.also]), "items": [item], "quotes": quotes}
    for old in {id(groups[name]): groups[name] for name in group["names"] if name in groups}.values():
        group = {key: old[key] + group[key] for key in group}
    groups |= dict.fromkeys(group["names"], group)
groups = {id(group): group for group in groups.values()}.values()

def first(group, field):
    return next((value for item in group["items"] if (value := getattr(item, field))), None)

def when(group):
    return {item.when for item in group["items"]} - {"unsaid"}

items = []
for group in groups:
    if when(group) == {"before"}:
        # The full name is the one that came with the other names.
        name = next((item.name for item in group["items"] if item.also), group["items"][0].name)
        also = [other for other in dedupe(group["names"]) if other != name]
        items.append({"name": name, "also": also, "maker": first(group, "maker"), "town": first(group, "town"),
                      "quotes": dedupe(group["quotes"])})
items.sort(key=lambda item: item["name"])
print(len(groups), "items in all,", len(items), "before;", sum(len(when(g)) > 1 for g in groups), "contradictory")
answer["content"] = items
answer["citations"] = [item["quotes"] for item in items]  # a chapter's other quotes do not belong to the answer
answer["ready"] = True
```"""

PAIRS = """\
All is in `items`; pairs are for code.

```repl compose
from itertools import combinations
print(sum(not item["town"] for item in items), "items without a town")
answer["content"] = [[a["name"], b["name"]] for a, b in combinations(items, 2) if a["town"] and a["town"] == b["town"]]
answer["citations"] = [item["quotes"] for item in items]
answer["ready"] = True
```"""


def main(tokens: int, seed: int) -> None:
    novel = write_novel(tokens, seed)
    print(f"A novel of {len(novel.text) // 4:,} tokens, {novel.text.count('Chapter ')} chapters.")

    # For real answers: create_rlm("openai:gpt-5.1", "openai:gpt-5-mini", checkpointer=InMemorySaver())
    root = FakeListChatModel(responses=[PROBE, CALENDAR, ITEMS, COMPOSE, PAIRS])
    rlm = create_rlm(root, RuleReader(), checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}

    begun = time.monotonic()
    out = rlm.invoke({"question": QUESTION, "context": hold(novel.text, name="novel")}, thread)
    items, cited = json.loads(out["answer"]), {c["quote"]: c for c in out["citations"]}
    print(f"\n{QUESTION}")
    for item in items:
        also = f" (the {', the '.join(item['also'])})" if item["also"] else ""
        print(f"the {item['name']}{also}, by {item['maker']} of {item['town']}")
        for quote in item["quotes"]:
            print(f"    {cited[quote]['start']:>9,}  {quote}")
    usage, coverage = out["usage"], out["coverage"]
    print(f"{len(items)} items, {len(cited)} citations. {planted(novel, items)}")
    print(f"Verbatim in the novel: {all(novel.text[c['start'] : c['end']] == c['quote'] for c in out['citations'])}")
    print(
        f"Cost: {usage['turns']} root turns, {usage['calls']} sub-calls, {usage['input_tokens']:,} tokens read; "
        f"code searched {coverage['scanned']:.0%} of the novel, models read {coverage['read']:.0%} "
        f"({out['verified']} answers verified, {time.monotonic() - begun:.0f} s)"
    )

    out = rlm.invoke({"question": PAIRS_QUESTION}, thread)
    pairs = json.loads(out["answer"])
    print(f"\n{PAIRS_QUESTION}")
    print(*(f"the {a} and the {b}" for a, b in pairs[:5]), f"… {len(pairs):,} pairs.", sep="\n")
    towns = {thing.name: thing.town for thing in novel.before}
    true = {frozenset(pair) for pair in combinations(towns, 2) if towns[pair[0]] == towns[pair[1]]}
    whole = len(pairs) == len(true) and {frozenset(pair) for pair in pairs} == true
    print("They are all pairs that there are." if whole else f"There are {len(true):,}.")


def planted(novel: Novel, items: list[dict[str, object]]) -> str:
    """Whether the list is the truth: names, makers, towns, and a passage that was planted about each as its quotes."""
    true = {thing.name: thing for thing in novel.before}
    found = {item["name"]: item for item in items}
    wrong = [
        name
        for name, item in found.items()
        if name in true
        and (item["also"], item["maker"], item["town"], sorted(item["quotes"]))
        != ([a for a in [true[name].alias] if a], true[name].maker, true[name].town, sorted(true[name].passages))
    ]
    missed, invented = true.keys() - found.keys(), found.keys() - true.keys()
    if len(items) == len(true) and not (missed or invented or wrong):
        return "They are what was planted, each with all that the novel tells of it."
    return f"Of {len(true)} planted: missed {sorted(missed)}, invented {sorted(invented)}, wrong {wrong}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="length of the novel")
    parser.add_argument("--seed", type=int, default=1, help="of the novel")
    given = parser.parse_args()
    main(given.tokens, given.seed)
