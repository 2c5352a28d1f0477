"""The kernel's end of the bridge: one thread reads, one thread writes, anybody may send."""

from __future__ import annotations

import os
import signal
import socket

# Bound here by name, as in `frames`.
from builtins import BaseException, Exception, OSError, len, list, type  # noqa: UP029
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NoReturn

from .frames import Joiner, frame_length, pack, pack_rows

Handler = Callable[[int, str, Any], None]


def _silent(_: str) -> None: ...


class Wire:
    """Frames in, frames out.

    Sending is only a put on a queue: an interrupt that strikes the main thread can then never leave half a frame
    on the socket, and calls that pile up while one frame is written leave together in the next.
    """

    def __init__(
        self, sock: socket.socket, handle: Handler, repair: Callable[[], None], say: Callable[[str], None] = _silent
    ) -> None:
        self._sock = sock
        self._handle = handle
        self._repair = repair
        self._say = say
        self._queue: SimpleQueue[tuple[int, str, Any]] = SimpleQueue()
        self._owner = os.getpid()
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def start(self) -> None:
        Thread(target=self._read, name="bridge-in", daemon=True).start()
        Thread(target=self._write, name="bridge-out", daemon=True).start()

    @property
    def usable(self) -> bool:
        """False in a forked child: the bridge belongs to its parent."""
        return os.getpid() == self._owner

    def send_calls(self, rows: list[str]) -> None:
        self._queue.put((0, "calls", rows))

    def send(self, op: str, arg: Any, *, number: int = 0) -> None:
        self._queue.put((number, op, arg))

    def send_packed(self, op: str, arg: Any) -> None:
        """Sends a message that is packed here and now, so that one that cannot be raises here and now."""
        self._queue.put((0, "", list(pack(0, op, arg))))

    def _leave_to_parent(self) -> None:
        # A child that kept the socket open would hide the kernel's death from the host.
        self._sock.close()

    def _read(self) -> None:
        stream = self._sock.makefile("rb", buffering=1 << 18)
        joiner = Joiner()
        while True:
            head = stream.read(4)
            if len(head) < 4:
                end_process_group()
            try:
                message = joiner.feed(stream.read(frame_length(head)))
            except BaseException as error:
                self._say(type(error).__name__)
                end_process_group()
            if message is not None:
                self._dispatch(message["id"], message["op"], message["arg"])

    def _dispatch(self, number: int, op: str, arg: Any) -> None:
        try:
            self._handle(number, op, arg)
        except BaseException:
            # Most likely a cell overwrote a builtin that the handler needs.
            self._repair()
            try:
                self._handle(number, op, arg)
            except Exception as error:
                self.send("failed", f"{type(error).__name__}: {error}", number=number)

    def _write(self) -> None:
        while True:
            number, op, arg = self._queue.get()
            try:
                self._write_one(number, op, arg)
            except OSError:
                return  # the reader sees the same end of the socket and ends the process
            except BaseException as error:
                self._repair()
                self.send("failed", f"{type(error).__name__}: {error}", number=number)

    def _write_one(self, number: int, op: str, arg: Any) -> None:
        if op != "calls":
            for frame in pack(number, op, arg) if op else arg:
                self._sock.sendall(frame)
            return
        following = None
        rows = list(arg)
        while following is None:
            try:
                following = self._queue.get_nowait()
            except Empty:
                break
            if following[1] == "calls":
                rows += following[2]
                following = None
        try:
            for frame in pack_rows("calls", rows, "some_calls"):
                self._sock.sendall(frame)
        finally:
            if following is not None:
                self._write_one(*following)


def end_process_group() -> NoReturn:
    """Ends the kernel and what it has started, at once: the host is gone."""
    try:
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)
