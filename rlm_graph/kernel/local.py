"""A kernel that is a child process on this machine, spoken to over sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import zmq

from ..errors import KernelError
from .background import Background
from .carry import carried
from .isolation import Isolation
from .memory import Watched
from .process import Process, kill, obituary, release, spawn, watch_exit

_SHELL_MESSAGE_BYTES = 4_000_000


async def start_local(background: Background, memory: int, isolation: Isolation) -> LocalKernel:
    """Starts a process.

    Raises:
        KernelError: it cannot be started.
        IsolationError: it cannot be kept as was asked for.
    """
    context = background.sockets
    try:
        process = await background.spawner.call(lambda: spawn(context, memory, isolation))
    except OSError as error:
        raise KernelError(f"the kernel did not start: {error}", cause="start") from error
    return LocalKernel(background, process, memory)


class LocalKernel:
    """See `LiveKernel`."""

    def __init__(self, background: Background, process: Process, memory: int) -> None:
        self._background = background
        self.process = process
        in_memory = process.means == "bubblewrap"
        self._watched = Watched(process.popen.pid, memory, files=in_memory, over=self._holds_too_much)
        self._death: KernelError | None = None
        self.pid = process.popen.pid
        self.means = process.means
        self._channel: Any = None
        self._ended: Callable[[], None] = lambda: None
        self._stop_watching: Callable[[], None] = lambda: None

    async def connect(self, bridge: asyncio.Protocol, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._stop_watching = watch_exit(self.process, ended)
        if self._watched.most:
            self._background.memory.begin(self._watched)
        self.process.bridge.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: bridge, sock=self.process.bridge)

    def _shell(self) -> Any:
        # Connected late: ZeroMQ takes 100 ms to try again where the kernel does not listen yet.
        if self._channel is None:
            self._channel = self.process.manager.connect_shell()
            self._channel.setsockopt(zmq.MAXMSGSIZE, _SHELL_MESSAGE_BYTES)
        return self._channel

    def execute(self, content: dict[str, Any]) -> str:
        jupyter = self.process.manager.session
        sent = jupyter.msg("execute_request", content)
        jupyter.send(self._shell(), sent)
        return str(sent["header"]["msg_id"])

    async def replied(self) -> str:
        jupyter = self.process.manager.session
        while True:
            frames = await self._shell().recv_multipart()
            try:
                _, parts = jupyter.feed_identities(frames)
                return str(jupyter.deserialize(parts)["parent_header"]["msg_id"])
            except Exception:  # a forged or broken message is no reply
                continue

    async def deliver(self, binding: dict[str, Any]) -> dict[str, Any]:
        descriptor, told = await asyncio.to_thread(carried, binding)
        try:
            self._watched.texts += os.fstat(descriptor).st_size
            # Nothing is awaited between this and the message that needs it, so both arrive in one order.
            socket.send_fds(self.process.gate, [b"."], [descriptor])
        except OSError as error:
            raise ConnectionError("the kernel is gone") from error
        finally:
            os.close(descriptor)
        return told

    def kill(self) -> None:
        kill(self.process)

    def _holds_too_much(self, held: int) -> None:
        most = self._watched.most
        said = f"its processes held {held / 1e9:.2f} GB together, and may hold {most / 1e9:.2f} GB"
        self._death = KernelError(f"the kernel died: out of memory: {said}", cause="memory")
        self.kill()
        self._stop_watching()  # to free the memory takes it a while, and why it ends is known
        self._ended()

    async def obituary(self, *, started: bool) -> KernelError:
        if self._death is not None:
            return self._death
        return await self._background.sweeper.call(lambda: obituary(self.process, started=started))

    async def release(self) -> None:
        self._stop_watching()
        self._background.memory.end(self._watched)
        if self._channel is not None:
            self._channel.close(linger=0)
        self.kill()
        self.process.bridge.close()
        self.process.gate.close()
        await self._background.sweeper.call(lambda: release(self.process))
