"""The kernel's process: its folder, its command line, its environment, its death."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager

from ..errors import KernelError
from .cage import readable
from .isolation import Isolation, settled
from .provisioner import INSIDE, CageProvisioner, launch

SCRATCH = 500_000_000
"""Bytes that a kernel may keep in files."""

PROCESSES = 1024
"""Processes and threads that a kernel may have."""

# Longer ones do not fit a Unix socket's address together with what comes after.
_LONGEST_FOLDER = 70
_POLL_SECONDS = 0.05
_LOG_BYTES = 256_000
# A folder that another process is just making may not be locked yet.
_SURELY_LOCKED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Process:
    """A kernel that was started.

    Attributes:
        folder: Private to this kernel: the shell channel's socket and, where there is no cage, its scratch.
        manager: Jupyter's view of it: the keys and addresses of its channels.
        bridge: The host's end of the socket pair.
        gate: The host's end of the one by which texts go in, as descriptors.
        lock: A lock on the folder, held as long as this process lives: a folder without one was left by a killed host.
        log: A nameless file of bounded size: what it writes where no cell's output goes.
        means: What it is kept in. In a cage this process is not the kernel, but keeps it and all that it starts.
        oom_kills: How often the system had killed for want of memory when this process started.
    """

    popen: subprocess.Popen[bytes]
    folder: Path
    manager: AsyncKernelManager
    bridge: socket.socket
    gate: socket.socket
    lock: int
    log: int
    means: str
    oom_kills: int


def command(start: dict[str, Any]) -> list[str]:
    """Gives the kernel's command line: by path, so that the kernel never imports `rlm_graph` itself."""
    return [sys.executable, "-P", "-s", str(INSIDE / "launch.py"), json.dumps(start)]


def spawn(context: zmq.asyncio.Context, memory: int, isolation: Isolation) -> Process:
    """Starts a kernel. Blocks; call it on a thread that never ends (see `inside/limits.py`).

    Raises:
        IsolationError: It cannot be kept as is asked for.
        OSError: It cannot be started.
    """
    _clear_leftovers()
    means = settled(isolation)
    folder = _make_folder()
    lock = _locked(folder)
    scratch = folder / "scratch"
    with ExitStack() as ours, ExitStack() as theirs:
        ours.callback(shutil.rmtree, folder, ignore_errors=True)
        ours.callback(os.close, lock)
        scratch.mkdir()
        log = _log()
        ours.callback(os.close, log)
        manager = AsyncKernelManager(transport="ipc", ip=str(folder / "k"), shell_port=1, context=context)
        shell = theirs.enter_context(socket.socket(socket.AF_UNIX))
        shell.bind(f"{manager.ip}-{manager.shell_port}")
        shell.listen()
        bridge, far_bridge = _pair(ours, theirs)
        gate, far_gate = _pair(ours, theirs)
        key = {"key": manager.session.key.decode(), "signature_scheme": manager.session.signature_scheme}
        gate.sendall(json.dumps(key).encode())
        descriptors = {"bridge": far_bridge.fileno(), "gate": far_gate.fileno(), "shell": shell.fileno()}
        manager.provisioner = provisioner = CageProvisioner(
            parent=manager, means=means, folder=folder, scratch=SCRATCH, said=log, descriptors=[*descriptors.values()]
        )
        popen = launch(provisioner, command({**descriptors, "limits": _limits(means, scratch, memory)}))
        ours.pop_all()
        return Process(popen, folder, manager, bridge, gate, lock, log, means, oom_kills())


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    return ours.enter_context(near), theirs.enter_context(far)


def _limits(means: str, scratch: Path, memory: int) -> dict[str, Any]:
    """What the process gives up by itself; see `inside/limits.py`."""
    user = _stranger() if os.geteuid() == 0 and means != "process" else 0
    if user and means == "landlock":
        for each in (scratch.parent, scratch):
            os.chown(each, user, user)
    # Linux counts by user: only in a namespace, or as a user of its own, is that the kernel's processes alone.
    others = 0 if user or means == "bubblewrap" else _tasks_of_user()
    return {
        "memory": memory,
        "host": 0 if means == "bubblewrap" else os.getpid(),
        "processes": PROCESSES + others,
        "file_size": SCRATCH,
        "user": user,
        "readable": readable(INSIDE) if means == "landlock" else [],
        "scratch": str(scratch),
    }


