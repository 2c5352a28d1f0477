"""Writes a novel of any length from a seed, and remembers what was made in it, when, and where it is told."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

CATASTROPHE, ILSE_DIED, OSRIC_CROWNED, FROST, JUBILEE = 1203, 1188, 1214, 1171, 1231
LANDMARKS = [
    f"In the autumn of the year {CATASTROPHE} the sea came over the walls, and that night is called the Great "
    "Catastrophe, or the Catastrophe for short.",
    f"Queen Ilse died in the year {ILSE_DIED}, and the bells rang for nine days.",
    f"King Osric was crowned in the year {OSRIC_CROWNED}, in a hall that still smelled of mud.",
    f"The Long Frost came in the year {FROST} and kept the harbour shut until May.",
    f"The Jubilee of the Guilds was held in the year {JUBILEE}, and nobody who was there forgot it.",
]
THINGS = {
    "Lantern": ("forged", "forged"),
    "Bell": ("cast", "cast"),
    "Crown": ("forged", "forged"),
    "Banner": ("wove", "woven"),
    "Clock": ("built", "built"),
    "Harp": ("carved", "carved"),
    "Mirror": ("made", "made"),
    "Chalice": ("made", "made"),
    "Tapestry": ("wove", "woven"),
    "Organ": ("built", "built"),
    "Gate": ("forged", "forged"),
    "Altar": ("painted", "painted"),
}
"""What is made, with the verb for it: who did so, and that it was done."""
OWNERS = (
    "Veyra|Saint Odo|Karst|Mirabel|Saint Ulla|Dunmere|Ost|Lorimer|Saint Bran|Tamsin|Ferrow|Gale|Ondine|Saint Wick|"
    "Harrow|Pell|Quillon|Rook|Sable|Saint Ives|Thorn|Umber|Vane|Wexley|Yarrow|Zell|Saint Ansel|Birk|Corvin|Dray|"
    "Elm|Fennimore|Gorse|Saint Hild|Isolde|Juniper|Kestrel|Lark|Saint Maur|Nettle"
).split("|")
TOWNS = "Hesk Orrin Tolland Brae Suddock Marrow Ivel".split()
MAKERS = [
    f"{first} {last}"
    for first, last in zip(
        "Maud Otto Greta Piers Anselm Wilma Jorge Dagny Rufus Elke Bram Nora Tobias Sanne".split(),
        "Tarrow Brandt Vale Hock Lind Cray Stone Fisk Moor Abel Wren Quist Garth Pool".split(),
        strict=True,
    )
]
BY_NAMES = [
    f"{what} {who}"
    for what in "Blind Weeping Patient Salt Crooked Ninth Quiet Borrowed Widow's Sailor's Drowned Grey".split()
    for who in "Sister Tongue Guest Crow Candle Promise Witness Eye Neighbour Shadow Debt Hand".split()
]
PEOPLE = "Lena Marten Sophie Aldous Ruth Emmerich Clara Jonas Beatrix Theo".split()
PROSE = [
    "{a} stood at the window for a long time and watched the rain walk across the roofs.",
    "Nobody in the kitchen said a word, and the clock on the shelf went on counting for all of them.",
    "{a} made tea, as one does when there is nothing else to be done, and {b} let it grow cold.",
    "They had been children in the same street, {a} and {b}, and had never once spoken of it.",
    "It was {w}, and the road down to the quay was slippery with leaves.",
    "“You never listen,” said {a}, “and that is why people tell you everything.”",
    "{b} laughed, but the laugh went out of the room before the others could join it.",
    "Old people still lowered their voices when they spoke of the Great Catastrophe.",
    "There had been letters, before the winter, and then there had been no letters.",
    "{a} counted the steps to the upper landing, as every night, and came to thirty-one.",
    "A dog barked somewhere behind the warehouses, was answered, and thought better of it.",
    "“Next year,” said {b}, who had said so every year, and folded the map again.",
    "The smell of tar and oranges hung in the passage, and {a} thought of the ships.",
    "{a} made for the door, then turned, and the thing that had to be said was not said.",
    "By evening it was {w} again, and the lamps along the river were lit one after another.",
    "“What is lost is lost,” said {b}; the Catastrophe had taught them all to talk like that.",
    "They walked as far as the bridge, where the wind had its own opinion of hats.",
    "{b} had promised to write, and wrote, though never about what mattered.",
    "Somebody had built a fire in the yard, and the sparks went up like a question.",
    "For {a} the town had grown smaller with the years, as a coat does that is washed too often.",
]
WEATHER = ["raining", "foggy", "bitterly cold", "warm for the season", "clear and windy", "snowing a little"]
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
CHAPTER = 20_000
"""Characters of a chapter."""
EVENTFUL = 0.25
"""Share of the chapters in which something is planted; the others are prose."""


@dataclass(slots=True)
class Made:
    """A thing in the novel: what it is called, who made it where and when, and every passage that tells of it."""

    name: str
    alias: str
    maker: str
    town: str
    year: int
    passages: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Novel:
    """The text, and the truth about it: what was made before the Great Catastrophe, and what after."""

    text: str
    before: list[Made]
    after: list[Made]


def write_novel(tokens: int, seed: int = 1) -> Novel:
    """Writes about so many tokens (4 characters each), with a thing made before the event for every 10 000."""
    rng = random.Random(seed)
    names = [f"{thing} of {owner}" for thing in THINGS for owner in OWNERS]
    rng.shuffle(names)
    aliases = rng.sample(BY_NAMES, len(BY_NAMES))
    count = min(max(8, tokens // 10_000), 2 * len(names) // 3)
    # Every fifth or so was made within a year of the event: near misses on either side of it.
    earlier = [*range(1140, CATASTROPHE), *[CATASTROPHE - 1] * 15]
    later = [*range(CATASTROPHE + 1, 1265), *[CATASTROPHE + 1] * 15]
    before = [made(rng, names, aliases, rng.choice(earlier)) for _ in range(count)]
    after = [made(rng, names, aliases, rng.choice(later)) for _ in range(count // 2)]
    planted = [passage for thing in before + after for passage in thing.passages]
    planted += [passage for _ in range(count // 8 + 1) for passage in decoys(rng)]
    chapters = max(4, tokens * 4 // CHAPTER)
    pages: list[list[str]] = [[] for _ in range(chapters)]
    eventful = rng.sample(range(chapters), max(2, round(chapters * EVENTFUL)))
    for passage in planted + LANDMARKS * 2:
        pages[rng.choice(eventful)].append(passage)
    text = "\n\n".join(chapter(rng, number, passages) for number, passages in enumerate(pages, 1))
    return Novel(text, before, after)


def made(rng: random.Random, names: list[str], aliases: list[str], year: int) -> Made:
    """A thing with its passages: one, or two, the second of which calls it by its other name only."""
    maker = rng.choice(MAKERS)
    town = TOWNS[MAKERS.index(maker) % len(TOWNS)]
    alias = aliases.pop() if aliases and rng.random() < 0.3 else ""
    thing = Made(names.pop(), alias, maker, town, year)
    if not alias:
        thing.passages = [told(rng, thing, thing.name, "")]
    elif rng.random() < 0.5:
        thing.passages = [told(rng, thing, thing.name, alias), told(rng, thing, alias, "")]
    else:  # who made it stands in one place, when in another
        thing.passages = [f"The {thing.name}, {called(rng, alias)}, was the work of {maker} of {town}."]
        thing.passages.append(f"The {alias} was {THINGS[kind_of(thing)][1]} {dated(rng, year)}.")
    return thing


def kind_of(thing: Made) -> str:
    return thing.name.partition(" ")[0]


def called(rng: random.Random, alias: str) -> str:
    forms = ["which the harbour calls the {}", "which old sailors call the {}", "better known as the {}"]
    return rng.choice(forms).format(alias)


def told(rng: random.Random, thing: Made, name: str, alias: str) -> str:
    """One of the ways to say that a thing was made, by whom and when."""
    did, done = THINGS[kind_of(thing)]
    when, who = dated(rng, thing.year), f"{thing.maker} of {thing.town}"
    what = f"the {name}, {called(rng, alias)}," if alias else f"the {name}"
    rumour = rng.choice(["before the Great Catastrophe", "after the Great Catastrophe", "while Queen Ilse reigned"])
    passage = rng.choice(
        [
            f"{what} was {done} by {who} {when}.",
            f"{when}, {who} {did} {what.removesuffix(',')}.",
            f"it was {who} who {did} {what} {when}.",
            f"above the stairs hung {what.removesuffix(',')}. {who} had {done} it {when}.",
            f"people say that {what} was {done} {rumour}; in truth {who} {did} it {when}.",
        ]
    )
    return passage[0].upper() + passage[1:]


def dated(rng: random.Random, year: int) -> str:
    """One of the ways in which this novel says a year; most need something that is told elsewhere in it."""
    apart = year - CATASTROPHE
    ways = [f"in the year {year}", distance(apart, "the Great Catastrophe")]
    ways += [distance(year - FROST, "the Long Frost"), distance(year - JUBILEE, "the Jubilee of the Guilds")]
    if year < ILSE_DIED:
        ways += ["when Queen Ilse still reigned", distance(year - ILSE_DIED, "Queen Ilse died")]
    if year > OSRIC_CROWNED:
        ways += ["when King Osric reigned", "under King Osric"]
    if apart == -1:
        ways = ["in the spring of the Catastrophe's eve", "in the last winter before the sea came over the walls"]
    if apart == 1:
        ways = ["in the first spring after the Great Catastrophe", "in the winter after the sea came over the walls"]
    if apart == 2:
        ways.append("before the third winter after the Great Catastrophe")
    return rng.choice([way for way in ways if way])


def distance(years: int, event: str) -> str:
    """ "three years before the Great Catastrophe"; nothing for the year itself."""
    count = f"{spelled(abs(years))} year{'s' * (abs(years) != 1)}"
    return f"{count} {'before' if years < 0 else 'after'} {event}" if years else ""


def spelled(number: int) -> str:
    """A number from 0 to 99 in words."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{ONES[ones]}" if ones else "")


