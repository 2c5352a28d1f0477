"""What a cell prints: the head passes, the tail is kept in a ring, what lies between is counted."""

from __future__ import annotations

import _thread
import codecs
import os
import select
import sys
import time
from collections import deque
from contextlib import suppress
from functools import cached_property
from typing import Any

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.iostream import OutStream
from ipykernel.zmqshell import ZMQDisplayPublisher

from .bound import clean, joined

_LOG_BYTES = 64_000
_PIPE_BYTES = 65_536  # what a pipe holds


class Output:
    """One cell's output, of all its streams and threads together, in the order in which it came."""

    def __init__(self, limit: int) -> None:
        self._tail_room = max(1, limit // 3)
        self._head_room = max(1, limit - self._tail_room)
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._left_out = 0

    def write(self, text: str) -> None:
        if self._head_room:
            self._head.append(text[: self._head_room])
            passed = len(self._head[-1])
            self._head_room -= passed
            text = text[passed:]
        if text:
            self._keep_tail(text)

    def _keep_tail(self, text: str) -> None:
        self._left_out += max(0, len(text) - self._tail_room)
        text = text[-self._tail_room :]
        self._tail.append(text)
        self._tail_size += len(text)
        while self._tail_size - len(self._tail[0]) >= self._tail_room:
            gone = len(self._tail.popleft())
            self._tail_size -= gone
            self._left_out += gone

    def text(self) -> str:
        """Gives what is kept, with one line that says what is not."""
        head, tail, left_out = "".join(self._head), "".join(self._tail), self._left_out
        if left_out:
            left_out += max(0, len(tail) - self._tail_room)
            tail = tail[-self._tail_room :]
        return joined(clean(head), left_out, clean(tail))


class Screen:
    """Where every stream of the kernel writes: the output of the cell that runs, or what comes after its end."""

    def __init__(self) -> None:
        # A bare lock: entering one cannot be torn by an interrupt, unlike a Condition or an RLock of Python's.
        self._lock = _thread.allocate_lock()
        self._output = Output(1)

    def write(self, text: str) -> None:
        with self._lock:
            self._output.write(text)

    def turn(self, limit: int) -> str:
        """Gives what was written until now, and begins anew with room for `limit` characters."""
        with self._lock:
            written, self._output = self._output, Output(limit)
        return written.text()


SCREEN = Screen()


class BoundedStream(OutStream):
    """`sys.stdout` and `sys.stderr` of the kernel; nothing of theirs goes by iopub, which loses messages."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._taking_in = _thread.allocate_lock()
        self._taking = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._log_room = _LOG_BYTES
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    def write(self, string: str) -> int:
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string).__name__}")
        if os.getpid() == self._master_pid:
            with suppress(OSError):  # its descriptor was closed, or the log is full
                self.take_in()  # what a child wrote before it ended stands before what its parent says of it
            SCREEN.write(string)
        else:
            # A forked child has a copy of the screen only; its descriptor leads to the parent.
            os.write(self._original_stdstream_fd, string.encode("utf-8", "backslashreplace"))
        return len(string)

    def flush(self) -> None:
        """Does nothing: what is written has arrived."""

    def _watch_pipe_fd(self) -> None:
        """Takes in what subprocesses and C code write to the descriptor itself."""
        waiting = self._readable()
        while self._should_watch:
            try:
                waiting.poll()
                if not self.take_in():
                    return
            except Exception:
                time.sleep(0.01)

    def take_in(self) -> bool:
        """Puts on the screen what has been written to the descriptor; False if nobody can write to it any more.

        The lock is for what the other thread has read but not put there yet: an empty pipe does not tell of it. As in
        `Screen`, it is a bare one, and a signal's handler that prints while this thread holds it is not kept waiting.
        """
        me = _thread.get_ident()
        if self._taking == me:
            return True
        with self._taking_in:
            self._taking = me
            try:
                if not self._waiting.poll(0):
                    return True
                read = os.read(self._fid or 0, _PIPE_BYTES)
                SCREEN.write(self._decoder.decode(read))
            finally:
                self._taking = 0
        if self._log_room > 0:
            # The last words of a library that aborts the process explain its death to the host.
            self._log_room -= os.write(self._original_stdstream_copy, read[: self._log_room])
        return bool(read)

    @cached_property
    def _waiting(self) -> select.poll:
        """Asked by who holds the lock alone."""
        return self._readable()

    def _readable(self) -> select.poll:
        readable = select.poll()
        readable.register(self._fid or 0, select.POLLIN)
        return readable

    def note(self, text: str) -> None:
        """Writes to the process' own log, for the host to find."""
        with suppress(OSError):  # it is full
            os.write(self._original_stdstream_copy, f"{text}\n".encode())


class DisplayHook(ZMQShellDisplayHook):
    """Writes the value of a cell's last expression where prints go."""

    def start_displayhook(self) -> None: ...

    def write_output_prompt(self) -> None: ...

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        sys.stdout.write(str(format_dict.get("text/plain", "")) + "\n")

    def finish_displayhook(self) -> None: ...


class DisplayPublisher(ZMQDisplayPublisher):
    """Writes what is `display`ed, as plain text, where prints go."""

    def publish(self, data: Any, *args: Any, **kwargs: Any) -> None:
        sys.stdout.write(str(data.get("text/plain", "")) + "\n")

    def clear_output(self, wait: bool = False) -> None: ...
