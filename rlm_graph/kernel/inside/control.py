"""The system call by which a process says what it is to be allowed from now on."""

from __future__ import annotations

import ctypes
import os


def control(option: int, value: int) -> None:
    """Calls `prctl`.

    Raises:
        OSError: Linux does not do it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")