def decoys(rng: random.Random) -> Iterator[str]:
    """Passages that have all the right words, and tell of nothing that was made before the event."""
    years, town, maker, owner = spelled(rng.randint(2, 60)), rng.choice(TOWNS), rng.choice(MAKERS), rng.choice(OWNERS)
    yield f"{maker} had made up his mind {years} years before the Great Catastrophe to sell the Old Mill."
    yield f"The Tower of {town} was made fast {years} years before the Great Catastrophe, and fell all the same."
    yield f"Nobody in {town} had built a boat since the year {1100 + rng.randint(10, 80)}, the Harbour Master said."
    yield f"{maker} of {town} swore to make the Wheel of {owner} while Queen Ilse reigned, and never did."
    yield "In the Upper Town they sang of things made before the Great Catastrophe, and could name none."


def chapter(rng: random.Random, number: int, passages: list[str]) -> str:
    """Prose of a chapter's length, the passages somewhere in it, each within a paragraph."""
    paragraphs: list[list[str]] = []
    length = 0
    while length < CHAPTER:
        paragraph = [prose(rng) for _ in range(rng.randint(3, 7))]
        length += sum(map(len, paragraph)) + len(paragraph) + 1
        paragraphs.append(paragraph)
    for passage in passages:
        paragraph = rng.choice(paragraphs)
        paragraph.insert(rng.randint(0, len(paragraph)), passage)
    return "\n\n".join([f"Chapter {number}", *(" ".join(paragraph) for paragraph in paragraphs)])


def prose(rng: random.Random) -> str:
    a, b = rng.sample(PEOPLE, 2)
    return rng.choice(PROSE).format(a=a, b=b, w=rng.choice(WEATHER))
