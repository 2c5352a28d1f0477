"""The tree of a run in a terminal, while it works: phases, cells, nested runs, and how far the calls are.

`View` takes in the run's events and knows nothing of a terminal; `lines` makes rows of it; `drawn` keeps them on it.
"""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlm_graph.describe import counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

CELLS, NESTED_CELLS = 6, 2
"""Cells of a run that are shown: of the one at the top, and of a nested one."""

LEFT_FREE = 12
"""Rows of a terminal that nested runs leave to the rest."""

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_MARKS = {"done": "✓", "failed": "✗"}
_STYLES = {"done": "green", "failed": "red", "runs": "cyan"}


@dataclass(slots=True)
class CellShown:
    """A cell by its first line."""

    phase: str
    line: str
    state: Literal["runs", "done", "failed"] = "runs"
    calls: int = 0


@dataclass(slots=True)
class RunShown:
    """A run and its cells; `nested` are those that its cells called."""

    question: str
    depth: int
    turns: int = 0
    cells: list[CellShown] = field(default_factory=list)
    nested: list[RunShown] = field(default_factory=list)
    ended: bool = False


@dataclass(slots=True)
class View:
    """What the events of a run have told so far."""

    began: float = field(default_factory=time.monotonic)
    top: RunShown | None = None
    calls: Mapping[str, Any] = field(default_factory=dict)
    """The latest `progress` event."""
    again: int = 0
    """Calls that were asked again because their answers were in doubt."""
    _runs: dict[str, RunShown] = field(default_factory=dict)
    _at: dict[str, RunShown] = field(default_factory=dict)
    """Runs by the namespace of their graph: a nested one's begins with its parent's."""

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes in an event."""
        if event["event"] == "run":
            self._begin(event)
            return
        if event["event"] == "progress":
            self.calls = event
            return
        run = self._runs.get(event["run"])
        if run is None:
            return
        match event["event"]:
            case "turn":
                run.turns += 1
            case "cell":
                code = event["code"]
                run.cells.append(CellShown(event["phase"], first_line(code.get("text", code.get("head", "")))))
            case "dispatch":
                run.cells[-1].calls += event["plain"] + event["nested"]
            case "output" if run.cells:
                run.cells[-1].state = "done" if event["error"] is None else "failed"
                run.cells[-1].calls = event["asked"]
            case "verdict":
                self.again += event["uncertain"]
            case "answer":
                run.ended = True

    def _begin(self, event: Mapping[str, Any]) -> None:
        run = RunShown(first_line(event["question"]), event["depth"])
        parent = self._at.get("|".join(event["namespace"].split("|")[:-2]))
        self._runs[event["run"]] = self._at[event["namespace"]] = run
        if parent is not None and event["depth"]:
            parent.nested.append(run)
        else:
            self.top = run


def lines(view: View, height: int) -> list[tuple[str, str]]:
    """The rows of a view, bounded in number, each with its style."""
    if view.top is None:
        return [(f"{frame()} reading the input", "")]
    return list(_of_run(view.top, "", max(1, (height - LEFT_FREE) // (NESTED_CELLS + 2))))


def _of_run(run: RunShown, indent: str, most: int) -> Iterator[tuple[str, str]]:
    """A run's rows: its last cells, then those nested runs that still work, and a count of the others."""
    cells = NESTED_CELLS if indent else CELLS
    if folded := len(run.cells) - cells:
        yield from [(f"{indent}… {counted(folded, 'earlier cell')}", "dim")] if folded > 0 else []
    for cell in run.cells[-cells:]:
        mark = _MARKS.get(cell.state) or frame()
        calls = f"{counted(cell.calls, 'call')}: " if cell.calls else ""
        yield f"{indent}{mark} {cell.phase:<7} {calls}{cell.line}", _STYLES[cell.state]
    if not run.ended and not (run.cells and run.cells[-1].state == "runs"):
        yield f"{indent}{frame()} the root thinks, turn {run.turns + 1}", "cyan"
    working = [nested for nested in run.nested if not nested.ended]
    for nested in working[:most]:
        yield f"{indent}  └ {nested.question}", "bold"
        yield from _of_run(nested, f"{indent}    ", 1)
    if more := len(run.nested) - len(working[:most]):
        ended = len(run.nested) - len(working)
        yield f"{indent}  └ {counted(more, 'other nested run')}, {ended:,} ended", "dim"


def said_of(view: View) -> str:
    """How far the calls are, in words; nothing before there are any."""
    calls = view.calls
    if not calls:
        return ""
    said = [f"{calls['done']:,} of {counted(calls['asked'], 'call')} done"]
    said += [f"{calls['failed']:,} failed"] if calls["failed"] else []
    said += [f"{view.again:,} asked again"] if view.again else []
    tokens, most = calls["input_tokens"] + calls["output_tokens"], calls["of_tokens"]
    said.append(f"{_short(tokens)} {f'of {_short(most)} ' if most is not None else ''}tokens")
    if calls["cost"] is not None:
        said.append(
            f"${calls['cost']:,.2f}" + (f" of ${calls['of_cost']:,.2f}" if calls["of_cost"] is not None else "")
        )
    if most is None and calls["of_cost"] is None:
        said.append(f"limit {calls['of']:,}")
    return ", ".join(said)


def _short(n: int) -> str:
    if n < 10_000:
        return f"{n:,}"
    size, unit = (n / 1_000, "k") if n < 1_000_000 else (n / 1_000_000, "M")
    return f"{size:.1f}".removesuffix(".0") + unit


@contextmanager
def drawn(view: View, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Keeps the view drawn where standard error is a terminal, and yields what prints a text above it.

    Args:
        view: What is to be drawn.
        say: Prints where there is no terminal.
    """
    if not sys.stderr.isatty():
        yield say
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    live = Live(console=console, get_renderable=lambda: rendered(view, console), transient=True, refresh_per_second=8)
    with live:
        yield lambda text: console.print(Text(printable(text)), soft_wrap=True)


def rendered(view: View, console: Console) -> RenderableType:
    """The view as it stands on a terminal."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    rows: list[RenderableType] = [
        Text(row, style=style, no_wrap=True, overflow="ellipsis") for row, style in lines(view, console.height)
    ]
    foot = Table.grid(padding=(0, 1))
    said, elapsed = said_of(view), f"{time.monotonic() - view.began:.0f} s"
    bar: list[RenderableType] = []
    if said:
        bar = [ProgressBar(total=view.calls["asked"], completed=view.calls["done"], width=max(8, console.width // 8))]
    # Where the row is too short for all of it, it goes on in another.
    foot.add_row(*bar, Text(f"{said}, {elapsed}" if said else elapsed))
    return Group(*rows, foot)


def frame() -> str:
    """The present picture of what turns while something works."""
    return _FRAMES[int(time.monotonic() * 8) % len(_FRAMES)]


def first_line(text: str) -> str:
    """The first line that says something, as imports do not, fit for a terminal's row."""
    said = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    line = next((line for line in said if not line.startswith(("import ", "from "))), said[0] if said else "")
    return "".join(c if c.isprintable() else "�" for c in line.expandtabs(4).strip())


def printable(text: str) -> str:
    """The text without the control characters that steer a terminal, newline and tab aside."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def visible(text: str) -> str:
    """The text with what would steer, hide, or turn the direction of other text shown by its number."""
    return _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)
