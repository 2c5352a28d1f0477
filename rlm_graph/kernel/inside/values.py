"""What leaves the kernel: values as JSON-like data, and a few numbers that describe variables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

_DEPTH = 100
_VARIABLES = 40


def plain_text(text: str) -> str:
    """Gives an exact `str`, whatever a subclass makes of itself."""
    return str.__str__(text)


def json_like(value: Any, depth: int = _DEPTH) -> Any:
    """Copies a value as JSON-like data.

    Raises:
        TypeError: it holds something else, or is nested too deeply; the message names the type.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return plain_text(value)
    if depth == 0:
        raise TypeError(f"{type(value).__name__} nested more than {_DEPTH} deep")
    if isinstance(value, (list, tuple)):
        return [json_like(item, depth - 1) for item in value]
    if isinstance(value, Mapping):
        return {_key(key): json_like(item, depth - 1) for key, item in value.items()}
    if hasattr(value, "page_content"):
        metadata = getattr(value, "metadata", None) or {}
        return {
            "page_content": plain_text(value.page_content),
            "metadata": {str(key): lenient(item) for key, item in metadata.items()},
        }
    if (fields := _fields(value)) is not None:
        return json_like(fields, depth - 1)
    raise TypeError(type(value).__name__)


def _fields(value: Any) -> dict[str, Any] | None:
    """What a record holds: an instance of a pydantic class or of a dataclass."""
    kind = type(value)
    if hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):
        dumped: dict[str, Any] = value.model_dump(mode="json")
        return dumped
    names = getattr(kind, "TOLD", None) or getattr(kind, "__dataclass_fields__", None)
    return {name: getattr(value, name) for name in names} if names else None


def lenient(value: Any) -> Any:
    """Copies a value as JSON-like data, or as its text where it is none; never raises."""
    try:
        return json_like(value)
    except Exception:
        try:
            return plain_text(str(value))
        except Exception as error:
            return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _key(key: Any) -> str:
    return plain_text(key) if isinstance(key, str) else str(key)


def variables(namespace: Mapping[str, Any], known: set[str]) -> list[list[Any]]:
    """Lists the model's own variables as [name, type, size], the latest last, at most 40."""
    own = [
        [name, type(value).__name__, size(value)]
        for name, value in list(namespace.items())
        if not name.startswith("_") and name not in known and type(value).__name__ != "module"
    ]
    return own[-_VARIABLES:]


def size(value: Any) -> int:
    """Gives the number of characters or items, 0 for what has none."""
    try:
        return len(value)
    except Exception:
        return 0


def characters(value: Any, depth: int = 4) -> int:
    """Counts the characters of all texts in a value."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if hasattr(value, "page_content"):
        return size(value.page_content)
    if depth and isinstance(value, Mapping):
        return sum(characters(item, depth - 1) for item in value.values())
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return sum(characters(item, depth - 1) for item in value)
    return 0


def summary(value: Any, window: int | None) -> dict[str, Any] | None:
    """Describes `candidates` or `chunks`: items, characters, tokens (estimated), and how many exceed `window`."""
    if isinstance(value, (str, bytes)):
        items = [value]
    elif isinstance(value, Mapping):
        items = list(value.values())
    else:
        try:
            items = list(value) if len(value) >= 0 else []
        except Exception:
            return None
    lengths = [characters(item) for item in items]
    tokens = [(length + 3) // 4 for length in lengths]
    spread = [min(tokens), int(statistics.median(tokens)), max(tokens)] if tokens else [0, 0, 0]
    over = sum(count > window for count in tokens) if window else 0
    return {"items": len(items), "chars": sum(lengths), "tokens": spread, "over": over}
