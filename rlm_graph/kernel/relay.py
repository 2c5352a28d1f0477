"""What runs in a gateway's own kernel: it starts ours beside itself, and passes on what host and kernel say.

`gateway_kernel.py` sends this module, and what it imports, to the other machine; nothing else of rlm-graph's is there.
There is one way through a gateway while a cell runs: the kernel's stdin channel. On it every message is one text,
`<op> <arg>`; `arg` is JSON, for `bridge` the bytes themselves.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from ..errors import IsolationError, KernelError
from .background import Background, Worker
from .isolation import Isolation, settled
from .live import LiveKernel
from .local import start_local

_PIECE_BYTES = 1_000_000
_EXIT_SECONDS = 2.0


class Link:
    """The stdin channel, as a pair of streams of texts."""

    def __init__(self, kernel: Any) -> None:
        self._session = kernel.session
        self._stdin = zmq.asyncio.Socket.from_socket(kernel.stdin_socket)
        # Else what finds the gateway's queue full would be dropped in silence.
        self._stdin.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._host: list[bytes] = []
        self.silence: float | None = None
        """Seconds after which a host that says nothing is taken for gone: nobody else tells us of its end."""

    async def hear(self) -> tuple[str, str]:
        """Waits for the host's next message.

        Raises:
            TimeoutError: the host has fallen silent.
        """
        async with asyncio.timeout(self.silence):
            frames = await self._stdin.recv_multipart()
        self._host, parts = self._session.feed_identities(frames)
        op, _, arg = self._session.deserialize(parts)["content"]["value"].partition(" ")
        return op, arg

    async def tell(self, op: str, arg: Any = None) -> None:
        """Sends a message; waits while the gateway's queue is full."""
        text = arg.decode("latin-1") if isinstance(arg, bytes) else json.dumps(arg)
        message = self._session.msg("input_request", {"prompt": f"{op} {text}", "password": False})
        await self._stdin.send_multipart(self._session.serialize(message, self._host))


class Pipe(asyncio.Protocol):
    """The bridge, as a stream of bytes that waits for who reads it."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.reader.set_transport(transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reader.feed_eof()


async def relay(kernel: Any) -> None:
    """Serves one host: from its `start` until its `end`, its silence, or an interrupt of the gateway's."""
    link = Link(kernel)
    _, arg = await link.hear()
    try:
        memory, link.silence = json.loads(arg)
        workers = [Worker(name) for name in ("spawner", "sweeper", "watcher")]
        here = Background(os.getpid(), asyncio.get_running_loop(), *workers)
        live = await start_local(here, memory, await asyncio.to_thread(_best_isolation))
    except KernelError as error:
        await link.tell("failed", [str(error), error.cause])
        return
    received = Path(tempfile.mkdtemp(prefix="rlm-received-"))
    try:
        await _serve(link, live, received)
    finally:
        await live.release()
        shutil.rmtree(received, ignore_errors=True)


def _best_isolation() -> Isolation:
    """A cage where this machine can have one; else what keeps it apart is for those to say who run the gateway."""
    try:
        return settled("auto")
    except IsolationError:
        return "process"


async def _serve(link: Link, live: LiveKernel, received: Path) -> None:
    pipe = Pipe()
    numbers: dict[str, int] = {}
    async with asyncio.TaskGroup() as tasks:
        await live.connect(pipe, lambda: _tell_later(tasks, link))
        passing = [tasks.create_task(_pass_bytes(pipe, link)), tasks.create_task(_pass_replies(live, link, numbers))]
        await link.tell("started", live.means)
        while True:
            op, arg = await link.hear()
            if op == "bridge" and pipe.transport is not None:
                pipe.transport.write(arg.encode("latin-1"))
            elif op == "execute":
                number, content = json.loads(arg)
                numbers[live.execute(content)] = number
            elif op == "file":
                await link.tell("stored", _store(received, *json.loads(arg)))
            elif op == "deliver":
                await link.tell("delivered", await _deliver(live, received, *json.loads(arg)))
            elif op == "kill":
                live.kill()
            elif op == "obituary":
                error = await live.obituary(started=json.loads(arg))
                await link.tell("obituary", [str(error), error.cause])
            elif op == "ping":
                await link.tell("pong")
            elif op == "end":
                break
        for task in passing:
            task.cancel()


def _tell_later(tasks: asyncio.TaskGroup, link: Link) -> None:
    tasks.create_task(link.tell("exited"))


async def _pass_bytes(pipe: Pipe, link: Link) -> None:
    with suppress(OSError):
        while piece := await pipe.reader.read(_PIECE_BYTES):
            await link.tell("bridge", piece)
    await asyncio.sleep(_EXIT_SECONDS)  # as a rule the process is about to end, which says more
    await link.tell("closed")


async def _pass_replies(live: LiveKernel, link: Link, numbers: dict[str, int]) -> None:
    while True:
        number = numbers.pop(await live.replied(), None)
        if number is not None:
            await link.tell("replied", number)


def _store(received: Path, name: str, piece: str) -> str | None:
    """Adds a piece to a file; gives the reason where that fails."""
    path = received / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(base64.b64decode(piece))
    except OSError as error:
        return str(error)
    return None


async def _deliver(live: LiveKernel, received: Path, number: str, told: dict[str, Any]) -> dict[str, Any] | str:
    """Hands over what was stored; gives the binding as the kernel finds it, or the reason where that fails."""
    folder = received / number
    path = folder / "text"
    if told["kind"] == "files":
        path = folder / "manifest"
        path.write_text(json.dumps({**told["manifest"], "root": str(folder / "files")}))
    try:
        return await live.deliver({**told, "path": str(path)})
    except OSError as error:
        return str(error)
