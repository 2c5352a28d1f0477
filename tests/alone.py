"""An environment with neither a key nor a network, so that what secretly needs one fails."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

GUARD = Path(__file__).parent / "no_network"


def without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.endswith("_API_KEY")}


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The same for a Python that is to have no key, and to reach nothing but this machine, through a proxy neither."""
    path = os.pathsep.join(filter(None, [str(GUARD), environment.get("PYTHONPATH")]))
    kept = {n: value for n, value in without_keys(environment).items() if not n.lower().endswith("_proxy")}
    return {**kept, "PYTHONPATH": path}
