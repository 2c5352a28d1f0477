"""Where kernels run that do not run here: a gateway, and how it is asked for a kernel over HTTP.

By hand with tornado, which jupyter_client brings: Jupyter's own client (`jupyter_server.gateway`) is one for the whole
process and reads its options alone, and `jupyter_kernel_client` needs pyarrow. It comes to three requests and a socket.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from ..errors import KernelError, NoGateway
from .background import background
from .isolation import Isolation, check

_CONNECT_SECONDS = 15.0
_REQUEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where kernels run that do not run here.

    Attributes:
        url: Address of a Jupyter Kernel Gateway, an Enterprise Gateway or a Jupyter server, without its token.
        token: What it wants to be shown, if anything; nothing of ours repeats it.
        kernel: Name of the kernel spec there: a Python of version 3.11 or later with ipykernel.

    Raises:
        ValueError: The URL is none, or holds a secret.

    Example:
        >>> Gateway("https://gateway.example:8888", token="…")
        Gateway(url='https://gateway.example:8888', kernel='python3')
    """

    url: str
    token: str | None = field(default=None, repr=False)
    kernel: str = "python3"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the URL of a gateway begins with http:// or https:// and names a machine")
        if parts.query or parts.username or parts.password:
            raise ValueError("the URL of a gateway holds no token or password: give it as Gateway(url, token=…)")

    @classmethod
    def from_environment(cls) -> Gateway:
        """Reads `JUPYTER_GATEWAY_URL` and `JUPYTER_GATEWAY_AUTH_TOKEN`, as Jupyter itself does.

        Raises:
            NoGateway: No URL is set there, or it is none.
        """
        url = os.environ.get("JUPYTER_GATEWAY_URL")
        if not url:
            raise NoGateway("isolation='gateway' needs JUPYTER_GATEWAY_URL in the environment; or give Gateway(url, …)")
        try:
            return cls(url, os.environ.get("JUPYTER_GATEWAY_AUTH_TOKEN") or None)
        except ValueError as error:
            raise NoGateway(f"JUPYTER_GATEWAY_URL: {error}") from error


def http(gateway: Gateway, path: str, *, method: str = "GET", body: Any = None) -> HTTPRequest:
    """A request that shows the gateway its token."""
    return HTTPRequest(
        gateway.url.rstrip("/") + path,
        method,
        headers={"Authorization": f"token {gateway.token}"} if gateway.token else {},
        body=None if body is None else json.dumps(body),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
    )


def place(isolation: Isolation | Gateway) -> Isolation | Gateway:
    """What `isolation=` means: for "gateway" the one that the environment names, else what it is.

    Raises:
        ValueError: It is no isolation.
        NoGateway: The environment names no gateway.
    """
    if isolation == "gateway":
        return Gateway.from_environment()
    if not isinstance(isolation, Gateway):
        check(isolation)
    return isolation


class _Names(Resolver):
    """Looks names up on a thread that is there already: while the interpreter exits no other can be had."""

    async def resolve(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> list[tuple[int, Any]]:
        names = background().sweeper
        found = await names.call(lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        return [(int(kind), address) for kind, _, _, _, address in found]


async def request(gateway: Gateway, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    """Asks the gateway; gives the status and what JSON object came.

    Raises:
        KernelError: it cannot be reached.
    """
    client = SimpleAsyncHTTPClient(force_instance=True, resolver=_Names())
    try:
        response = await client.fetch(http(gateway, path, method=method, body=body), raise_error=False)
    except (OSError, HTTPClientError) as error:
        raise KernelError(f"no gateway answers at {gateway.url}: {error}", cause="start") from error
    finally:
        client.close()
    try:
        answer = json.loads(response.body)
    except ValueError:
        answer = {}
    return response.code, answer if isinstance(answer, dict) else {}


def refusal(gateway: Gateway, code: int, answer: dict[str, Any]) -> str:
    """Says why no kernel was started, and what to do."""
    said = str(answer.get("reason") or answer.get("message") or "")[:200]
    if gateway.token:
        said = said.replace(gateway.token, "…")
    if code in (401, 403):
        known = "its token was not accepted" if gateway.token else "it wants a token"
        return (
            f"the gateway at {gateway.url} refused to start a kernel ({code} {said or known}): check the token in "
            "Gateway(url, token=…) or $JUPYTER_GATEWAY_AUTH_TOKEN, and how many kernels it allows"
        )
    return f"the gateway at {gateway.url} did not start a kernel {gateway.kernel!r}: {code} {said}".rstrip()
