"""Kernels on a real Jupyter Kernel Gateway: the same runs, from another process' hands."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from model_server import Request, scripted
from ports import own_port
from rlm_graph import create_rlm
from rlm_graph.errors import ContextError, KernelError
from rlm_graph.kernel import gateway_kernel
from rlm_graph.kernel.gateway import Gateway
from rlm_graph.kernel.isolation import UNCAGED_AFAR, bubblewrap_fault, landlock_fault
from rlm_graph.kernel.session import KernelOptions, start_session
from rlm_graph.offline import OfflineReader, OfflineRoot
from test_session import FACTS, exists, run, until

pytestmark = pytest.mark.processes

TOKEN = "a-token-that-nobody-repeats"
THREAD: Any = {"configurable": {"thread_id": "1"}}


class Server(NamedTuple):
    gateway: Gateway
    process: psutil.Process

    def kernels(self) -> set[str]:
        """Ids of the kernels that the gateway knows."""
        return {kernel["id"] for kernel in ask(self.gateway, "/api/kernels")}

    def delete_all(self) -> None:
        for id in self.kernels():
            ask(self.gateway, f"/api/kernels/{id}", "DELETE")

    def processes(self, name: str) -> list[psutil.Process]:
        """What lives below the gateway and has this in its command line."""
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(name in part for part in process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("gateway")
    port = own_port()
    options = {"ip": "127.0.0.1", "port": port, "auth_token": TOKEN, "port_retries": 0}
    command = [sys.executable, "-m", "kernel_gateway", *(f"--KernelGatewayApp.{k}={v}" for k, v in options.items())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--JupyterWebsocketPersonality.list_kernels=True"], cwd=folder, stdout=log, stderr=log
        )
    gateway = Gateway(f"http://127.0.0.1:{port}", TOKEN)
    try:
        deadline = time.monotonic() + 100
        while not answers(gateway):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-5_000:]
            time.sleep(0.05)
        yield Server(gateway, psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def ask(gateway: Gateway, path: str, method: str = "GET") -> Any:
    headers = {"Authorization": f"token {gateway.token}"}
    request = urllib.request.Request(gateway.url + path, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read() or b"null")


def answers(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return bool(ask(gateway, "/api"))
    return False


@pytest.fixture(scope="module")
def gateway(server: Server) -> Gateway:
    return server.gateway


@pytest.fixture(autouse=True)
def no_kernel_left_there(server: Server) -> Iterator[None]:
    before = server.kernels()
    yield
    deadline = time.monotonic() + 60
    while server.kernels() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.kernels() <= before


@contextlib.asynccontextmanager
async def a_session(gateway: Gateway, **options: Any) -> Any:
    session = await start_session(KernelOptions(isolation=gateway, **options), name="far")
    try:
        yield session
    finally:
        await session.close()


# Runs


CUT = "```repl chunk\nparts = context.splitlines()\nprint(llm_query_batched(parts))\n```"
DELIVER = "```repl compose\nanswer['content'] = f'{len(context)} {len(parts)}'; answer['ready'] = True\n```"


def echo(request: Request) -> str:
    return f"<{request.prompt}>"


def test_a_run_answers_from_what_jupyters_own_variables_name(scene: Any, gateway: Gateway, monkeypatch: Any) -> None:
    monkeypatch.setenv("JUPYTER_GATEWAY_URL", gateway.url)
    monkeypatch.setenv("JUPYTER_GATEWAY_AUTH_TOKEN", TOKEN)
    s = scene(scripted(CUT, DELIVER), echo)
    out = s.rlm(isolation="gateway").invoke({"question": "q", "context": "one\ntwo"})
    assert (out["answer"], out["warnings"]) == ("7 2", [])
    assert "['<one>', '<two>']" in s.root_prompts()[-1]


async def test_a_kernel_deleted_there_behind_our_back_is_rebuilt_and_a_follow_up_finds_its_variables(
    scene: Any, server: Server, gateway: Gateway
) -> None:
    first = scripted(
        "```repl probe\nn = len(llm_query('x'))\n```\n```repl compose\nn += 1\nFINAL(f'{n} of {len(context)}')\n```"
    )
    later = scripted("```repl compose\nn += 1\nFINAL(f'{n}')\n```")
    s = scene(lambda r: later(r) if "And" in str(r.messages) else first(r), echo)
    rlm = s.rlm(isolation=gateway, checkpointer=InMemorySaver())
    await rlm.ainvoke({"question": "How many?", "context": "some text"}, THREAD, interrupt_before=["compose"])
    assert len(server.kernels()) == 1
    server.delete_all()
    assert (await rlm.ainvoke(None, THREAD))["answer"] == "4 of 9"
    assert (await rlm.ainvoke({"question": "And now?"}, THREAD))["answer"] == "5"
    assert s.server.asked("sub") == 1


async def test_a_kernel_deleted_while_its_cell_waits_is_rebuilt(scene: Any, server: Server, gateway: Gateway) -> None:
    def sub(request: Request) -> str:
        if request.prompt == "second" and deleted.append(1) is None and len(deleted) == 1:
            server.delete_all()
        return echo(request)

    deleted: list[int] = []
    cell = "```repl compose\na = llm_query('first'); b = llm_query('second')\nFINAL(a + b)\n```"
    s = scene(scripted(cell), sub)
    out = await s.rlm(isolation=gateway).ainvoke({"question": "q", "context": "some text"})
    assert (out["answer"], s.server.asked("sub")) == ("<first><second>", 2)


async def test_a_cancelled_run_leaves_no_kernel_there(scene: Any, server: Server, gateway: Gateway) -> None:
    asked = threading.Event()

    def sub(request: Request) -> str:
        asked.set()
        time.sleep(1)
        return "late"

    s = scene(scripted(CUT, DELIVER), sub)
    running = asyncio.ensure_future(s.rlm(isolation=gateway).ainvoke({"question": "q", "context": "one\ntwo"}))
    assert await asyncio.to_thread(asked.wait, 60)
    assert len(server.kernels()) == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# The bridge, through a gateway


async def test_200_calls_of_one_batch_and_of_16_threads_each_get_their_own_answer(gateway: Gateway) -> None:
    batch = "r = llm_query_batched([f'{i}' for i in range(200)])\nprint(r == [f're: {i}' for i in range(200)])"
    threads = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda i: llm_query(f"{i}"), range(200)))
        print(answers == [f"re: {i}" for i in range(200)])
    """
    async with a_session(gateway) as session:
        assert (await run(session, batch)).stdout == "True\n"
        assert (await run(session, threads)).stdout == "True\n"


