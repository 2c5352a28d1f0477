"""A Python with this folder on its `PYTHONPATH` reaches this machine's own addresses, and no other."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable
from typing import Any

MESSAGE = "there is no network in this test"
_WAYS = ("connect", "connect_ex")


def guarded() -> dict[str, Callable[[socket.socket, Any], Any]]:
    """The methods of a socket that connect it, each with a look at the address before."""
    return {name: _guarded(getattr(socket.socket, name)) for name in _WAYS}


def _guarded(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
    def connect_here(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(str(address[0])):
            raise OSError(f"{MESSAGE}: {address}")
        return connect(self, address)

    return connect_here


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "sitecustomize":
    for name, connect in guarded().items():
        setattr(socket.socket, name, connect)
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # libuv connects by itself: let servers do with asyncio
