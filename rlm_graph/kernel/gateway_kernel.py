"""A kernel on another machine, behind a Jupyter Kernel Gateway, an Enterprise Gateway, or any Jupyter server.

The gateway starts a kernel of its own kind; `relay.py`, sent there as its only cell, starts ours beside it. All that
session and kernel have to say goes through the stdin channel of the gateway's kernel, as texts `<op> <arg>`. Nothing
that comes from there is trusted more than what comes from a kernel here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jupyter_client.session import Session as Messages
from jupyter_client.session import json_packer
from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from ..errors import KernelError
from .gateway import Gateway, http, refusal, request

_PACKAGE = Path(__file__).parent.parent
_SENT = ("errors.py", "kernel/*.py", "kernel/inside/*.py")
_BOOTSTRAP = """
import sys
if sys.version_info < (3, 11):
    raise RuntimeError("rlm-graph needs Python 3.11 or later there, not " + sys.version.split()[0])
import base64, io, tempfile, zipfile
with tempfile.TemporaryDirectory(prefix="rlm-code-") as folder:
    zipfile.ZipFile(io.BytesIO(base64.b64decode("{code}"))).extractall(folder)
    sys.path.insert(0, folder)
    from rlm_graph.kernel.relay import relay
    await relay(get_ipython().kernel)
