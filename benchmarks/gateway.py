"""What a gateway costs: the same things with a kernel here, and with one behind a Jupyter Kernel Gateway beside us.

`python benchmarks/gateway.py`. Every figure is the median of some runs, in seconds.
"""

# mypy: disable-error-code="import-not-found,attr-defined,no-untyped-def,no-untyped-call"
from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from rlm_graph.kernel.gateway import Gateway
from rlm_graph.kernel.session import KernelOptions, Session, start_session
from rlm_graph.state import Done, Reply, Waiting

RUNS = 3
FACTS = {"window": None, "reset_answer": False}
ROUND_TRIPS = "for i in range(200): llm_query('x')"
BATCH = "r = llm_query_batched([f'{i}' for i in range(10_000)])"


@contextlib.contextmanager
def a_gateway() -> Iterator[Gateway]:
    """A gateway on a port of the loopback, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    options = {"ip": "127.0.0.1", "port": port, "auth_token": token}
    command = [sys.executable, "-m", "kernel_gateway", *(f"--KernelGatewayApp.{k}={v}" for k, v in options.items())]
    gateway = Gateway(f"http://127.0.0.1:{port}", token)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        asked = urllib.request.Request(f"{gateway.url}/api", headers={"Authorization": f"token {token}"})
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(asked):
                break
            time.sleep(0.1)
        yield gateway
    finally:
        process.terminate()
        process.wait()


async def run(session: Session, code: str) -> Done:
    out = await session.run(1, code, facts=FACTS)
    while isinstance(out, Waiting):
        session.give({call.number: Reply(text=call.prompt) for call in out.calls})
        out = await session.wait()
    return out


async def figures(options: KernelOptions, text: Path) -> dict[str, float]:
    """Each thing once, with a kernel of its own."""
    found, since = {}, time.perf_counter()

    def took() -> float:
        nonlocal since
        before, since = since, time.perf_counter()
        return since - before

    session = await start_session(options, name="bench")
    await run(session, "1")
    found["from nothing to the end of the first cell"] = took()
    await run(session, ROUND_TRIPS)
    found["a call and its answer, one after another"] = took() / 200
    await run(session, BATCH)
    found["10 000 calls in one batch"] = took()
    await session.bind("context", {"kind": "text", "path": str(text), "encoding": "utf-8"})
    found["a text of 20 MB, bound"] = took()
    await session.close()
    found["the end"] = took()
    return found


async def main() -> None:
    with a_gateway() as gateway, tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_text("A line of text, and 'quotes'.\n" * 666_667)
        here = [await figures(KernelOptions(), text) for _ in range(RUNS)]
        there = [await figures(KernelOptions(isolation=gateway), text) for _ in range(RUNS)]
    print(f"{'':44} {'here':>8} {'gateway':>8}")
    for name in here[0]:
        a, b = (median(each[name] for each in all) for all in (here, there))
        print(f"{name:44} {a:8.4f} {b:8.4f}")


if __name__ == "__main__":
    asyncio.run(main())
