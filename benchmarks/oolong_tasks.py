"""Questions over labelled records, in the manner of OOLONG and OOLONG-Pairs, and their answers from labels.

Standard library only: the benchmark's root puts this very file into its first cell, so that what is answered there from
a leaf's labels, and here from the truth, is computed alike. A row is `(date, user, label)`, its date as `YYYY-MM-DD`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import combinations

LABELS = ("abbreviation", "entity", "description and abstract concept", "human being", "location", "numeric value")
A, E, D, H, L, N = LABELS
GAP = 0.02
"""Shares nearer to each other than this are not asked about, unless they are equal."""


def tasks(rows, seed):
    """Some 30 questions that these rows answer without a tie, as dicts: `task`, `prompt` and what they ask of."""
    rng = random.Random(seed)
    found = []
    for subset in ({}, *_subsets(rows, rng)):
        for task in ("MOST_FREQ", "LEAST_FREQ", "NUMERIC_ONE_CLASS", "RELATIVE_FREQ"):
            found.append({"task": task, **subset, "a": rng.choice(LABELS), "b": rng.choice(LABELS)})
    found += [{"task": "USER_MOST"}, {"task": "USER_SECOND"}, {"task": "USER_MOST_OF", "a": rng.choice(LABELS)}]
    users = rng.sample(sorted({user for _, user, _ in rows}), 2)
    found.append({"task": "USER_MORE_OF", "a": rng.choice(LABELS), "users": users})
    found += [{"task": "DATE_MOST"}, {"task": "DATE_SECOND"}, {"task": "DATES_N_TIMES", "n": _fourth(rows)}]
    middle = sorted(date for date, _, _ in rows)[len(rows) // 2]
    for a, b in rng.sample(list(combinations(LABELS, 2)), 3):
        found.append({"task": "BEFORE_AFTER", "a": a, "date": middle})
        found.append({"task": "MONTHS_EXCEEDS", "a": a, "b": b})
        found.append({"task": "MONTHS_SINGLE_MOST", "a": a})
        found.append({"task": "FIRST_MONTH", "a": a, "b": b})
    asked = [task for task in found if task.get("a") != task.get("b", None) and len(solve(task, rows)) == 1]
    return [{**task, "prompt": wording(task)} for task in asked]


def solve(task, rows):
    """The answers to a question, as they are to be written; several where there is a tie, none where it has none."""
    rows = [row for row in rows if _within(task, row)]
    return globals()[f"_{task['task'].lower()}"](task, rows) if rows else []


def pairs(number, rows):
    """The answer to a pair question (1 to 20): a line `(id, id)` for each pair of users, the lower first."""
    users = defaultdict(lambda: defaultdict(list))
    for date, user, label in rows:
        users[user][label].append(date)
    one, other = PAIRS[number]
    first = {user for user, has in users.items() if one(has)}
    second = {user for user, has in users.items() if other(has)}
    both = ((x, y) for x, y in combinations(sorted(users), 2))
    return "\n".join(f"({x}, {y})" for x, y in both if (x in first and y in second) or (x in second and y in first))


def wording(task):
    """The question in words."""
    a, b = task.get("a"), task.get("b")
    subset = ""
    if "user" in task:
        subset = (
            f"For the following question, only consider the subset of instances that belong to user {task['user']}. "
        )
    if "month" in task:
        subset = f"For the following question, only consider the subset of instances dated in {task['month']}. "
    return (
        subset
        + {
            "MOST_FREQ": "Which of the labels is the most common? Answer 'Label: answer'.",
            "LEAST_FREQ": "Which of the labels is the least common? Answer 'Label: answer'.",
            "NUMERIC_ONE_CLASS": f"How many data points should be classified as '{a}'? Answer 'Answer: number'.",
            "RELATIVE_FREQ": f"Is '{a}' more or less common than '{b}', or the same? 'Answer: {a} is [X] {b}'.",
            "USER_MOST": "Which user is represented most often? Answer 'User: [X]'.",
            "USER_SECOND": "Which user is represented the second most often? Answer 'User: [X]'.",
            "USER_MOST_OF": f"Which user has the most instances labelled '{a}'? Answer 'User: [X]'.",
            "USER_MORE_OF": f"Who of {task.get('users')} has more instances labelled '{a}'? Answer 'User: [X]'.",
            "DATE_MOST": "Which date is represented most often? Answer 'Date: MM/DD/YYYY'.",
            "DATE_SECOND": "Which date is represented the second most often? Answer 'Date: MM/DD/YYYY'.",
            "DATES_N_TIMES": f"How many dates are represented exactly {task.get('n')} times? Answer 'Answer: number'.",
            "BEFORE_AFTER": f"Is '{a}' more or less common before {task.get('date')} than since? 'Answer: [X] common'.",
            "MONTHS_EXCEEDS": f"In how many months is '{a}' more frequent than '{b}'? Answer 'Answer: number'.",
            "MONTHS_SINGLE_MOST": f"In how many months is '{a}' alone the most frequent label? 'Answer: number'.",
            "FIRST_MONTH": f"In which month is '{a}' more frequent than '{b}' for the first time? 'Answer: YYYY-MM'.",
        }[task["task"]]
    )


def score(answer, gold, kind):
    """From 0 to 1: right or wrong; a number that is near has a part."""
    said = answer.rpartition(":")[2].strip().strip("*[]").strip() if ":" in answer else answer.strip()
    right = gold.rpartition(":")[2].strip()
    if kind != "NUMERIC":
        return float(said == right)
    try:
        return 0.75 ** abs(int(right) - int(said))
    except ValueError:
        return 0.0


def f1(answer, gold):
    """Of the pairs; two empty lists are alike."""
    said, right = set(answer.splitlines()), set(gold.splitlines())
    return 2 * len(said & right) / (len(said) + len(right)) if said or right else 1.0


def kind_of(task):
    numbers = ("NUMERIC_ONE_CLASS", "DATES_N_TIMES", "MONTHS_EXCEEDS", "MONTHS_SINGLE_MOST")
    return "NUMERIC" if task["task"] in numbers else "WORD"


def _subsets(rows, rng):
    users = Counter(user for _, user, _ in rows).most_common(5)
    months = Counter(date[:7] for date, _, _ in rows).most_common(5)
    return {"user": rng.choice(users)[0]}, {"month": rng.choice(months)[0]}


def _within(task, row):
    return task.get("user") in (None, row[1]) and row[0].startswith(task.get("month", ""))


def _labels(rows):
    return Counter(dict.fromkeys(LABELS, 0)) + Counter(label for _, _, label in rows)


def _at(counts, value, form):
    return [form.format(key) for key, count in sorted(counts.items()) if count == value]


def _second(counts):
    return sorted(set(counts.values()), reverse=True)[1] if len(set(counts.values())) > 1 else None


def _fourth(rows):
    times = Counter(date for date, _, _ in rows).most_common(4)
    return times[-1][1]


def _most_freq(task, rows):
    counts = _labels(rows)
    return _at(counts, max(counts.values()), "Label: {}")


def _least_freq(task, rows):
    counts = _labels(rows)
    return _at(counts, min(counts.values()), "Label: {}")


def _numeric_one_class(task, rows):
    return [f"Answer: {_labels(rows)[task['a']]}"]


def _relative_freq(task, rows):
    counts = _labels(rows)
    a, b = counts[task["a"]], counts[task["b"]]
    if a != b and abs(a - b) / len(rows) <= GAP:
        return []
    told = "more common than" if a > b else "less common than" if a < b else "the same frequency as"
    return [f"Answer: {task['a']} is {told} {task['b']}"]


def _user_most(task, rows):
    counts = Counter(user for _, user, _ in rows)
    return _at(counts, max(counts.values()), "User: {}")


def _user_second(task, rows):
    counts = Counter(user for _, user, _ in rows)
    return _at(counts, _second(counts), "User: {}")


def _user_most_of(task, rows):
    counts = Counter(user for _, user, label in rows if label == task["a"])
    return _at(counts, max(counts.values()), "User: {}") if counts else []


def _user_more_of(task, rows):
    counts = Counter(user for _, user, label in rows if label == task["a"])
    one, other = task["users"]
    if abs(counts[one] - counts[other]) < 2:
        return []
    return [f"User: {one if counts[one] > counts[other] else other}"]


def _written(date):
    return f"Date: {date[5:7]}/{date[8:]}/{date[:4]}"


def _date_most(task, rows):
    counts = Counter(date for date, _, _ in rows)
    return [_written(date) for date in _at(counts, max(counts.values()), "{}")]


def _date_second(task, rows):
    counts = Counter(date for date, _, _ in rows)
    return [_written(date) for date in _at(counts, _second(counts), "{}")]


def _dates_n_times(task, rows):
    return [f"Answer: {sum(n == task['n'] for n in Counter(date for date, _, _ in rows).values())}"]


def _before_after(task, rows):
    before = [label == task["a"] for date, _, label in rows if date < task["date"]]
    after = [label == task["a"] for date, _, label in rows if date >= task["date"]]
    if not before or not after:
        return []
    gap = sum(before) / len(before) - sum(after) / len(after)
    return [f"Answer: {'more' if gap > 0 else 'less'} common"] if abs(gap) > GAP else []


def _by_month(rows):
    months = defaultdict(Counter)
    for date, _, label in rows:
        months[date[:7]][label] += 1
    return sorted(months.items())


def _exceeding(task, rows):
    return [month for month, counts in _by_month(rows) if counts[task["a"]] > counts[task["b"]]]


def _months_exceeds(task, rows):
    return [f"Answer: {len(_exceeding(task, rows))}"]


def _first_month(task, rows):
    return [f"Answer: {month}" for month in _exceeding(task, rows)[:1]]


def _months_single_most(task, rows):
    a = task["a"]
    single = (all(c[a] > c[other] for other in LABELS if other != a) for _, c in _by_month(rows))
    return [f"Answer: {sum(single)}"]


def _any(*labels, all_of=None, after="", before="9999"):
    """A user has one of these labels, and all of its instances of `all_of` lie between two dates."""

    def holds(has):
        return any(has[label] for label in labels) and all(after < date < before for date in has[all_of])

    return holds


def _counts(**wanted):
    """A user has at least (`E=1`) or exactly (`E_is=1`) so many instances of each label."""
    by_letter = dict(zip("AEDHLN", LABELS, strict=True))

    def holds(has):
        for name, number in wanted.items():
            held = len(has[by_letter[name[0]]])
            if held != number if name.endswith("_is") else held < number:
                return False
        return True

    return holds


def _both(holds):
    return holds, holds


PAIRS = {
    1: _both(_any(N, L)),
    2: _both(_any(E, H)),
    3: _both(_any(D, A)),
    4: _both(_any(H, L, all_of=H, after="2023-01-06")),
    5: _both(_any(E, N, all_of=E, before="2023-03-15")),
    6: _both(_any(L, A)),
    7: _both(_any(D, N, all_of=N, after="2023-02-01")),
    8: _both(_any(H, D)),
    9: _both(_any(E, L, all_of=L, after="2023-04-10")),
    10: _both(_any(N, A, all_of=A, before="2023-05-20")),
    11: (_counts(E=1, A=1), _counts(E_is=1)),
    12: (_counts(N=2), _counts(L=1, H=1)),
    13: (_counts(D_is=1), _counts(A=1, E=1)),
    14: (_counts(H=1, N=1), _counts(L_is=2)),
    15: (_counts(E=1, L=1, A=1), _counts(N_is=1)),
    16: (_counts(D=1, H=1), _counts(E=2, A_is=1)),
    17: (_counts(N_is=1), _counts(L=1, D=1)),
    18: (_counts(A=1, H_is=1), _counts(E=1, N=1)),
    19: (_counts(L=2, E=1), _counts(D_is=1, A_is=1)),
    20: (_counts(N=1, H=1), _counts(L=1, E=1, A_is=1)),
}
"""By number, what the one and the other user of a pair must have; which is which does not matter."""
