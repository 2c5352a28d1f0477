"""A trajectory file as it is written: JSON lines, one an entry, each on its way to the disk the moment it is said.

A file holds one question with its whole recursion tree. What the record had before (of a run that is gone on with, of
the thread's earlier questions) comes first, so that the file can be replayed by itself.
"""

from __future__ import annotations

import contextvars
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from rlm_graph.errors import TraceError
from rlm_graph.trace.events import Entry, Header, without_texts

VERSION = 1
"""Of the file's schema."""

_FIRST = b'{"event":"trace",'
"""How a file of ours begins."""

VARIABLE = "RLM_GRAPH_TRACE"
"""Names a folder in which every run of this process writes its trajectory, texts and all."""


class Recording:
    """A file, or a folder of them, into which runs write.

    Args:
        path: The file of the first question that is recorded; further ones go beside it, as `<name>-2.jsonl` and so
            on. A folder: a file for each, `<run>.<number>.jsonl`. None: no file.
        texts: Whether prompts, replies and outputs are written whole, keys and all.
        tell: Is given each new entry, whole.

    Raises:
        TraceError: The file is there already and is no trajectory.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, *, texts: bool, tell: Callable[[Entry], None] | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        self.texts = texts
        self.tell = tell
        self.files: list[Path] = []
        """The files, in the order in which they were begun."""
        # One thread writes, in order: a write must never hold up a loop.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rlm-trace")
        self._files: dict[str, TextIO] = {}
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._failure: OSError | None = None
        if self.path is not None and not self.path.is_dir():
            # What cannot be written is told before anything is spent.
            refuse_foreign(self.path)
            _opened(self.path, os.O_TRUNC).close()

    def open(self, tree: str) -> bool:
        """Takes a tree in; whether it is new here, and its past is to be written.

        Raises:
            TraceError: Its file is there already and is no trajectory.
        """
        with self._lock:
            if self.path is None or tree in self._paths:
                return False
            path = self._path(self.path, tree)
            refuse_foreign(path)
            self._paths[tree] = path
            self.files.append(path)
            self._writer.submit(self._write, self._begin, tree)
            return True

    def add(self, tree: str, entries: Sequence[Entry]) -> None:
        """Takes in what was said just now of a tree that has been opened."""
        if self.path is not None:
            self.write(tree, entries)
        if self.tell is not None:
            for entry in entries:
                self.tell(entry)

    def write(self, tree: str, entries: Sequence[Entry]) -> None:
        """Writes entries of a tree that has been opened."""
        lines = [line_of(entry if self.texts else without_texts(entry)) for entry in entries]
        ended = any(entry["event"] == "answer" and entry["depth"] == 0 for entry in entries)
        with self._lock:
            self._writer.submit(self._write, self._append, tree, lines, ended)

    def close(self) -> None:
        """Waits until all is written.

        Raises:
            OSError: It could not be written.
        """
        self._writer.shutdown(wait=True)
        for file in self._files.values():
            file.close()
        if self._failure is not None:
            raise self._failure

    def _path(self, path: Path, tree: str) -> Path:
        if path.is_dir():
            return path / f"{tree}.jsonl"
        number = len(self._paths) + 1
        return path if number == 1 else path.with_stem(f"{path.stem}-{number}")

    def _begin(self, tree: str) -> None:
        self._files[tree] = _opened(self._paths[tree], os.O_TRUNC)
        self._files[tree].write(header(texts=self.texts))

    def _write(self, act: Callable[..., None], *given: Any) -> None:
        """Writes, on the writer's thread. After a failure it writes no more: what is there can still be read."""
        if self._failure is None:
            try:
                act(*given)
            except OSError as error:
                self._failure = error

    def _append(self, tree: str, lines: list[str], ended: bool) -> None:
        if tree not in self._files:
            self._files[tree] = _opened(self._paths[tree], os.O_APPEND)
        for line in lines:
            self._files[tree].write(line)
        if ended:
            self._files.pop(tree).close()


def refuse_foreign(path: Path) -> None:
    """Refuses a file in whose place a trajectory would be written, unless it is one, or is empty.

    Raises:
        TraceError: It is none of ours.
        OSError: It cannot be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(_FIRST))
    if start and start != _FIRST:
        raise TraceError(f"{path} is there already and is no trajectory of rlm-graph's: name another file")


def _opened(path: Path, how: int) -> TextIO:
    # As private as the content store's files: it holds what the run read.
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
    return os.fdopen(descriptor, "w", encoding="ascii", buffering=1)


def header(*, texts: bool) -> str:
    """The first line of a file."""
    by = f"rlm-graph {version('rlm-graph')}"
    first: Header = {"event": "trace", "version": VERSION, "by": by, "texts": texts}
    return line_of(first)


def line_of(entry: Any) -> str:
    """An entry as a line."""
    return json.dumps(entry, ensure_ascii=True, separators=(",", ":")) + "\n"


_recording: contextvars.ContextVar[Recording | None] = contextvars.ContextVar("rlm_graph_recording", default=None)
_of_process: dict[str, Recording] = {}
_of_process_lock = threading.Lock()


@contextmanager
def tracing(
    path: str | os.PathLike[str] | None, *, texts: bool = False, tell: Callable[[Entry], None] | None = None
) -> Iterator[list[Path]]:
    """Writes the trajectory of what runs inside, while it runs: a process that is killed leaves what it had got to.

    Args:
        path: The file; a further question inside goes beside it, as `run-2.jsonl` and so on. A folder that exists: a
            file for each question. A trajectory that is there already is replaced. None: no file, or where
            `RLM_GRAPH_TRACE` names a folder one there, texts and all.
        texts: Whether prompts, replies and outputs are written whole, rather than by their beginning and hash; else
            what looks like a key is left out everywhere.
        tell: Is given each entry as it is said, with its texts whole; what it raises, the run raises.

    Yields:
        The files, as they are begun.

    Raises:
        TraceError: The file is there already and is no trajectory.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from rlm_graph import create_rlm, read_trace
        >>> from rlm_graph.offline import OfflineRoot
        >>> path = f"{tempfile.mkdtemp()}/run.jsonl"
        >>> with tracing(path):
        ...     out = create_rlm(OfflineRoot()).invoke({"question": "When was it built?", "context": "In 1907."})
        >>> trajectory = read_trace(path)
        >>> trajectory.runs[trajectory.top].answer["stop_reason"]
        'direct'
    """
    folder = None if path is not None else _of_the_environment()
    recording = Recording(folder or path, texts=texts or folder is not None, tell=tell)
    token = _recording.set(recording)
    try:
        yield recording.files
    finally:
        _recording.reset(token)
        recording.close()


def present() -> Recording | None:
    """Where the present run is to be written, if anywhere."""
    recording = _recording.get()
    if recording is not None or (folder := _of_the_environment()) is None:
        return recording
    with _of_process_lock:
        if folder not in _of_process:
            _of_process[folder] = Recording(folder, texts=True)
        return _of_process[folder]


def _of_the_environment() -> str | None:
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder
