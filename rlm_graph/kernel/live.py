"""What a session needs of a kernel that was started, wherever it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import KernelError


class LiveKernel(Protocol):
    """A kernel that was started. All of it belongs to the background loop."""

    @property
    def pid(self) -> int:
        """Its process id on this machine; 0 where it runs on another."""
        ...

    @property
    def means(self) -> str:
        """What it is kept in, as far as its own machine says; known once it is connected."""
        ...

    async def connect(self, bridge: asyncio.Protocol, ended: Callable[[], None]) -> None:
        """Connects the bridge, and calls `ended` once when the kernel has ended.

        Raises:
            KernelError: it cannot be reached.
        """
        ...

    def execute(self, content: dict[str, Any]) -> str:
        """Sends an `execute_request`; gives the message's id."""
        ...

    async def replied(self) -> str:
        """Waits for the next reply on the shell channel; gives the id of the message that it replies to."""
        ...

    async def deliver(self, binding: dict[str, Any]) -> dict[str, Any]:
        """Sees to it that the kernel can read the files that a binding names; gives the binding as the kernel finds it.

        Raises:
            OSError: a file cannot be read here.
            ConnectionError: the kernel is gone.
        """
        ...

    def kill(self) -> None:
        """Ends it at once, with what it has started."""
        ...

    async def obituary(self, *, started: bool) -> KernelError:
        """Says why it ended; it must have."""
        ...

    async def release(self) -> None:
        """Gives everything back that it had; after this no call is allowed."""
        ...
