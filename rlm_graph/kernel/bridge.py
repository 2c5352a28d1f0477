"""The host's end of the bridge: frames over whatever transport leads to the kernel, on the background loop.

What comes in was written by a process that runs hostile code: nothing in it may crash the host or fill its memory.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from .inside.frames import Joiner, Malformed, frame_length, pack, pack_rows


class Bridge(asyncio.Protocol):
    """Sends and receives messages.

    Args:
        receive: Called with `(op, arg)` of each message that is no acknowledgement. May raise `Malformed`.
        lost: Called once when no more messages can come; with the reason where the kernel broke the rules.
    """

    def __init__(self, receive: Callable[[str, Any], None], lost: Callable[[str | None], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._buffer = bytearray()
        self._joiner = Joiner()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._transport: asyncio.Transport | None = None
        self._reason: str | None = None
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self.received += len(data)
        try:
            while len(self._buffer) >= 4 and self._reason is None:
                end = 4 + frame_length(bytes(self._buffer[:4]))
                if len(self._buffer) < end:
                    return
                body = bytes(self._buffer[4:end])
                del self._buffer[:end]
                self._take(self._joiner.feed(body))
        except Malformed as error:
            self._reason = f"the kernel broke the bridge's rules: {error}"
            self.close()

    def _take(self, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        number, op = message["id"], message["op"]
        if op not in ("done", "failed"):
            self._receive(op, message["arg"])
            return
        asked = self._asked.pop(number, None)
        if asked is not None and not asked.done():
            asked.set_result(None if op == "done" and message["arg"] is None else str(message["arg"])[:2000])

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer.clear()
        for asked in self._asked.values():
            asked.cancel()
        self._asked.clear()
        self._lost(self._reason)

    def send(self, op: str, arg: Any, *, number: int = 0) -> None:
        """Sends one message; never waits, the transport keeps what the socket does not take yet."""
        for frame in pack(number, op, arg):
            self._write(frame)

    def send_rows(self, op: str, rows: Iterable[str]) -> None:
        """Sends rows in as few frames as they fit into."""
        for frame in pack_rows(op, rows):
            self._write(frame)

    def _write(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    async def ask(self, op: str, arg: Any) -> str | None:
        """Sends one message and awaits its acknowledgement: None, or why it could not be done.

        Raises:
            ConnectionError: the kernel is gone.
        """
        number = next(self._numbers)
        asked: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            raise ConnectionError("the bridge is closed")
        self._asked[number] = asked
        try:
            self.send(op, arg, number=number)
            return await asked
        except asyncio.CancelledError:
            if asked.cancelled() and self._transport is None:
                raise ConnectionError("the bridge is closed") from None
            raise
        finally:
            self._asked.pop(number, None)

    def close(self) -> None:
        """Drops the connection, and what was not sent yet."""
        if self._transport is not None:
            self._transport.abort()
