"""How many tokens a text has, without ever asking the network.

tiktoken downloads a vocabulary when it is first used. Here it is used only where the vocabulary is on this
disk already, and whole; else the number is an estimate: one token for each character from U+2E80 on
(Chinese, Japanese, Korean, emoji), one for every four others. English prose and code come out within some 15
%, other alphabets low.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)

LONG = 200_000
"""Characters beyond which a text's tokens are inferred from a sample."""

_BIT = 2_000
_BITS = 100
_WIDE = "\u2e80"
_DEFAULT = "o200k_base"
# The file and the SHA-256 that tiktoken asks for. A file with another hash it would download again.
_FILES = {
    "o200k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}


def count_tokens(text: str, model_name: str | None = None) -> int:
    """The tokens of a text: counted where the vocabulary is cached and the text is not long, else an
    estimate.

    Args:
        text: Any text. Above `LONG` characters a sample of it stands for the whole.
        model_name: "gpt-4o" or "openai:gpt-4o". For models that are not OpenAI's the newest vocabulary of
            OpenAI's serves as an approximation.
    """
    if len(text) <= LONG:
        return _count(text, model_name)
    step = len(text) // _BITS
    return _scaled([text[start : start + _BIT] for start in range(0, len(text), step)], len(text), model_name)


def estimate(chars: int) -> int:
    """About how many tokens a text of this many characters has: a quarter, rounded up."""
    return math.ceil(chars / 4)


class Sample:
    """Counts the tokens of a text that comes in pieces: all of it while it is short, bits of it when it is
    long."""

    def __init__(self) -> None:
        self.chars = 0
        self._whole: list[str] = []
        self._bits: list[str] = []
        self._seen = 0
        self._stride = 1

    def add(self, text: str) -> None:
        """Takes note of the next piece. Keeps at most some 600 kB, however much comes."""
        self.chars += len(text)
        if self.chars <= LONG:
            self._whole.append(text)
        else:
            self._whole.clear()
        if text and self._seen % self._stride == 0:
            self._bits.append(text[:_BIT])
            if len(self._bits) == 2 * _BITS:
                self._bits = self._bits[::2]
                self._stride *= 2
        self._seen += 1

    def tokens(self, model_name: str | None = None) -> int:
        """The tokens of everything that was added."""
        if self.chars <= LONG:
            return _count("".join(self._whole), model_name)
        return _scaled(self._bits, self.chars, model_name)


def _scaled(bits: Sequence[str], chars: int, model_name: str | None) -> int:
    seen = sum(len(bit) for bit in bits)
    return math.ceil(sum(_count(bit, model_name) for bit in bits) * chars / max(seen, 1))


def _count(text: str, model_name: str | None) -> int:
    vocabulary = _vocabulary(model_name)
    if vocabulary is not None:
        try:
            return len(vocabulary.encode_ordinary(text))
        except Exception as error:  # whatever a tokenizer does, a run does not end for a number that is approximate
            logger.debug("tiktoken failed, tokens are estimated: %s", error)
    wide = 0 if text.isascii() else sum(char >= _WIDE for char in text)
    return wide + estimate(len(text) - wide)


def _vocabulary(model_name: str | None) -> tiktoken.Encoding | None:
    folder = _cache_folder()
    if folder is None:
        return None
    name = (_encoding_name(model_name) if model_name else None) or _DEFAULT
    url, sha256 = _FILES.get("o200k_base" if name == "o200k_harmony" else name, ("", ""))
    if not url:
        return None
    file = folder / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        return None
    return _loaded(name, file, changed, sha256)


def _cache_folder() -> Path | None:
    """Where tiktoken keeps what it has downloaded, as `tiktoken.load.read_file_cached` finds it."""
    default = str(Path(tempfile.gettempdir(), "data-gym-cache"))
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return Path(folder) if folder and Path(folder).is_dir() else None


def _encoding_name(model_name: str) -> str | None:
    from tiktoken.model import encoding_name_for_model  # 50 ms: only where a vocabulary may be at hand

    try:
        return encoding_name_for_model(model_name.removeprefix("openai:"))
    except KeyError:
        return None


@lru_cache(maxsize=8)
def _loaded(name: str, file: Path, _changed: int, sha256: str) -> tiktoken.Encoding | None:
    try:
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            return None
        import tiktoken

        return tiktoken.get_encoding(name)
    except Exception as error:  # as in `_count`
        logger.debug("the cached vocabulary %s is not usable: %s", name, error)
        return None
