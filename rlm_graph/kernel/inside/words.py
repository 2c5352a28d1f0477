"""Words for matching and ranking: folded, taken apart, their endings off; and BM25 over passages."""

from __future__ import annotations

import os
import re
import unicodedata

from .pieces import Piece

NAMED = 3
"""How often the name of a passage's source counts as said in it."""
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about after all also an and any are as at be because been before but by can could did do
        does doing done each for from get give had has have he her him his how i if in into is it
        its many may me might more most much must my no not of off on only or other our out over say
        shall she should show so some such tell than that the their them then there these they this
        those to up us use used uses using very was we were what when where whether which while who
        whom whose why will with would you your
        """,
    )
)


def terms(text: str) -> list[str]:
    """The words of a text for matching: folded, `snake_case` and `camelCase` taken apart, endings off."""
    found: list[str] = []
    for word in re.findall(r"[^\W_]+", text):
        parts = [word] if word.islower() else re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+", word)
        found += [stem(folded(part)) for part in parts]
    return found


def folded(text: str) -> str:
    """Lower case without accents, so that "Natasha" finds "Natásha"; the length may change."""
    low = text.lower()
    return low if low.isascii() else re.sub("[\u0300-\u036f]+", "", unicodedata.normalize("NFD", low))


def stem(word: str) -> str:
    """Takes off the commonest English endings, so that `escaping`, `escaped` and `escapes` are one."""
    for ending, least in (("ing", 4), ("ed", 4), ("es", 4), ("s", 3), ("e", 4)):
        if word.endswith(ending) and len(word) - len(ending) >= least and not word.endswith("ss"):
            return word[: -len(ending)]
    return word


def keywords(query: str) -> list[str]:
    """The stems that a query is about, in order, each once; all its words where it has only stop words."""
    words = [word for word in re.findall(r"[^\W_]+", query) if word.lower() not in STOP_WORDS and len(word) > 1]
    return list(dict.fromkeys(terms(" ".join(words)) or terms(query)))


def ranked(words: list[str], passages: list[Piece], k: int) -> list[Piece]:
    """The best `k` passages by BM25."""
    if not passages or not words or k < 1:
        return []
    # bm25s asks tqdm for a progress bar on import, which warns inside a kernel that has no widgets.
    os.environ.setdefault("DISABLE_TQDM", "1")
    import bm25s  # type: ignore[import-untyped]

    index = bm25s.BM25(backend="numpy")
    index.index([terms(f"{p.source} " * NAMED + p) for p in passages], show_progress=False)
    known = [word for word in words if word in index.vocab_dict]
    if not known:
        return []
    scores = index.get_scores(known)
    best = sorted(range(len(passages)), key=lambda at: (-float(scores[at]), at))[:k]
    return [passages[at] for at in best if scores[at] > 0]
