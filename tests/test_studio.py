"""LangGraph's server opens `langgraph.json` and runs the graph. None of this needs a key."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_graph.state import Input, Output

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "langgraph.json"
TEXT = "The word is kiwi.\n" + "nothing here\n" * 6_000 + "The colour is green.\n"
NO_SERVER = "needs the extra `studio` (langgraph-cli[inmem])"


def graphs() -> dict[str, dict[str, str]]:
    loaded: dict[str, dict[str, str]] = json.loads(CONFIG.read_text())["graphs"]
    return loaded


def imported(spec: str) -> Any:
    """The variable behind `./path.py:name`, imported from its file as the server does."""
    from importlib.util import module_from_spec, spec_from_file_location

    path, _, name = spec.partition(":")
    module_spec = spec_from_file_location("studio_graph", ROOT / path)
    assert module_spec is not None and module_spec.loader is not None
    module = module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, name)


def test_every_graph_has_a_description() -> None:
    assert all(graph["description"] for graph in graphs().values())


def test_the_graph_answers_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rlm = imported(graphs()["rlm"]["path"])
    out = rlm.invoke({"question": "Which word is it?", "context": TEXT})
    assert "kiwi" in out["answer"]


def test_the_graph_carries_the_name_that_the_server_gives_it() -> None:
    assert all(imported(graph["path"]).name == name for name, graph in graphs().items())


def test_the_command_line_of_langgraph_takes_the_configuration() -> None:
    config = pytest.importorskip("langgraph_cli.config", reason=NO_SERVER)
    valid = config.validate_config_file(CONFIG)
    assert list(valid["graphs"]) == ["rlm"]
    assert not config.get_unknown_keys(json.loads(CONFIG.read_text()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """`langgraph dev` on a copy of the configuration and its graphs, so that nothing is written into the checkout."""
    pytest.importorskip("langgraph_api", reason=NO_SERVER)
    shutil.copy(CONFIG, tmp_path)
    shutil.copytree(CONFIG.parent / "graphs", tmp_path / "graphs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(port)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "LANGGRAPH_CLI_NO_ANALYTICS": "1"},
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(f"{address}/ok", process, tmp_path / "log")
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def call(url: str, body: object = None) -> Any:
    """A request to the server's API: a POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@pytest.mark.slow
def test_the_server_lists_the_graph_with_its_description(server: str) -> None:
    (assistant,) = call(f"{server}/assistants/search", {})
    assert assistant["graph_id"] == "rlm"
    assert assistant["description"] == graphs()["rlm"]["description"]


@pytest.mark.slow
def test_the_server_shows_the_public_input_alone(server: str) -> None:
    (assistant,) = call(f"{server}/assistants/search", {})
    schemas = call(f"{server}/assistants/{assistant['assistant_id']}/schemas")
    assert set(schemas["input_schema"]["properties"]) == set(Input.__annotations__)
    assert set(schemas["output_schema"]["properties"]) == set(Output.__annotations__)


@pytest.mark.slow
def test_the_server_runs_the_graph_and_a_follow_up_on_its_thread(server: str) -> None:
    thread = f"{server}/threads/{call(f'{server}/threads', {})['thread_id']}"
    first = {"question": "Which word is it?", "context": TEXT}
    out = call(f"{thread}/runs/wait", {"assistant_id": "rlm", "input": first})
    assert "kiwi" in out["answer"]
    out = call(f"{thread}/runs/wait", {"assistant_id": "rlm", "input": {"question": "Which colour is it?"}})
    assert "green" in out["answer"]
    state = call(f"{thread}/state")
    assert state["values"]["stop_reason"] == "answered"
    assert state["next"] == []
