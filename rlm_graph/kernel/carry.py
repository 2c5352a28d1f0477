"""Texts on their way into a kernel: copied into one nameless file whose descriptor goes to the kernel.

So a kernel needs no path of the host's, can be started before its context is known, and sees these texts and nothing
beside them. The copy is sealed: with a descriptor of the file itself a kernel of the same user could write to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def carried(binding: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Copies what a binding names. Blocks.

    Args:
        binding: What `context.binding` returned.

    Returns:
        A descriptor of the copy, and the binding that the kernel understands: `{"kind", "encoding"}` and, for `files`,
        `"as"` and `"files": [[name, encoding, size], …]`, whose texts follow one another.

    Raises:
        OSError: A file cannot be read.
    """
    kind, path = binding["kind"], Path(binding["path"])
    descriptor = _nameless()
    try:
        if kind == "files":
            manifest = json.loads(path.read_bytes())
            root = Path(manifest["root"])
            files = [[name, encoding, _append(root / name, descriptor)] for name, encoding in manifest["files"]]
            told = {"kind": kind, "as": manifest["as"], "files": files}
        else:
            _append(path, descriptor)
            told = {"kind": kind, "encoding": binding.get("encoding", "utf-8")}
        _seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, told


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("context", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def sealed(content: bytes) -> int:
    """A nameless file with this content, read from its beginning."""
    descriptor = _nameless()
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _append(path: Path, descriptor: int) -> int:
    """Copies a file; gives its size."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would wait for its writer
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise OSError(f"{path} is not a regular file")
        size = 0
        while block := os.read(source, _BLOCK):
            size += len(block)
            _write(descriptor, block)
        return size
    finally:
        os.close(source)


def _write(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def _seal(descriptor: int) -> None:
    if hasattr(fcntl, "F_ADD_SEALS"):
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
