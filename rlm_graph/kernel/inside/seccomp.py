"""The system calls that a caged kernel cannot make, as a small program for Linux' filter.

Written by hand because no Python binding of libseccomp is kept, and so that nothing has to be installed. It takes away
what no computation needs and attacks on Linux begin with; files, processes and memory are bounded elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from typing import Final

_ARCHITECTURES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The audit number of each, and its column in the tables below."""

_DENIED: Final = {
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "kcmp": (312, 272), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # what is shared by all, or outlives the kernel
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
    # memory that belongs to no process, so that no bound counts it
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # the large and young parts of Linux
    "bpf": (321, 280), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42), "lookup_dcookie": (212, 18), "syslog": (103, 116), "vhangup": (153, 58),
    "personality": (135, 92),
}  # fmt: skip
_DENIED_ON_X86: Final = (172, 173, 154)  # iopl, ioperm, modify_ldt
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (435, 435), (41, 198), (53, 199), (16, 29)
_MMAP: Final = (9, 222)
_FIRST_UNKNOWN: Final = 457
"""From here on nobody has looked yet what the calls do."""
_X32: Final = 0x40000000
_NEW_NAMESPACES: Final = 0x7E020000
_ANOTHER_PARENT: Final = 0x8000  # CLONE_PARENT: a child of whoever started the caller
_SHARED, _ANONYMOUS, _KIND = 1, 0x20, 0xF
_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_CONNECTED: Final = (1, 5)  # SOCK_STREAM, SOCK_SEQPACKET
_TERMINAL: Final = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX type on a terminal

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH = 0, 4
_PR_SET_SECCOMP, _FILTER = 22, 2

Step = tuple[int, int, int, int]


def _argument(n: int) -> int:
    """Where the lower half of an argument stands."""
    return 16 + 8 * n


def _end(result: int) -> Step:
    return (_RETURN, 0, 0, result)


def _unless(test: int, value: int, steps: list[Step]) -> list[Step]:
    """Steps that are taken only where the test holds."""
    return [(test, 0, len(steps), value), *steps]


def _only(call: int, argument: int, mask: int, allowed: Iterable[int], error: int) -> list[Step]:
    """Allows a call only where an argument has one of some values."""
    steps = [(_LOAD, 0, 0, _argument(argument)), (_AND, 0, 0, mask)]
    for value in allowed:
        steps += _unless(_EQUAL, value, [_end(_ALLOW)])
    return _unless(_EQUAL, call, [*steps, _end(_FAIL | error)])


def program(*, network: bool, machine: str = "") -> bytes | None:
    """The filter, as Linux takes it; None for a processor whose numbers are not known here.

    Args:
        network: Whether sockets of the families UNIX, INET and INET6 may be made: where a namespace of its own sees to
            it that they lead nowhere. Otherwise none but connected pairs.
        machine: The processor; the default is this one.
    """
    known = _ARCHITECTURES.get(machine or platform.machine())
    if known is None:
        return None
    return b"".join(struct.pack("HBBI", *step) for step in _steps(*known, network))


def _steps(audit: int, at: int, network: bool) -> Iterator[Step]:
    yield (_LOAD, 0, 0, _ARCH)
    yield from [(_EQUAL, 1, 0, audit), _end(_KILL)]
    yield (_LOAD, 0, 0, _NUMBER)
    yield from _unless(_AT_LEAST, _FIRST_UNKNOWN, [_end(_FAIL | errno.ENOSYS)])
    # The C library falls back to `clone`, whose flags can be seen from here.
    yield from _unless(_EQUAL, _CLONE3[at], [_end(_FAIL | errno.ENOSYS)])
    denied = [numbers[at] for numbers in _DENIED.values()] + (list(_DENIED_ON_X86) if at == 0 else [])
    for number in denied:
        yield from _unless(_EQUAL, number, [_end(_FAIL | errno.EPERM)])
    bits = _unless(_ANY_BIT, _NEW_NAMESPACES | _ANOTHER_PARENT, [_end(_FAIL | errno.EPERM)])
    yield from _unless(_EQUAL, _CLONE[at], [(_LOAD, 0, 0, _argument(0)), *bits, _end(_ALLOW)])
    # Files can be shared, and they are bounded: what no process maps any more would still be held, and nobody sees it.
    shared = _unless(_EQUAL, _SHARED | _ANONYMOUS, [_end(_FAIL | errno.EPERM)])
    flags = [(_LOAD, 0, 0, _argument(3)), (_AND, 0, 0, _KIND | _ANONYMOUS), *shared, _end(_ALLOW)]
    yield from _unless(_EQUAL, _MMAP[at], flags)
    typed: list[Step] = []
    for request in _TERMINAL:
        typed += _unless(_EQUAL, request, [_end(_FAIL | errno.EPERM)])
    yield from _unless(_EQUAL, _IOCTL[at], [(_LOAD, 0, 0, _argument(1)), *typed, _end(_ALLOW)])
    if network:
        yield from _only(_SOCKET[at], 0, 0xFFFFFFFF, _FAMILIES, errno.EAFNOSUPPORT)
    else:
        # A pair of datagram sockets could still send to any path, a connected one cannot.
        yield from _only(_SOCKETPAIR[at], 1, 0xF, _CONNECTED, errno.EPERM)
        yield from _unless(_EQUAL, _SOCKET[at], [_end(_FAIL | errno.EPERM)])
    yield _end(_ALLOW)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def install(steps: bytes) -> None:
    """Puts the filter on this process and all that it will start. It needs `no_new_privs`.

    Raises:
        OSError: Linux does not take it.
    """
    taken = _Program(len(steps) // 8, steps)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(taken), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
