"""What a kernel's processes hold of memory all in all, and the end of a kernel that holds too much.

Linux bounds each process by itself (`inside/limits.py`), and their sum only in a control group, which few hosts may
make. So the host looks, four times a second. Whose a process is, its parents tell: one that has lost them gets the
first process of its cage instead, so that none gets away by forking twice or by a session of its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_PAUSE_SECONDS = 0.25
_EXACT_SECONDS = 1.0
_EXACT_LOOKS = 3
# Beside its data a process has stacks and page tables: one that fills its own bound is to get a MemoryError, no more.
_BESIDE_DATA = 64_000_000
_BYTES_OF_A_FILE = 1024
_READ_BYTES = 8192
_IN_MEMORY = ("tmp", "dev/shm")
_QUICK = (b"RssAnon", b"RssShmem", b"VmSwap", b"VmPTE")
_EXACT = (b"Pss_Anon", b"Pss_Shmem", b"SwapPss")


@dataclass(slots=True, eq=False)
class Watched:
    """A kernel that is looked at.

    Attributes:
        root: The process that its others descend from.
        most: Bytes that they may hold together.
        files: Whether its files are in memory, as they are in bubblewrap.
        over: Called once, on the loop, with what they hold when that is more.
        texts: Bytes that the host gave it: its own memory, but mapped by the kernel while it loads them.
    """

    root: int
    most: int
    files: bool
    over: Callable[[int], None]
    texts: int = 0
    members: set[int] = field(default_factory=set)


class Watch:
    """Looks at kernels while there are any, on a thread: what is looked at can make that wait.

    Args:
        do: Has the thread do a job.
    """

    def __init__(self, do: Callable[[Callable[[], None]], None]) -> None:
        self._do = do
        self._kernels: list[Watched] = []
        self._looking = False
        self._owners: dict[int, Watched | None] = {}

    def begin(self, kernel: Watched) -> None:
        """Looks at this one too, where Linux tells of processes. Runs on the loop, as `end` does."""
        if Path(f"/proc/{kernel.root}/status").exists():
            self._kernels = [*self._kernels, kernel]
            if not self._looking:
                self._looking = True
                self._look_after(_PAUSE_SECONDS, asyncio.get_running_loop())

    def end(self, kernel: Watched) -> None:
        """Looks at it no more."""
        self._kernels = [each for each in self._kernels if each is not kernel]

    def _look_after(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(seconds, lambda: self._do(lambda: self._look(loop)))

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        begun = time.monotonic()
        over: list[tuple[Watched, int]] = []
        try:
            over = self._sweep(self._kernels)
        except Exception as error:  # the thread has to live on: it says so, and looks again
            said = {"message": "rlm-graph: a look at the kernels' memory failed", "exception": error}
            loop.call_soon_threadsafe(loop.call_exception_handler, said)
        took = time.monotonic() - begun
        loop.call_soon_threadsafe(self._looked, over, max(_PAUSE_SECONDS, took), loop)

    def _looked(self, over: list[tuple[Watched, int]], pause: float, loop: asyncio.AbstractEventLoop) -> None:
        for kernel, bytes_held in over:
            if kernel in self._kernels:
                self.end(kernel)
                kernel.over(bytes_held)
        self._looking = bool(self._kernels)
        if self._looking:
            self._look_after(pause, loop)

    # On the thread

    def _sweep(self, kernels: list[Watched]) -> list[tuple[Watched, int]]:
        self._sort(kernels)
        found = ((kernel, held(kernel)) for kernel in kernels)
        return [(kernel, much) for kernel, much in found if much > kernel.most + _BESIDE_DATA]

    def _sort(self, kernels: list[Watched]) -> None:
        """Says of each process on this machine whose it is; of those that were there before it is known."""
        for kernel in kernels:
            if self._owners.get(kernel.root) is not kernel:
                self._owners = {each.root: each for each in kernels}  # its first processes were taken for nobody's
        with os.scandir("/proc") as entries:
            listed = {int(entry.name) for entry in entries if entry.name.isdigit()}
        for pid in self._owners.keys() - listed:
            del self._owners[pid]
        for kernel in kernels:
            kernel.members = {kernel.root}
        for pid in listed - self._owners.keys():
            self._owner(pid)
        for pid, owner in self._owners.items():
            if owner is not None:
                owner.members.add(pid)

    def _owner(self, pid: int) -> Watched | None:
        line = []
        while pid not in self._owners:
            line.append(pid)
            pid = _parent(pid)
            if pid < 0:  # ended meanwhile; its children have another parent now, which the next look finds
                return None
            if pid == 0:
                break
        owner = self._owners.get(pid)
        self._owners.update(dict.fromkeys(line, owner))
        return owner


def held(kernel: Watched) -> int:
    """Bytes that a kernel's processes and files hold in memory."""
    files = _in_files(kernel.members - {kernel.root}) if kernel.files else 0
    quick = {pid: _numbers(pid, "status", _QUICK) or [0, 0, 0, 0] for pid in kernel.members}
    found = _sum(kernel, quick.values(), files)
    until = time.monotonic() + _EXACT_SECONDS
    for _ in range(_EXACT_LOOKS):  # what a process that ends while we look has shared is counted once more
        if found > kernel.most + _BESIDE_DATA:
            found = min(found, _sum(kernel, (_exact(pid, quick[pid], until) for pid in kernel.members), files))
    return found


def _exact(pid: int, quick: list[int], until: float) -> list[int]:
    """As `quick`, but of what processes share each has its part alone. Slow; in haste, or where forbidden, `quick`."""
    exact = _numbers(pid, "smaps_rollup", _EXACT) if time.monotonic() < until else None
    return quick if exact is None else [*exact, quick[3]]


def _sum(kernel: Watched, processes: Iterable[list[int]], files: int) -> int:
    anonymous = shared = 0
    for own, common, swapped, tables in processes:
        anonymous += own + swapped + tables
        shared += common
    return anonymous + max(shared - kernel.texts, files)  # files that are mapped are among what is shared


def _parent(pid: int) -> int:
    """The parent of a process; -1 where it has ended."""
    try:
        return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return -1


def _numbers(pid: int, file: str, names: Iterable[bytes]) -> list[int] | None:
    """What a file of /proc says of a process, in bytes: nothing of one that has ended; None where that is forbidden."""
    found = dict.fromkeys(names, 0)
    try:
        for line in _read(f"/proc/{pid}/{file}").splitlines():
            name, _, rest = line.partition(b":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    except PermissionError:
        return None
    except OSError:
        pass
    return list(found.values())


def _in_files(members: Iterable[int]) -> int:
    """Bytes in the files of a cage, which any process in it shows."""
    ours = Path("/tmp").stat().st_dev
    for pid in members:
        with suppress(OSError):
            found = [os.statvfs(f"/proc/{pid}/root/{folder}") for folder in _IN_MEMORY]
            if Path(f"/proc/{pid}/root/tmp").stat().st_dev != ours:
                return sum(
                    (each.f_blocks - each.f_bfree) * each.f_frsize + (each.f_files - each.f_ffree) * _BYTES_OF_A_FILE
                    for each in found
                )
    return 0


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)
