"""The kernel's first lines, run by path: limits first, then the package beside this file, then the kernel.

Run by path so that the kernel imports neither LangGraph nor anything else that the host needs.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import sys
import threading
from pathlib import Path

# Linux counts a thread's whole stack as data; with 8 MB each, 500 threads would use up the memory bound.
_STACK = 2 << 20
_PR_SET_PDEATHSIG = 1


def main() -> None:
    bridge, connection_file, memory, host = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    del sys.argv[1:]
    os.set_inheritable(bridge, False)
    _die_with(host)
    threading.stack_size(_STACK)
    if memory and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    _package("inside", Path(__file__).parent)
    from inside.app import run  # type: ignore[import-not-found]

    run(bridge, connection_file, memory)


def _die_with(host: int) -> None:
    """Lets Linux end this process with the host's thread that started it, even if a C function holds the GIL.

    The host starts kernels on a thread that never ends, or this would end them early.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if host and os.getppid() != host:
        os._exit(1)


def _package(name: str, folder: Path) -> None:
    """Makes one folder importable as a package, and nothing beside it."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main()
