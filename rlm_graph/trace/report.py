"""A run as one page that opens from a disk. It loads nothing, and what a model or an input said stays text in it."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, cast

from langchain_core.stores import BaseStore

from rlm_graph import citations
from rlm_graph.errors import ContextError, TraceError
from rlm_graph.state import Source
from rlm_graph.store import default_store
from rlm_graph.trace.trajectory import Trajectory, read_trace
from rlm_graph.trace.view import view

_PAGE = Path(__file__).parent / "page"

_MARK = b'<meta name="generator" content="rlm-graph">'
"""In the head of every page of ours."""


def write_report(
    path: str | os.PathLike[str], to: str | os.PathLike[str], *, content_store: BaseStore[str, bytes] | None = None
) -> None:
    """Makes a self-contained HTML page of a trajectory file, also of one that a killed run left.

    Args:
        path: The trajectory. Written with `texts=True` it gives a page with every prompt, reply and output whole (up
            to 20 000 characters each), else with their beginnings.
        to: The page; one that is there already is replaced, and missing folders are made.
        content_store: Where the run's context is kept, if not in the default store. Citations open at their place
            where it can be read; else they stand alone.

    Raises:
        TraceError: The file is no trajectory, or what is there in the page's place is no page of ours.
        OSError: A file cannot be read or written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from rlm_graph import create_rlm, tracing
        >>> from rlm_graph.offline import OfflineRoot
        >>> folder = Path(tempfile.mkdtemp())
        >>> with tracing(folder / "run.jsonl"):
        ...     out = create_rlm(OfflineRoot()).invoke({"question": "Built when?", "context": "It was built in 1907."})
        >>> write_report(folder / "run.jsonl", folder / "run.html")
        >>> "It was built in 1907." in (folder / "run.html").read_text()
        True
    """
    trajectory = read_trace(path)
    store = content_store if content_store is not None else default_store()
    to = Path(to)
    _refuse_foreign(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(page(trajectory, texts_of(trajectory, store)), "utf-8")


def _refuse_foreign(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(1000)
    if start and _MARK not in start:
        raise TraceError(f"{path} is there already and is no page of rlm-graph's: name another file")


def page(trajectory: Trajectory, texts: Mapping[str, str]) -> str:
    """The page of a trajectory. `texts` are the context's, by name; empty where they cannot be read."""
    shown = view(trajectory, texts)
    style, script = (_part(name) for name in ("page.css", "page.js"))
    title = html.escape(f"{shown['question'][:80]} — rlm-graph")
    return Template(_part("page.html")).substitute(title=title, style=style, script=script, data=_inert(shown))


def texts_of(trajectory: Trajectory, store: BaseStore[str, bytes]) -> dict[str, str]:
    """The texts of the run's context by name; none where they are gone, or have changed since."""
    try:
        return citations.texts_of(cast(Source, trajectory.asked.run["sources"][-1]), store)
    except (ContextError, OSError, ValueError):
        return {}


def _part(name: str) -> str:
    return (_PAGE / name).read_text("utf-8")


def _inert(data: Any) -> str:
    """JSON in which no character can end the element that it stands in, or be taken for mark-up."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
