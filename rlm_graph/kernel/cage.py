"""The command line of a caged kernel: what bubblewrap shows it of this machine, which is little. Pure functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HOME = "/tmp"
"""The kernel's home and scratch: the one place where it can write, in memory, bounded, gone with the kernel."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/alternatives")
_ROOT = Path("/")
_OF_A_PREFIX = ("bin", "include", "lib", "lib64", "pyvenv.cfg", "share")
_SHARED_MEMORY = 64_000_000
_FIRST_TO_GO = ("/bin/sh", "-c", 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh")
"""Has Linux take the kernel, and not another's program, where memory runs out."""


def readable(inside: Path) -> list[str]:
    """The files and folders that a kernel has to read."""
    return [*_SYSTEM, *python_folders(), str(inside)]


def python_folders() -> list[str]:
    """What holds this Python and its packages, without what the system has.

    Of each prefix these parts alone: with `python -m venv .` a project's folder is a prefix, and has more in it.
    """
    program = Path(sys.executable).resolve()
    named = {Path(sys.prefix), Path(sys.base_prefix), program.parent.parent}
    prefixes = sorted({path for each in named for path in (each, each.resolve())})
    parts = [prefix / part for prefix in prefixes if prefix != _ROOT for part in _OF_A_PREFIX]
    return [str(path) for path in parts if path.exists() and not path.is_relative_to("/usr")]


def bubblewrap(
    program: str, command: Sequence[str], *, inside: Path, scratch: int, seccomp: int | None, root: bool
) -> list[str]:
    """Wraps a command.

    Args:
        program: The path of bubblewrap.
        command: What runs in the cage.
        inside: The folder of the code that runs in the kernel.
        scratch: Bytes that the kernel may keep in files.
        seccomp: Descriptor of the filter of system calls.
        root: Whether we run as root. Then there is no user namespace, in which root would stay what it is outside; the
            command must become another user instead, and may.
    """
    wrapped = [
        *_FIRST_TO_GO,
        program,
        "--die-with-parent",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
    ]
    wrapped += ["--unshare-cgroup-try", "--hostname", "cage", "--cap-drop", "ALL"]
    wrapped += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else ["--unshare-user"]
    wrapped += _view(inside, scratch, "0777" if root else "0700")
    if seccomp is not None:
        wrapped += ["--seccomp", str(seccomp)]
    return [*wrapped, "--chdir", HOME, "--", *command]


def _view(inside: Path, scratch: int, permissions: str) -> Iterator[str]:
    """The files that there are in the cage."""
    yield from ("--perms", "0755", "--dir", "/etc")
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        else:
            yield from ("--ro-bind-try", str(path), str(path))
    yield from ("--proc", "/proc", "--dev", "/dev")
    # It gives zeros as well, but cannot be mapped, which would be memory that no process has to keep mapped.
    yield from ("--dev-bind", "/dev/full", "/dev/zero")
    yield from ("--size", str(_SHARED_MEMORY), "--perms", permissions, "--tmpfs", "/dev/shm")
    yield from ("--size", str(scratch), "--perms", permissions, "--tmpfs", HOME)
    for folder in [*python_folders(), str(inside)]:
        for parent in reversed(Path(folder).parents[:-1]):
            yield from (
                "--perms",
                "0755",
                "--dir",
                str(parent),
            )  # where root makes them by the way, they are closed to others
        yield from ("--ro-bind", folder, folder)
    # Last, or nothing could be made below them: the root and /dev are memory too, and have no bound.
    for place in ("/dev", "/proc", "/"):
        yield from ("--remount-ro", place)
