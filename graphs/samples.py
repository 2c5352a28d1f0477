"""The texts that ship with these graphs, chosen by name. Nothing else of this machine's files can be asked about."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

_HERE = Path(__file__).parent / "samples"

SAMPLES = {
    "handbook": _HERE / "handbook.md",
    "logbook": _HERE / "logbook.txt",
    "python-json": Path(json.__file__).parent,
    "python-asyncio": Path(asyncio.__file__).parent,
}
"""Name → where it is. `handbook` fits one prompt; the others are larger than `direct_below`, or are folders of code."""
