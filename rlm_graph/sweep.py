"""Bounding the growth of the default content store: by age and by size, and never what a live run needs.

A run is live from `load` until `compose` has ended it. The replies of an ended one serve follow-up questions and time
travel; they are kept for a while, and then go, oldest first.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.stores import BaseStore

from rlm_graph.store import FolderStore

DAY = 86_400.0
ENDED_DAYS = 7.0
"""Days that an ended run, or a context that no run needs, is kept after its last use."""
LIVE_DAYS = 30.0
"""Days that a run which has not ended is kept after its last use."""
MOST_BYTES = 20_000_000_000
"""Size above which ended runs and unneeded contexts go before their time."""

_swept = "swept"
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Item:
    """A run, or a context, in the store."""

    paths: tuple[Path, ...]
    used: float
    size: int
    needed: bool
    days: float


def keep_small(store: BaseStore[str, bytes]) -> None:
    """Sweeps a folder store in the background, once a day at most; other stores see to their growth themselves."""
    if isinstance(store, FolderStore) and _due(store.root):
        threading.Thread(target=sweep, args=(store.root,), name="rlm-store-sweeper", daemon=True).start()


def touch(store: BaseStore[str, bytes], ids: Iterable[str]) -> None:
    """Notes that these contexts are in use now."""
    if isinstance(store, FolderStore):
        for id in ids:
            with suppress(FileNotFoundError):
                os.utime(store.path(f"source/{id}"))


def sweep(root: Path, *, now: float | None = None, most_bytes: int = MOST_BYTES) -> int:
    """Deletes what is too old, then what is too much, oldest first; gives the bytes deleted."""
    now = time.time() if now is None else now
    items = sorted([*_runs(root), *_contexts(root)], key=lambda item: item.used)
    excess = sum(item.size for item in items) - most_bytes
    deleted = 0
    for item in items:
        too_old = now - item.used > item.days * DAY
        too_much = deleted < excess and not item.needed
        if too_old or too_much:
            for path in item.paths:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            deleted += item.size
    return deleted


def _due(root: Path) -> bool:
    """Whether a day has passed since the last sweep; if so, this process is the one to sweep."""
    mark = root / _swept
    with _lock:
        try:
            if time.time() - mark.stat().st_mtime < DAY:
                return False
            mark.touch()
            return True
        except FileNotFoundError:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()
            return False


def _runs(root: Path) -> Iterator[Item]:
    for folder in _listed(root / "run"):
        used, size = _use(folder)
        live = not _state(folder).get("ended", False)
        yield Item((folder,), used, size, live, LIVE_DAYS if live else ENDED_DAYS)


def _contexts(root: Path) -> Iterator[Item]:
    needed = {file.name for run in _listed(root / "run") for file in _listed(run / "source")}
    # A copy of what another store keeps has no source here.
    for name in {file.name for kind in ("source", "local") for file in _listed(root / kind)}:
        paths = tuple(p for kind in ("source", "blob", "local") if (p := root / kind / name).exists())
        used = max(p.stat().st_mtime for p in paths)
        size = sum(p.stat().st_size for p in paths)
        is_needed = name in needed
        yield Item(paths, used, size, is_needed, float("inf") if is_needed else ENDED_DAYS)


def _state(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "state").read_bytes()))
    except (OSError, ValueError):
        return {}


def _use(folder: Path) -> tuple[float, int]:
    used, size = folder.stat().st_mtime, 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                stat = (Path(parent) / name).stat()
            except FileNotFoundError:
                continue
            used, size = max(used, stat.st_mtime), size + stat.st_size
    return used, size


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
