"""Ports for servers that are other processes. Not a test."""

from __future__ import annotations

import socket

_held: list[socket.socket] = []


def own_port() -> int:
    """A port of the loopback that Linux gives nobody else as long as this process lives; nobody listens on it yet.

    It is bound here, and never listened on: whoever is told of it can bind it too, as servers set `SO_REUSEADDR`, but
    whoever asks for any free port, or connects from one, gets another.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    port: int = held.getsockname()[1]
    return port