def _tasks_of_user() -> int:
    """Counts this user's processes and threads; 0 where Linux does not tell."""
    found = 0
    for tasks in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):
            told = tasks.stat()
            found += told.st_nlink - 2 if told.st_uid == os.geteuid() else 0
    return found


def _stranger() -> int:
    """A user that nobody else is, for a kernel that root starts: not known to the system, and another for each."""
    return 61_000 + secrets.randbelow(4_000)


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rlm-"))
    if len(str(folder)) > _LONGEST_FOLDER:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="rlm-", dir="/tmp"))
    return folder


def _locked(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


@cache
def _clear_leftovers() -> None:
    """Removes, once, the folders that killed hosts of this user left behind."""
    folders = {tempfile.gettempdir(), "/tmp"}  # where a folder's name would be too long, it is in /tmp
    for lock in (lock for folder in folders for lock in Path(folder).glob("rlm-*/lock")):
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime < _SURELY_LOCKED_SECONDS:
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)


def release(process: Process) -> None:
    """Waits for a killed process to be gone, and removes what it had. Blocks."""
    process.popen.wait()
    shutil.rmtree(process.folder, ignore_errors=True)
    os.close(process.log)
    os.close(process.lock)


def kill(process: Process) -> None:
    """Kills the process and what it started. Its number is ours as long as the process has not been reaped."""
    if process.popen.returncode is None:
        with contextlib.suppress(OSError):
            if process.means == "landlock":
                os.kill(process.popen.pid, signal.SIGTERM)  # see `inside/keeper.py`
            else:
                os.killpg(process.popen.pid, signal.SIGKILL)


def watch_exit(process: Process, ended: Callable[[], None]) -> Callable[[], None]:
    """Calls `ended` once on the running loop when the process has ended; gives a function that stops watching."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(process.popen.pid)
    except (AttributeError, OSError):
        return _poll_exit(process, ended, loop)

    def stop() -> None:
        nonlocal descriptor
        if descriptor >= 0:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            descriptor = -1

    def readable() -> None:
        stop()
        ended()

    loop.add_reader(descriptor, readable)
    return stop


def _poll_exit(process: Process, ended: Callable[[], None], loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    timer: asyncio.TimerHandle

    def poll() -> None:
        nonlocal timer
        # WNOWAIT: the number of a process that was not reaped cannot belong to another.
        if os.waitid(os.P_PID, process.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            timer = loop.call_later(_POLL_SECONDS, poll)
        else:
            ended()

    timer = loop.call_later(_POLL_SECONDS, poll)
    return lambda: timer.cancel()


def obituary(process: Process, *, started: bool) -> KernelError:
    """Says why a process ended; it must have. Reads files."""
    code = process.popen.wait()
    if code > 128 and process.means != "process":
        code = 128 - code  # how what keeps the kernel says that a signal ended it
    log = read_log(process)
    if "out of memory" in log.lower() or "MemoryError" in log or (code == -9 and oom_kills() > process.oom_kills):
        return KernelError("the kernel died: out of memory", cause="memory")
    if not started:
        last = log.strip().splitlines()[-1:] or [f"exit code {code}"]
        return KernelError(f"the kernel did not start: {last[0][:500]}", cause="start")
    if code < 0:
        return KernelError(f"the kernel was killed by {_signal_name(-code)}", cause="signal")
    return KernelError(f"the kernel ended itself with exit code {code}", cause="exit")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _log() -> int:
    """A file for what the process writes where no cell's output goes: a cell that finds it cannot make it grow."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    log = os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(log, _LOG_BYTES)
    fcntl.fcntl(log, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return log


def read_log(process: Process) -> str:
    """Gives what the process wrote where no cell's output goes."""
    return os.pread(process.log, _LOG_BYTES, 0).rstrip(b"\0").decode("utf-8", "replace")


def oom_kills() -> int:
    """Counts what Linux has killed in this control group for want of memory; 0 where it does not say."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":", 2)[2]
        for folder in (Path("/sys/fs/cgroup" + group), Path("/sys/fs/cgroup")):
            events = folder / "memory.events"
            if events.exists():
                counts = dict(line.split() for line in events.read_text().splitlines())
                return int(counts.get("oom_kill", 0))
    except (OSError, ValueError, IndexError):
        pass
    return 0
