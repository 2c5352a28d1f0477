"""What the command does with recorded runs: `rlm-graph report`, `rlm-graph replay` and `rlm-graph compare`."""

# No `from __future__ import annotations` here: typer reads the annotations of the commands, whose names are local.

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rlm_graph.describe import counted
from rlm_graph.errors import TraceError
from rlm_graph.files import walk
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.live import visible
from rlm_graph.trace.recording import refuse_foreign

if TYPE_CHECKING:
    import typer

SAME, DIFFERENT = 0, 4

Guard = Callable[[Callable[[], int]], int]
"""Runs a command's work and returns its exit code; what the user can mend becomes one line."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """Who goes on with a recorded run, and what its code is kept in."""

    model: str | None
    sub_model: str | None
    base_url: str | None
    isolation: Isolation


def add_to(app: "typer.Typer", guarded: Guard, go_on: Callable[[Path, int, GoOn], int]) -> None:
    """Adds the commands to the application; `go_on` has a model go on with a trajectory from a cell."""
    import typer

    file = typer.Argument(metavar="FILE", help="A trajectory: rlm-graph ask --trace FILE, or write_trace.")

    @app.command()
    def replay(
        path: Annotated[Path, file],
        isolation: Annotated[Isolation, typer.Option(help="What the recorded code is kept in, as for ask.")] = "auto",
        cell: Annotated[
            int | None, typer.Option("--from", metavar="CELL", help="Hand over to a model in place of this cell.")
        ] = None,
        model: Annotated[str | None, typer.Option(help="With --from: the root, as for ask.")] = None,
        sub_model: Annotated[str | None, typer.Option(help="With --from: who reads the parts.")] = None,
        base_url: Annotated[str | None, typer.Option(help="With --from: where openai: models are served.")] = None,
    ) -> None:
        """Runs a recorded run again in fresh kernels, its calls answered from the record: no model is asked.

        Exit codes: 0 the same; 1 error; 4 it differs, and the first place where is told; with --from those of ask.
        """
        if cell is not None:
            sys.exit(guarded(lambda: go_on(path, cell, GoOn(model, sub_model, base_url, isolation))))
        sys.exit(guarded(lambda: replayed(path, isolation)))

    @app.command()
    def report(
        path: Annotated[Path, file],
        output: Annotated[
            Path | None, typer.Option("--output", "-o", metavar="PAGE", help="Else FILE with the ending .html.")
        ] = None,
    ) -> None:
        """Makes a page of a recorded run, in one file that opens from the disk: answer, coverage, time, tree."""
        sys.exit(guarded(lambda: reported(path, output or path.with_suffix(".html"))))

    @app.command()
    def compare(left: Annotated[Path, file], right: Annotated[Path, file]) -> None:
        """Shows two recorded runs side by side."""
        sys.exit(guarded(lambda: compared(left, right)))


def unwritable(trace: Path, paths: list[Path], exclude: list[str]) -> str | None:
    """Why no trajectory may be written there, where something would be lost."""
    if not trace.is_file():
        return None
    real = trace.resolve()
    for path in (p.resolve() for p in paths if p.exists()):
        inside = path.is_dir() and real.is_relative_to(path)
        if real == path or (inside and real.relative_to(path).as_posix() in walk(path, exclude).files):
            return f"--trace {trace}: it is part of the text: name another file"
    try:
        refuse_foreign(trace)
    except (TraceError, OSError) as error:
        return f"--trace: {error}"
    return None


def replayed(path: Path, isolation: Isolation) -> int:
    """Replays, says how it went, and returns the exit code."""
    from rlm_graph.trace.replay import replay
    from rlm_graph.trace.trajectory import read_trace

    trajectory = read_trace(path)
    different = asyncio.run(replay(trajectory, isolation=isolation))
    if different is not None:
        print(visible(f"differs: {different}"))  # noqa: T201
        return DIFFERENT
    cells, answer = sum(len(run.outputs) for run in trajectory.runs.values()), trajectory.asked.answer
    unended = "" if answer else "; the run had not ended"
    if cells:
        told = f"the same: {counted(cells, 'cell')} of {counted(len(trajectory.runs), 'run')}"
    elif answer and answer["stop_reason"] == "direct":
        told = "answered directly, without cells: there is nothing to replay"
    else:
        told = "no cell has run: there is nothing to replay"
    print(told + unended)  # noqa: T201
    return SAME


def reported(path: Path, page: Path) -> int:
    """Writes the page, and says where."""
    from rlm_graph.trace.report import write_report

    write_report(path, page)
    print(visible(str(page)))  # noqa: T201
    return SAME


def compared(left: Path, right: Path) -> int:
    """Prints two runs side by side."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlm_graph.trace.compare import compare
    from rlm_graph.trace.trajectory import read_trace

    table = Table(box=box.SIMPLE)
    table.add_column(no_wrap=True)
    for file in (left, right):
        table.add_column(Text(visible(str(file))), overflow="fold")
    for row in compare(read_trace(left), read_trace(right)):
        style = "bold" if row.differs else ""
        table.add_row(row.name, *(Text(visible(side or "–"), style) for side in (row.left, row.right)))
    Console().print(table)
    return SAME
