"""Tracebacks as the model reads them: its own lines, the error, and nothing of the machinery."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable

from .bound import bounded, clean

_LIMIT = 4_000
_MESSAGE_LIMIT = 2_000
_FILE = re.compile(r'^([ |+-]*)File "<(cell \d+)>", line', re.MULTILINE)

EXIT = "SystemExit: sys.exit() does nothing here: the cell ended, the kernel goes on"


def cell_name(index: int) -> str:
    """Gives the file name under which a cell's code is compiled."""
    return f"<cell {index}>"


def describe(error: BaseException, memory: int) -> str:
    """Formats an exception, bounded in length; never raises."""
    if isinstance(error, SystemExit):
        return EXIT
    try:
        text = _format(error)
    except BaseException:
        text = type(error).__name__
    if isinstance(error, MemoryError):
        limit = f"the kernel may use {memory:,} bytes" if memory else "no memory is left"
        text = f"{text.rstrip()}\nOut of memory: {limit}. Delete what is not needed (del), or work in smaller pieces."
    return bounded(clean(text.rstrip()), _LIMIT)


def _format(error: BaseException) -> str:
    # Looking lines up may need memory, and one frame more than a RecursionError has left.
    report = traceback.TracebackException.from_exception(error, lookup_lines=False)
    _walk(report, _own_lines, set())
    return _FILE.sub(r"\1\2, line", "".join(report.format()))


def _own_lines(report: traceback.TracebackException) -> None:
    own = [frame for frame in report.stack if frame.filename.startswith("<cell ")]
    # Rebuilt without columns, which would print a line of carets under each.
    report.stack = traceback.StackSummary.from_list(
        [traceback.FrameSummary(f.filename, f.lineno, f.name, lookup_line=True) for f in own]
    )
    text = getattr(report, "_str", None)
    if isinstance(text, str) and len(text) > _MESSAGE_LIMIT:
        report._str = bounded(text, _MESSAGE_LIMIT)  # type: ignore[attr-defined]


def _walk(
    report: traceback.TracebackException,
    change: Callable[[traceback.TracebackException], None],
    seen: set[int],
) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    change(report)
    linked = [report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())]
    for other in linked:
        if other is not None:
            _walk(other, change, seen)
