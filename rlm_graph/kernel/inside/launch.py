"""The kernel's first lines, run by path: limits first, then the package beside this file, then the kernel.

Run by path so that the kernel imports neither LangGraph nor anything else that the host needs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path


def main() -> None:
    start = json.loads(sys.argv[1])
    del sys.argv[1:]
    for descriptor in ("bridge", "gate", "shell"):
        os.set_inheritable(start[descriptor], False)
    _package("inside", Path(__file__).parent)
    from inside.limits import limit  # type: ignore[import-not-found]

    limit(**start["limits"])
    from inside.app import run  # type: ignore[import-not-found]

    run(start["bridge"], start["gate"], start["shell"], start["limits"]["memory"])


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
