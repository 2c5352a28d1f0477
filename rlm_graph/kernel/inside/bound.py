"""How a long text is shown: its head, a count of what is left out, its tail."""

from __future__ import annotations

LATE_CHARACTERS = 300
"""How much is kept of what threads and children print after the end of their cell."""


def clean(text: str) -> str:
    """Escapes lone surrogates, which no encoder downstream takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def joined(head: str, left_out: int, tail: str) -> str:
    """Puts head and tail together around one line that counts the characters between them."""
    return f"{head}\n… [{left_out:,} characters left out] …\n{tail}" if left_out else head + tail


def bounded(text: str, limit: int) -> str:
    """Cuts the middle out of a text longer than `limit`."""
    if len(text) <= limit:
        return text
    tail = max(1, limit // 3)
    head = max(1, limit - tail)
    return joined(text[:head], len(text) - head - tail, text[-tail:])