async def test_a_text_of_20_mb_arrives_byte_for_byte_and_by_no_cell(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []
    send, execute = gateway_kernel.GatewayKernel._send, gateway_kernel.GatewayKernel.execute

    def sent(self: Any, channel: str, kind: str, content: dict[str, Any]) -> str:
        if channel != "stdin":
            executed.append(json.dumps(content))
        return send(self, channel, kind, content)

    def started(self: Any, content: dict[str, Any]) -> str:
        executed.append(json.dumps(content))
        return execute(self, content)

    monkeypatch.setattr(gateway_kernel.GatewayKernel, "_send", sent)
    monkeypatch.setattr(gateway_kernel.GatewayKernel, "execute", started)
    text = ("A line with 'quotes', \\backslashes, \r\n, tabs\t, ümläuts and 🦉.\n" * 300_000)[:20_000_000]
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    async with a_session(gateway) as session:
        await session.bind("context", {"kind": "text", "path": str(path), "encoding": "utf-8"})
        done = await run(session, "import hashlib\nprint(len(context), hashlib.sha256(context.encode()).hexdigest())")
    assert done.stdout == f"{len(text)} {hashlib.sha256(text.encode()).hexdigest()}\n"
    assert len(executed) == 2 and max(map(len, executed)) < 200_000
    assert not any("A line with" in message for message in executed)


async def test_files_arrive_under_their_names_and_one_that_is_not_there_is_said(
    gateway: Gateway, tmp_path: Path
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one.txt").write_bytes("größe\r\n".encode("latin-1"))
    (tmp_path / "empty").write_bytes(b"")
    manifest = {"root": str(tmp_path), "as": "dict", "files": [["a/b/one.txt", "latin-1"], ["empty", "utf-8"]]}
    (tmp_path / "manifest").write_text(json.dumps(manifest))
    async with a_session(gateway) as session:
        for _ in range(2):  # a second time, as a follow-up with a new context does it
            await session.bind("context", {"kind": "files", "path": str(tmp_path / "manifest")})
        assert (await run(session, "print(context)")).stdout == "{'a/b/one.txt': 'größe\\r\\n', 'empty': ''}\n"
        with pytest.raises(ContextError, match="No such file"):
            await session.bind("context", {"kind": "text", "path": str(tmp_path / "none"), "encoding": "utf-8"})


@pytest.mark.skipif(bool(bubblewrap_fault() and landlock_fault()), reason="no cage works here, so none does there")
async def test_the_cage_goes_along(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    async with a_session(gateway) as session:
        done = await run(session, f"open({str(tmp_path / 'secret')!r}).read()")
    assert done.error is not None and "FileNotFoundError" in done.error


async def test_a_run_says_once_that_the_gateway_has_no_cage(
    scene: Any, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = "    from rlm_graph.kernel import isolation\n"
    without += "    isolation.bubblewrap_fault = isolation.landlock_fault = lambda: 'not there'\n    await relay"
    code = gateway_kernel._BOOTSTRAP
    assert "    await relay" in code
    monkeypatch.setattr(gateway_kernel, "_BOOTSTRAP", code.replace("    await relay", without))
    nested = scripted("```repl compose\nFINAL(rlm_query('q', context='one'))\n```")
    s = scene(nested, scripted("```repl compose\nFINAL(context)\n```"))
    out = await s.rlm(isolation=gateway).ainvoke({"question": "q", "context": "one\ntwo"})
    assert (out["answer"], out["warnings"]) == ("one", [UNCAGED_AFAR])


# Time and death


async def test_an_endless_loop_is_interrupted_and_the_kernel_goes_on(gateway: Gateway) -> None:
    async with a_session(gateway, cell_seconds=0.5) as session:
        done = await run(session, "x = 1\nwhile True: pass")
        assert done.error is not None and done.error.startswith("Timeout")
        assert (await run(session, "print(x)", index=2)).stdout == "1\n"


@pytest.mark.parametrize(
    ("code", "cause", "said"),
    [
        ("import os; os._exit(3)", "exit", "the kernel ended itself with exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "signal", "the kernel was killed by SIGSEGV"),
    ],
    ids=["exit", "crash"],
)
async def test_death_is_told_with_its_cause(gateway: Gateway, code: str, cause: str, said: str) -> None:
    async with a_session(gateway) as session:
        with pytest.raises(KernelError, match=said) as raised:
            await run(session, code)
        assert raised.value.cause == cause
        assert not session.alive


async def test_the_death_of_the_gateways_own_kernel_is_told(server: Server, gateway: Gateway) -> None:
    async with a_session(gateway) as session:
        await session.run(1, "llm_query('q')", facts=FACTS)
        ours = server.processes("launch.py")
        assert ours
        for process in server.processes("ipykernel_launcher"):
            process.kill()
        with pytest.raises(KernelError, match="the gateway's kernel died") as raised:
            await session.wait()
        assert raised.value.cause == "signal"
    # What they were started by is gone, so that they are no longer below the gateway.
    assert await until(lambda: not any(exists(process.pid) for process in ours))


async def test_a_lost_connection_is_told(gateway: Gateway) -> None:
    async with a_session(gateway) as session:
        await session.run(1, "llm_query('q')", facts=FACTS)
        waiting = asyncio.ensure_future(session.wait())
        session._loop.call_soon_threadsafe(session._live._socket.close)
        with pytest.raises(KernelError, match=r"connection to the gateway at http.* was lost"):
            await waiting


HOST = """
import asyncio, time
from rlm_graph.kernel import gateway_kernel
from rlm_graph.kernel.gateway import Gateway
from rlm_graph.kernel.session import KernelOptions, start_session
gateway_kernel._SILENCE_SECONDS, gateway_kernel._BEAT_SECONDS = 15.0, 1.0
async def main():
    session = await start_session(KernelOptions(isolation=Gateway(URL, TOKEN)), name="x")
    facts = {"window": None, "reset_answer": False}
    out = await session.run(1, "llm_query('asked')", facts=facts)
    print(out.calls[0].prompt, flush=True)
    END
asyncio.run(main())
"""


async def test_a_host_that_is_killed_leaves_nothing_that_runs(server: Server, gateway: Gateway) -> None:
    script = HOST.replace("URL", repr(gateway.url)).replace("TOKEN", repr(TOKEN)).replace("END", "time.sleep(600)")
    process = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "asked\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert server.processes("launch.py")
    assert await until(lambda: not server.processes("launch.py"))
    server.delete_all()  # the gateway's own, idle now, which no kernel can delete


async def test_a_host_that_exits_without_closing_leaves_no_kernel_there(gateway: Gateway) -> None:
    script = HOST.replace("URL", repr(gateway.url)).replace("TOKEN", repr(TOKEN)).replace("END", "return")
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "asked\n", "")


# What can be wrong


async def test_a_wrong_token_is_said_and_not_shown(gateway: Gateway) -> None:
    with pytest.raises(KernelError, match=r"refused to start a kernel.*JUPYTER_GATEWAY_AUTH_TOKEN") as raised:
        await start_session(KernelOptions(isolation=Gateway(gateway.url, "another-secret")), name="x")
    assert raised.value.cause == "start"
    assert "another-secret" not in str(raised.value)


async def test_no_server_is_said() -> None:
    url = f"http://127.0.0.1:{own_port()}"
    with pytest.raises(KernelError, match=f"no gateway answers at {url}: .*refused"):
        await start_session(KernelOptions(isolation=Gateway(url, TOKEN)), name="x")


async def test_a_kernel_that_the_gateway_does_not_know_is_said(gateway: Gateway) -> None:
    with pytest.raises(KernelError, match="did not start a kernel 'cobol'"):
        await start_session(KernelOptions(isolation=Gateway(gateway.url, TOKEN, kernel="cobol")), name="x")


def test_a_token_is_shown_nowhere(gateway: Gateway) -> None:
    assert TOKEN not in repr(gateway)
    for url in (f"http://user:{TOKEN}@host", f"http://host/?token={TOKEN}", f"ftp://{TOKEN}"):
        with pytest.raises(ValueError) as raised:
            Gateway(url)
        assert TOKEN not in str(raised.value)


def test_without_a_url_in_the_environment_isolation_gateway_says_what_it_needs(monkeypatch: Any) -> None:
    monkeypatch.delenv("JUPYTER_GATEWAY_URL", raising=False)
    with pytest.raises(ValueError, match="JUPYTER_GATEWAY_URL"):
        create_rlm(OfflineRoot(), OfflineReader(), isolation="gateway")
