"""What the tests share: a store of their own, scripted models behind a real HTTP server, and a look for leftovers."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from langchain_openai import ChatOpenAI

from alone import alone
from model_server import ModelServer, Script, by_model
from no_network.sitecustomize import guarded
from rlm_graph import create_rlm
from rlm_graph.graph import Graph
from rlm_graph.kernel import pool
from rlm_graph.kernel.session import close_all

# LangChain keeps the connections of the latest 128 servers, and each test has a server of its own.
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20_000) if most > 0 else 20_000, most))

# A machine may be slow, or busy with other tests.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
pool.ORPHAN_SECONDS = 3_600.0  # a kernel that nobody has ended is to be seen, not swept away while a test waits

_START_PROCESSES = {
    "test_attacks",
    "test_session",
    "test_dialect",
    "test_cli",
    "test_studio",
    "test_remote",
    "test_examples",
    "test_readme",
    "test_faults",
    "test_trace",
    "test_live",
    "test_chat_model",
    "test_report",
    "test_python_tool",
    "test_replay",
    "test_handover",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts kernels and other processes; `test_loop` stays unmarked, so that `make check` runs the loop."""
    for item in items:
        module = item.path.stem
        starts = module in _START_PROCESSES or "scene" in getattr(item, "fixturenames", ())
        if starts and module != "test_loop":
            item.add_marker(pytest.mark.processes)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A content store that no other test has written to."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RLM_GRAPH_HOME", str(home))
    return home


@pytest.fixture
def no_key_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what must need neither, here and in processes that are started."""
    for name in os.environ.keys() - (kept := alone(os.environ)).keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", kept["PYTHONPATH"])
    for name, connect in guarded().items():
        monkeypatch.setattr(socket.socket, name, connect)


def chat(server: ModelServer, name: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=server.base_url, api_key="none", max_retries=0, **more)


class Scene:
    """A scripted root and sub-model behind a local HTTP server, and an RLM that calls them through `ChatOpenAI`."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.root = chat(server, "root")
        self.sub = chat(server, "sub")

    def rlm(self, **more: Any) -> Graph:
        return create_rlm(self.root, self.sub, **{"direct_below": 0, **more})

    def root_prompts(self) -> list[str]:
        return ["\n".join(str(m["content"]) for m in r.messages) for r in self.server.seen if r.model == "root"]


@pytest.fixture
def scene() -> Iterator[Callable[..., Scene]]:
    """`scene(root_script, sub_script, **server_options)`; `others` are scripts of further models, by name."""
    servers: list[ModelServer] = []

    def start(
        root: Script, sub: Script = lambda request: "ok", others: Mapping[str, Script] | None = None, **options: Any
    ) -> Scene:
        server = ModelServer(by_model({"root": root, "sub": sub, **(others or {})}), **options)
        servers.append(server.__enter__())
        return Scene(server)

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def kernels(host: int | None = None) -> set[int]:
    """Process ids of the kernels that this process, or another, has started and that still live."""
    mine = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == (host or os.getpid()) and b"launch.py" in command and fields[0] != "Z":
            mine.add(int(stat.parent.name))
    return mine


@pytest.fixture
def runs_left_waiting(no_kernel_left: None) -> Iterator[None]:
    """For tests that leave a run interrupted: its kernel rightly waits for the resume, and is ended here."""
    yield
    close_all()


@pytest.fixture(autouse=True)
def no_kernel_left() -> Iterator[None]:
    """Every test ends without a kernel of its own."""
    before = kernels()
    yield
    began = time.monotonic()
    # A failed or cancelled run does not wait for its kernel's end, which may only come when it has started.
    while left := kernels() - before:
        # What the pool has not let go of is not ending: it would only be swept, some time later.
        kept = {kernel.session.pid for kernel in [*pool._kernels.values()] if kernel.session.alive}
        patience = 5 if left & kept or pool._starting else 60
        assert time.monotonic() - began < patience, f"kernels left behind: {left}"
        time.sleep(0.02)