"""

_START_SECONDS = 60.0
_BEAT_SECONDS = 5.0
_SILENCE_SECONDS = 45.0
_ANSWER_SECONDS = 5.0
_LEAVE_SECONDS = 2.0
# A frame of the bridge's, its quotes and backslashes escaped once more.
_MESSAGE_BYTES = 10_000_000
_PIECE_BYTES = 2_500_000


async def start_on_gateway(gateway: Gateway, memory: int) -> GatewayKernel:
    """Lets the gateway start a kernel.

    Raises:
        KernelError: it does not.
    """
    # With an `env`, even an empty one, the gateway keeps its own environment from the kernel.
    body = {"name": gateway.kernel, "env": {}}
    code, answer = await request(gateway, "POST", "/api/kernels", body)
    if code != 201 or not isinstance(answer.get("id"), str):
        raise KernelError(refusal(gateway, code, answer), cause="start")
    return GatewayKernel(gateway, answer["id"], memory)


class GatewayKernel:
    """See `LiveKernel`."""

    pid = 0

    def __init__(self, gateway: Gateway, id: str, memory: int) -> None:
        self._gateway = gateway
        self._path = f"/api/kernels/{quote(id, safe='')}"
        self._memory = memory
        self.means = ""
        self._messages = Messages()
        self._socket: WebSocketClientConnection | None = None
        self._transport: _Transport | None = None
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._replies: asyncio.Queue[str] = asyncio.Queue()
        self._bootstrap = ""
        self._deliveries = 0
        self._ended: Callable[[], None] = lambda: None
        self._death: KernelError | None = None
        self._over = asyncio.Event()
        self._heard = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self, bridge: asyncio.Protocol, ended: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            asked = http(self._gateway, f"{self._path}/channels?session_id={self._messages.session}")
            asked.url = f"ws{asked.url[4:]}"
            self._socket = await websocket_connect(asked, ping_interval=20, max_message_size=_MESSAGE_BYTES)
        except (OSError, HTTPClientError, WebSocketError) as error:
            raise KernelError(f"no connection to the kernel at {self._gateway.url}: {error}", cause="start") from error
        if self._death is not None:  # released meanwhile
            self._socket.close()
            raise self._death
        self._heard, self._ended = loop.time(), ended
        self._tasks = [loop.create_task(self._read(self._socket)), loop.create_task(self._beat())]
        self._bootstrap = self._send("shell", "execute_request", _execution(_BOOTSTRAP.format(code=packed_code())))
        self._say("start", [self._memory, _SILENCE_SECONDS])
        try:
            self.means = str(await self._answer("started", _START_SECONDS))
        except ConnectionError:
            raise self._death or KernelError("the kernel is gone", cause="start") from None
        self._transport = _Transport(self._say, bridge)
        bridge.connection_made(self._transport)

    def execute(self, content: dict[str, Any]) -> str:
        id = uuid.uuid4().hex
        self._say("execute", [id, content])
        return id

    async def replied(self) -> str:
        return await self._replies.get()

    async def deliver(self, binding: dict[str, Any]) -> dict[str, Any]:
        self._deliveries += 1
        files, told = await asyncio.to_thread(_parcel, binding)
        for name, path in files:
            pieces = _pieces(path)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                self._say("file", [f"{self._deliveries}/{name}", piece])
                if (reason := await self._answer("stored")) is not None:
                    raise OSError(f"the gateway could not keep it: {str(reason)[:300]}")
        self._say("deliver", [str(self._deliveries), told])
        delivered = await self._answer("delivered")
        if not isinstance(delivered, dict):
            raise OSError(str(delivered)[:300])
        return delivered

    def kill(self) -> None:
        self._say("kill")

    async def obituary(self, *, started: bool) -> KernelError:
        if self._death is None:
            self._say("obituary", started)
            with contextlib.suppress(TimeoutError, ConnectionError, TypeError, ValueError):
                message, cause = await self._answer("obituary", _ANSWER_SECONDS)
                known = ("exit", "signal", "memory") if started else ("start", "memory")
                return KernelError(str(message)[:1000], cause=cause if cause in known else known[0])
        return self._death or KernelError("the kernel on the gateway ended, and does not say why", cause="exit")

    async def release(self) -> None:
        self._say("end")
        with contextlib.suppress(TimeoutError):
            if self._socket is not None:
                await asyncio.wait_for(self._over.wait(), _LEAVE_SECONDS)
        for task in self._tasks:
            task.cancel()
        self._die("the session is closed", "closed")
        if self._socket is not None:
            self._socket.close()
        with contextlib.suppress(KernelError):  # a gateway that is gone has no kernel left, or ends it when it is idle
            await self._delete()

    async def _delete(self) -> None:
        # Jupyter's server fails to end a kernel that it is just starting again (a 500).
        for pause in (0.3, 1.0, 3.0, 0.0):
            code, _ = await request(self._gateway, "DELETE", self._path)
            if code < 500:
                return
            await asyncio.sleep(pause)

    # What goes to the relay and comes from there

    def _send(self, channel: str, kind: str, content: dict[str, Any]) -> str:
        message = self._messages.msg(kind, content)
        if self._socket is not None:
            with contextlib.suppress(WebSocketClosedError):  # `_read` sees the same end
                self._socket.write_message(json_packer({**message, "channel": channel}))
        return str(message["msg_id"])

    def _say(self, op: str, arg: Any = None) -> None:
        text = arg.decode("latin-1") if isinstance(arg, bytes) else json.dumps(arg)
        self._send("stdin", "input_reply", {"value": f"{op} {text}"})

    async def _answer(self, op: str, seconds: float = _SILENCE_SECONDS) -> Any:
        """Waits for the relay's next message `op`.

        Raises:
            TimeoutError: none came.
            ConnectionError: none can come any more.
        """
        if self._death is not None:
            raise ConnectionError("the kernel is gone")
        answer = self._answers[op] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(answer, seconds)
        finally:
            del self._answers[op]

    async def _read(self, socket: WebSocketClientConnection) -> None:
        while (raw := await socket.read_message()) is not None:
            with contextlib.suppress(Exception):  # a forged or broken message is none
                self._take(json.loads(raw))
        self._die(f"the connection to the gateway at {self._gateway.url} was lost", "closed")

    def _take(self, message: dict[str, Any]) -> None:
        channel, kind, content = message["channel"], message["header"]["msg_type"], message["content"]
        if channel == "stdin" and kind == "input_request":
            self._heard = asyncio.get_running_loop().time()
            op, _, arg = content["prompt"].partition(" ")
            self._hear(op, arg)
        elif channel == "iopub" and kind == "status" and content["execution_state"] in ("restarting", "dead"):
            self._die("the gateway's kernel died, and ours with it", "signal")
        elif channel == "iopub" and kind == "shutdown_reply":
            self._die("the kernel was ended on the gateway", "signal")
        elif channel == "shell" and message["parent_header"].get("msg_id") == self._bootstrap:
            self._die(_end_of_relay(content), "start" if self._transport is None else "signal")

    def _hear(self, op: str, arg: str) -> None:
        if op == "bridge":
            if self._transport is not None:
                self._transport.feed(arg.encode("latin-1"))
        elif op == "replied":
            self._replies.put_nowait(str(json.loads(arg)))
        elif op == "failed":
            message, cause = json.loads(arg)
            self._die(f"{message} (on the gateway)"[:1000], str(cause))
        elif op == "exited":
            self._ended()
        elif op == "closed" and self._transport is not None:
            self._transport.abort()
        elif op in self._answers and not self._answers[op].done():
            self._answers[op].set_result(json.loads(arg))

    async def _beat(self) -> None:
        """Lets the relay know that we live, and learns whether it does."""
        while True:
            self._say("ping")
            await asyncio.sleep(_BEAT_SECONDS)
            silence = asyncio.get_running_loop().time() - self._heard
            if silence > _SILENCE_SECONDS:
                self._die(f"the kernel at {self._gateway.url} gave no sign of life for {silence:.0f} s", "hang")
            elif silence > _BEAT_SECONDS and await self._missing():
                self._die("the kernel was ended on the gateway", "signal")

    async def _missing(self) -> bool:
        try:
            code, _ = await request(self._gateway, "GET", self._path)
        except KernelError:
            return False
        return code == 404

    def _die(self, message: str, cause: str) -> None:
        """Notes why no more can come, once."""
        if self._death is None:
            self._death = KernelError(message, cause=cause)
            self._over.set()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the kernel is gone"))
            self._ended()


class _Transport(asyncio.Transport):
    """The bridge's bytes, as messages of the relay's."""

    def __init__(self, say: Callable[[str, Any], None], bridge: asyncio.Protocol) -> None:
        super().__init__()
        self._say = say
        self._bridge = bridge
        self._closing = False

    def write(self, data: Any) -> None:
        self._say("bridge", bytes(data))

    def feed(self, data: bytes) -> None:
        if not self._closing:
            self._bridge.data_received(data)

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._bridge.connection_lost, None)


def packed_code() -> str:
    """The part of this package that runs on the gateway, as a zip archive in Base64."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rlm_graph/__init__.py", "")
        for pattern in _SENT:
            for path in sorted(_PACKAGE.glob(pattern)):
                archive.write(path, f"rlm_graph/{path.relative_to(_PACKAGE)}")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _execution(code: str) -> dict[str, Any]:
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}}
    return {**content, "allow_stdin": True, "stop_on_error": False}


def _end_of_relay(reply: dict[str, Any]) -> str:
    """What the reply to the gateway kernel's only cell says."""
    if reply.get("ename") in (None, "CancelledError", "KeyboardInterrupt"):
        return "the kernel was ended on the gateway"
    return f"the kernel was ended on the gateway: {reply['ename']}: {reply.get('evalue')}"[:500]


def _parcel(binding: dict[str, Any]) -> tuple[list[tuple[str, Path]], dict[str, Any]]:
    """The files to send, by the name that they get there, and what to tell of them."""
    told = {key: value for key, value in binding.items() if key != "path"}
    path = Path(binding["path"])
    if binding["kind"] != "files":
        return [("text", path)], told
    manifest = json.loads(path.read_bytes())
    root = Path(manifest.pop("root"))
    return [(f"files/{name}", root / name) for name, _ in manifest["files"]], {**told, "manifest": manifest}


def _pieces(path: Path) -> Iterator[str]:
    """The file in Base64, at least one piece of it."""
    with path.open("rb") as file:
        piece = file.read(_PIECE_BYTES)
        while True:
            yield base64.b64encode(piece).decode("ascii")
            if not (piece := file.read(_PIECE_BYTES)):
                return
