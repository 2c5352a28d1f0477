"""The first process of a kernel that Landlock cages: what the first process of its namespace is for bubblewrap's.

Without a namespace a process can leave its parents and their group, and would outlive the kernel. But Landlock keeps
signals within a domain: so this process makes one, has the kernel in it, and ends all that is in it, at once, when the
kernel or the host has ended. The kernel is in a narrower domain of its own, and cannot signal this process.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from . import landlock
from .control import control

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_AWAITED = {signal.SIGTERM, signal.SIGCHLD}


def keep(host: int) -> int:
    """Returns in a child of this process, which stays to keep it.

    Args:
        host: Process id of the host; this process ends, with all that it keeps, when the host does or on SIGTERM.

    Returns:
        This process' id.

    Raises:
        OSError: Linux does not do one of these.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where the host ignores it, Linux would take the statuses
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    control(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != host:
        os._exit(1)
    control(_PR_SET_CHILD_SUBREAPER, 1)
    control(_PR_SET_NO_NEW_PRIVS, 1)
    landlock.keep_signals()
    with suppress(PermissionError):  # or to end all that can be signalled would end what is not ours
        os.kill(host, 0)
        raise OSError("Landlock does not keep signals in")
    kernel = os.fork()
    if kernel == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        return os.getppid()
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    os._exit(_kept(kernel))


def _kept(kernel: int) -> int:
    """Waits for the kernel's end, or to be told to end; then ends the rest. Gives the exit code, as a shell does."""
    status = None
    while status is None and signal.sigwait(_AWAITED) != signal.SIGTERM:
        status = _reaped(kernel, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    while status is None:
        status = _reaped(kernel, 0)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _reaped(kernel: int, options: int) -> int | None:
    """Takes notice of children that have ended; gives the kernel's status when it is among them."""
    pid, status = os.waitpid(-1, options)
    while pid not in (0, kernel):
        pid, status = os.waitpid(-1, options)
    return status if pid else None
