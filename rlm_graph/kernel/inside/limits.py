"""What the kernel's process gives up before anything else runs in it, and cannot get back."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .control import control
from .keeper import keep
from .landlock import restrict
from .seccomp import install, program

# Linux counts a thread's whole stack as data; with 8 MB each, 500 threads would use up the memory bound.
_STACK = 2 << 20
# Mapped files and arenas take room without taking memory: the bound on addresses is there for shared mappings alone.
_ADDRESSES = 32_000_000_000
_OPEN_FILES = 1024
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
_CAPABILITIES_3, _CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2


def limit(
    *, memory: int, host: int, processes: int, file_size: int, user: int, readable: Sequence[str], scratch: str
) -> None:
    """Limits this process and all that it will start.

    Args:
        memory: Bytes of data; 0: no bound.
        host: Process id of the host, where it can be seen from here, else 0.
        processes: Processes and threads; 0: no bound.
        file_size: Bytes of the largest file; 0: no bound.
        user: The user to become; 0: stay who we are.
        readable: Where Landlock is what cages us: the files and folders that may be read; else none.
        scratch: And the folder that may be written.

    Raises:
        OSError: Linux does not do one of these.
    """
    threading.stack_size(_STACK)
    if user:
        _become(user, reading=bool(readable))
    if readable:
        host = keep(host)
    if sys.platform == "linux":
        with suppress(OSError):  # in bubblewrap it was done before
            Path("/proc/self/oom_score_adj").write_text("1000")
        _die_with(host)  # not before: a change of the user undoes it
        control(_PR_SET_NO_NEW_PRIVS, 1)
    if readable:
        restrict(readable, scratch)
        steps = program(network=False)
        if steps is None:
            raise OSError("no filter of system calls for this processor")
        install(steps)
    _bound(resource.RLIMIT_CORE, 1)  # 0 still lets Linux pipe the dump to a program of the host's
    _bound(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _bound(resource.RLIMIT_NPROC, processes)
    _bound(resource.RLIMIT_FSIZE, file_size)
    if sys.platform == "linux":
        _bound(resource.RLIMIT_DATA, memory)
        _bound(resource.RLIMIT_AS, memory and memory + _ADDRESSES)


def _bound(what: int, most: int) -> None:
    if most:
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _die_with(host: int) -> None:
    """Lets Linux end this process with the host's thread that started it, even if a C function holds the GIL.

    The host starts kernels on a thread that never ends, or this would end them early.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if host and os.getppid() != host:
        os._exit(1)


def _become(user: int, *, reading: bool) -> None:
    """Stops being root.

    Args:
        user: Who to be.
        reading: Keep the right to read what others own, for Python's packages may be root's alone; what is reached is
            then up to Landlock. What the kernel starts does not inherit it.
    """
    os.setgroups([])
    os.setresgid(user, user, user)
    control(_PR_SET_KEEPCAPS, int(reading))
    os.setresuid(user, user, user)
    if reading:
        held = struct.pack("IIIIII", _CAP_DAC_READ_SEARCH, _CAP_DAC_READ_SEARCH, 0, 0, 0, 0)
        if ctypes.CDLL(None, use_errno=True).capset(struct.pack("Ii", _CAPABILITIES_3, 0), held):
            raise OSError(ctypes.get_errno(), "capset")
    control(_PR_SET_DUMPABLE, 1)  # or our own /proc/self would be closed to us
