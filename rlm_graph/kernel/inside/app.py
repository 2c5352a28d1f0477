"""The ipykernel application, without what a program has no use for, and with a desk to talk to the host."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import zmq
from ipykernel.compiler import XCachingCompiler
from ipykernel.iostream import IOPubThread
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type
from traitlets.config import Config

from .desk import Desk
from .failures import cell_name
from .output import DisplayHook, DisplayPublisher
from .wire import Wire

_KEY_BYTES = 4096


class Compiler(XCachingCompiler):
    """Names code after its cell."""

    index = 0

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        return cell_name(Compiler.index)


class Shell(ZMQInteractiveShell):
    """Keeps what went wrong in a cell instead of publishing it."""

    displayhook_class = Type(DisplayHook)
    display_pub_class = Type(DisplayPublisher)
    failure: BaseException | None = None
    message: str | None = None

    def init_environment(self) -> None:
        os.environ.update(TERM="dumb", NO_COLOR="1", PAGER="cat", GIT_PAGER="cat")

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        self._note(exc_tuple[1] if exc_tuple and exc_tuple[1] is not None else sys.exc_info()[1])

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        self._note(sys.exc_info()[1])

    def show_usage_error(self, exc: BaseException) -> None:
        self._note(exc)

    def _note(self, error: BaseException | None) -> None:
        self.failure = error
        self._last_traceback = [type(error).__name__]

    def payloadpage_page(self, strg: Any, *args: Any, **kwargs: Any) -> None:
        print(strg["text/plain"] if isinstance(strg, dict) else strg)


class Kernel(IPythonKernel):
    """Runs cells and tells the desk when one has ended."""

    shell_class = Type(Shell)
    compiler_class = Type(Compiler)
    desk: Desk | None = None

    async def do_execute(self, code: str, silent: bool, *args: Any, **kwargs: Any) -> Any:
        desk, shell = self.desk, self.shell
        if desk is None or shell is None:
            return {"status": "aborted"}
        Compiler.index = desk.index
        shell.failure = None
        try:
            reply = await super().do_execute(code, silent, *args, **kwargs)  # type: ignore[no-untyped-call]
        except BaseException as error:  # an interrupt that came late, or machinery that the cell has broken
            reply = {"status": "error", "ename": type(error).__name__, "evalue": "", "traceback": []}
            shell.failure = shell.failure or error
        desk.repair()  # before anything else: all that follows needs its builtins
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        failure, shell.failure = shell.failure, None
        message = None
        if failure is None and reply.get("status") == "error":
            message = f"{reply.get('ename')}: {reply.get('evalue')}"[:2000]
        desk.finish(failure, message)
        return {"status": "ok", "execution_count": 0, "user_expressions": {}, "payload": []}

    @contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        """Cancels an async cell at the first interrupt, and breaks into it at the second.

        ipykernel's own only ever cancels, which a cell that blocks the loop does not notice.
        """
        struck = False

        def strike(*_: Any) -> None:
            nonlocal struck
            if struck:
                raise KeyboardInterrupt
            struck = True
            self.io_loop.add_callback_from_signal(future.cancel)

        before = signal.signal(signal.SIGINT, strike)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def raw_input(self, prompt: str = "") -> NoReturn:
        raise RuntimeError("input() does nothing here: nobody sits at the keyboard; the text is in `context`")

    def getpass(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.raw_input()


class App(IPKernelApp):
    """Starts fast: no heartbeat, debugger, plots, extensions or history; and speaks to its host alone.

    The host's end of the shell channel is a listening socket that the host has made; nobody uses the other channels.
    """

    listening = 0
    """Descriptor of that socket."""

    def _try_bind_socket(self, s: Any, port: int) -> int:
        if s is not self.shell_socket:
            s.bind(f"inproc://{id(s)}")
        return port

    def init_iopub(self, context: Any) -> None:
        # Not before `init_control`, which would have the debugger connect to it by a path that is not there.
        self.shell_socket.setsockopt(zmq.USE_FD, self.listening)
        self.shell_socket.bind("ipc://shell")
        self.iopub_socket = context.socket(zmq.XPUB)
        self._bind_socket(self.iopub_socket, 0)  # type: ignore[no-untyped-call]
        # ipykernel's own also opens a port on the loopback, for the output of subprocesses.
        self.iopub_thread = IOPubThread(self.iopub_socket, pipe=False, session=self.session)  # type: ignore[no-untyped-call]
        self.iopub_thread.start()  # type: ignore[no-untyped-call]
        self.iopub_socket = self.iopub_thread.background_socket

    def init_connection_file(self) -> None: ...
    def write_connection_file(self, **kwargs: Any) -> None: ...
    def init_poller(self) -> None: ...
    def init_pdb(self) -> None: ...
    def init_heartbeat(self) -> None: ...
    def init_gui_pylab(self) -> None: ...
    def init_extensions(self) -> None: ...
    def init_code(self) -> None: ...
    def log_connection_info(self) -> None: ...

    def start(self) -> None:
        # A `sys.exit()` in a task leaves the loop, which is no reason for the kernel to end.
        with suppress(SystemExit):
            super().start()  # type: ignore[no-untyped-call]
        while True:
            with suppress(KeyboardInterrupt, SystemExit):
                self.io_loop.start()


def run(bridge: int, gate: int, listening: int, memory: int) -> None:
    """Runs the kernel until its host is gone.

    Args:
        bridge: Descriptor of our end of the bridge.
        gate: Descriptor of the socket by which the key of the shell channel and, later, texts come.
        listening: Descriptor of the shell channel's listening socket.
        memory: The bound on memory in bytes, for messages.
    """
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.cache_size = 0
    config.InteractiveShell.automagic = False
    config.InteractiveShell.colors = "nocolor"
    config.Completer.use_jedi = False
    config.InteractiveShellApp.exec_PYTHONSTARTUP = False
    config.DisplayFormatter.active_types = ["text/plain"]
    doorway = socket.socket(fileno=gate)
    app = App.instance(config=config, kernel_class=Kernel, outstream_class=f"{__package__}.output.BoundedStream")
    app.listening = listening
    app.load_connection_info({"transport": "ipc", "ip": "shell"} | json.loads(doorway.recv(_KEY_BYTES)))
    app.initialize([])  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", message="To exit: use")
    _seed()
    streams: tuple[Any, Any] = (sys.stdout, sys.stderr)
    namespace: Any = app.shell and app.shell.user_ns
    desk = Desk(namespace, streams, doorway, memory)
    wire = Wire(socket.socket(fileno=bridge), desk.handle, desk.repair, streams[1].note)
    desk.attach(wire)
    app.kernel.desk = desk
    wire.start()
    from tornado.ioloop import IOLoop

    IOLoop.current().add_callback(wire.send, "hello", {"pid": os.getpid()})
    app.start()


def _seed() -> None:
    """A replayed cell must draw the same numbers; numpy's are seeded only where something has imported it."""
    import random

    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
