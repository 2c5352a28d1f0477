"""LangGraph's server opens `langgraph.json` and runs the graph. None of this needs a key."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "langgraph.json"
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
    out = rlm.invoke({"question": "Which word is it?", "context": "The word is kiwi.\n" + "nothing here\n" * 6_000})
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
    """`langgraph dev` over a copy of the configuration, so that what it writes does not land in the checkout."""
    pytest.importorskip("langgraph_api", reason=NO_SERVER)
    config = json.loads(CONFIG.read_text())
    for graph in config["graphs"].values():
        graph["path"] = str(ROOT / graph["path"])
    config["dependencies"] = []
    (tmp_path / "langgraph.json").write_text(json.dumps({**config, "dependencies": ["."]}))
    arguments = ["dev", "--no-browser", "--no-reload", "--port", "0", "--config", str(tmp_path / "langgraph.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "langgraph_cli", *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"},
    )
    try:
        yield _address(process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"Uvicorn running on (http://[\d.:]+)", line):
            return found[1]
    raise AssertionError("the server did not start:\n" + "".join(lines))
