"""Landlock: Linux' own way for a process to give up files, ports and the processes of others, without namespaces.

Written by hand because it is three system calls, and no Python binding of them is kept.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

NEEDED: Final = 6
"""The first version (Linux 6.12) that also keeps signals and abstract sockets in."""

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_ALL_FILES: Final = (1 << 16) - 1
_NO_DEVICES: Final = _ALL_FILES & ~(1 << 6 | 1 << 11)
_ALL_PORTS, _ALL_SCOPES, _SIGNALS = 3, 3, 2
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_DEVICES: Final = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
_ZEROS: Final = "/dev/zero"
"""Only to read: what could write it could map shared memory, which no process would have to keep mapped."""


def version() -> int:
    """The version that this Linux has; 0 for none."""
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, _ASK_VERSION)))


def keep_signals() -> None:
    """Leaves this process and all that it will start no process to signal but one another.

    Raises:
        OSError: Linux does not do it.
    """
    rules = _called(_CREATE, struct.pack("QQQ", 0, 0, _SIGNALS), 24, 0)
    try:
        _called(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def restrict(readable: Iterable[str], scratch: str) -> None:
    """Leaves this process and all that it will start some files, no TCP port, and no process of others to signal.

    Args:
        readable: Files and folders that may be read and run; those that are not there are left out.
        scratch: The folder in which everything is allowed.

    Raises:
        OSError: Linux does not do it.
    """
    rules = _called(_CREATE, struct.pack("QQQ", _ALL_FILES, _ALL_PORTS, _ALL_SCOPES), 24, 0)
    try:
        for path in readable:
            _allow(rules, path, _READ)
        for path in _DEVICES:
            _allow(rules, path, _READ_FILE | _WRITE_FILE | _IOCTL)
        _allow(rules, _ZEROS, _READ_FILE | _IOCTL)
        _allow(rules, scratch, _NO_DEVICES)
        _called(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(at).st_mode):
            access &= _OF_FILES
        _called(_ADD, rules, _PATH_BENEATH, struct.pack("=Qi", access, at), 0)
    finally:
        os.close(at)


def _called(number: int, *arguments: int | bytes) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result
