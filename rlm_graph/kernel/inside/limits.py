"""What the kernel's process gives up before anything else runs in it, and cannot get back."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading

# Linux counts a thread's whole stack as data; with 8 MB each, 500 threads would use up the memory bound.
_STACK = 2 << 20
# Mapped files and arenas take room without taking memory: the bound on addresses is there for shared mappings alone.
_ADDRESSES = 32_000_000_000
_OPEN_FILES = 1024
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def limit(*, memory: int, host: int, processes: int, file_size: int, user: int) -> None:
    """Limits this process and all that it will start.

    Args:
        memory: Bytes of data; 0: no bound.
        host: Process id of the host, where it can be seen from here, else 0.
        processes: Processes and threads; 0: no bound.
        file_size: Bytes of the largest file; 0: no bound.
        user: The user to become; 0: stay who we are.
    """
    threading.stack_size(_STACK)
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if sys.platform == "linux":
        _die_with(host)  # not before: a change of the user undoes it
        _no_new_privileges()
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


def _no_new_privileges() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
