"""LangGraph's server opens `langgraph.json` and serves its graphs. None of this needs a key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dev_server import DevServer
from rlm_graph.state import Output

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "langgraph.json"
TEXT = "The word is kiwi.\n" + "nothing here\n" * 6_000 + "The colour is green.\n"
SECRET = "tulip-4711"
NO_SERVER = "needs the extra `studio` (langgraph-cli[inmem])"
pytestmark = pytest.mark.timeout(300)  # the first test waits for the server to start
PHASES = {"load", "plan", "probe", "filter", "chunk", "dispatch", "verify", "compose"}


def graphs() -> dict[str, dict[str, str]]:
    loaded: dict[str, dict[str, str]] = json.loads(CONFIG.read_text())["graphs"]
    return loaded


def imported(spec: str) -> Any:
    """The variable behind `./graphs/file.py:name`."""
    path, _, name = spec.partition(":")
    return getattr(import_module(".".join(Path(path).with_suffix("").parts)), name)


def test_every_graph_has_a_description() -> None:
    assert all(graph["description"] for graph in graphs().values())


def test_every_graph_carries_the_name_that_the_server_gives_it() -> None:
    assert all(imported(graph["path"]).name == name for name, graph in graphs().items())


@pytest.mark.parametrize("name", graphs())
def test_every_field_of_a_form_says_what_it_is_for(name: str) -> None:
    form = imported(graphs()[name]["path"]).get_input_jsonschema()
    assert "question" in form["properties"]
    assert all(field.get("title") and field.get("description") for field in form["properties"].values())


@pytest.mark.parametrize("name", ["rlm", "approval"])
def test_a_form_is_a_question_and_a_text_or_a_sample(name: str) -> None:
    from graphs.samples import SAMPLES

    form = imported(graphs()[name]["path"]).get_input_jsonschema()
    assert [field for field in form["properties"] if field != "messages"] == ["question", "context"]
    assert "messages" not in form["properties"] or name == "rlm", "Studio's chat, and A2A"
    assert form["properties"]["context"]["examples"] == list(SAMPLES)
    assert all(sample in form["properties"]["context"]["description"] for sample in SAMPLES)


@pytest.mark.parametrize("name", ["report", "agent"])
def test_a_form_offers_every_sample_that_ships(name: str) -> None:
    from graphs.samples import SAMPLES

    form = imported(graphs()[name]["path"]).get_input_jsonschema()
    assert form["properties"]["sample"]["enum"] == list(SAMPLES)


def test_the_command_line_of_langgraph_takes_the_configuration() -> None:
    config = pytest.importorskip("langgraph_cli.config", reason=NO_SERVER)
    valid = config.validate_config_file(CONFIG)
    assert list(valid["graphs"]) == list(graphs())
    assert not config.get_unknown_keys(json.loads(CONFIG.read_text()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    """`langgraph dev` on a copy of the configuration and its graphs, so that nothing is written into the checkout."""
    pytest.importorskip("langgraph_api", reason=NO_SERVER)
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(CONFIG, folder)
    shutil.copytree(CONFIG.parent / "graphs", folder / "graphs")
    (folder / "secret.txt").write_text(f"The password is {SECRET}.\n")
    server = DevServer(folder, tmp_path_factory.mktemp("home"), network=False)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(server: DevServer) -> Any:
    return pytest.importorskip("langgraph_sdk", reason=NO_SERVER).get_sync_client(url=server.url)


def assistant(client: Any, graph: str) -> str:
    (found,) = client.assistants.search(graph_id=graph)
    assert found["description"] == graphs()[graph]["description"]
    id: str = found["assistant_id"]
    return id


def new_thread(client: Any) -> str:
    id: str = client.threads.create()["thread_id"]
    return id


def ask(client: Any, graph: str, thread: str | None = None, **given: Any) -> dict[str, Any]:
    out: dict[str, Any] = client.runs.wait(thread, graph, input=given, raise_error=False)
    return out


@pytest.mark.slow
def test_the_server_could_reach_no_network_and_has_no_key(server: DevServer) -> None:
    """So nothing that the tests here ask of it needs one."""
    program = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    done = subprocess.run([sys.executable, "-c", program], env=server.environment, capture_output=True, text=True)
    assert "there is no network in this test: ('192.0.2.1', 80)" in done.stderr
    assert not [name for name in server.environment if name.endswith("_API_KEY")]


@pytest.mark.slow
@pytest.mark.parametrize("graph", graphs())
def test_the_server_lists_each_graph_with_its_description(client: Any, graph: str) -> None:
    assert assistant(client, graph)


@pytest.mark.slow
def test_the_server_shows_a_form_and_the_public_output_alone(client: Any) -> None:
    schemas = client.assistants.get_schemas(assistant(client, "rlm"))
    assert set(schemas["input_schema"]["properties"]) == {"question", "context", "messages"}
    assert set(schemas["output_schema"]["properties"]) == set(Output.__annotations__)
    assert "the name of a sample" in schemas["input_schema"]["properties"]["context"]["description"]


@pytest.mark.slow
def test_what_is_not_on_the_form_is_taken_all_the_same(client: Any) -> None:
    given = {"question": "How does a task group cancel its tasks?", "context": "python-asyncio"}
    assert ask(client, "rlm", **given, budget={"max_calls": 3})["usage"]["calls"] == 3


@pytest.mark.slow
def test_another_agent_talks_to_it(client: Any) -> None:
    """By A2A, which speaks to graphs whose form has messages."""
    parts = [{"kind": "text", "text": "What pays who loses a card?"}, {"kind": "data", "data": {"context": "handbook"}}]
    message = {"role": "user", "messageId": "1", "parts": parts}
    told = rpc(client, f"/a2a/{assistant(client, 'rlm')}", "message/send", message=message)
    assert told["status"]["state"] == "completed" and "3 euros" in json.dumps(told)


@pytest.mark.slow
def test_the_server_draws_every_node_down_to_the_nested_rlm(client: Any) -> None:
    drawn = client.assistants.get_graph(assistant(client, "rlm"), xray=True)
    nodes = {str(node["id"]) for node in drawn["nodes"]}
    below = {f"sub_call:rlm:{phase}" for phase in PHASES}
    assert nodes >= PHASES | {"sub_call:ask", "sub_call:rlm:sub_call:ask"} | below
    drawn = client.assistants.get_graph(assistant(client, "report"), xray=True)
    nodes = {str(node["id"]) for node in drawn["nodes"]}
    assert nodes >= {"choose", "write"} | {f"rlm:{phase}" for phase in PHASES}


@pytest.mark.slow
def test_a_run_is_streamed_with_its_sub_graphs_and_holds_no_text(client: Any) -> None:
    given = {"question": "Which ship struck the outer reef?", "sample": "logbook"}
    parts = list(client.runs.stream(None, "report", input=given, stream_mode="updates", stream_subgraphs=True))
    spaces = ["|".join(name.partition(":")[0] for name in part.event.split("|")[1:]) for part in parts]
    assert {"rlm", "rlm|sub_call"} <= set(spaces)
    seen = {node for part in parts if isinstance(part.data, dict) for node in part.data}
    assert {"choose", "load", "plan", "probe", "filter", "chunk", "dispatch", "ask", "verify", "compose"} <= seen
    last = parts[-1].data["write"]["report"]
    assert "Margarethe struck the outer reef" in last and "Read: logbook" in last
    assert sum(len(json.dumps(part.data)) for part in parts) < 60_000


@pytest.mark.slow
def test_the_agent_keeps_a_long_text_out_of_its_window_and_asks_about_it(client: Any) -> None:
    out = ask(client, "agent", question="Which ship struck the outer reef?", sample="logbook")
    called = [call["name"] for message in out["messages"] for call in message.get("tool_calls") or ()]
    assert called == ["open_sample", "ask_text"]
    assert "Margarethe struck the outer reef" in out["answer"] and "no language model" in out["answer"]
    assert len(json.dumps(out)) < 10_000


@pytest.mark.slow
def test_a_thread_has_a_history_a_follow_up_and_a_fork(client: Any) -> None:
    thread = new_thread(client)
    assert "kiwi" in ask(client, "rlm", thread, question="Which word is it?", context=TEXT)["answer"]
    assert "green" in ask(client, "rlm", thread, question="Which colour is it?")["answer"]
    history = client.threads.get_history(thread, limit=100)
    assert {node for state in history for node in state["next"]} >= {"load", "plan", "probe", "chunk", "compose"}
    # A fork: the moment before the first question was composed, asked for something else.
    before = next(s for s in reversed(history) if s["next"] == ["compose"])
    edited = client.threads.update_state(thread, {"asked": "?"}, checkpoint=before["checkpoint"], as_node="chunk")
    out = client.runs.wait(thread, "rlm", input=None, checkpoint=edited["checkpoint"])
    assert "kiwi" in out["answer"]
    assert client.threads.get_state(thread)["values"]["asked"] == "?"


@pytest.mark.slow
def test_an_interrupt_is_answered(client: Any) -> None:
    thread = new_thread(client)
    ask(client, "approval", thread, question="How does a task group cancel its tasks?", context="python-asyncio")
    state = client.threads.get_state(thread)
    (asked,) = state["tasks"][0]["interrupts"]
    assert asked["value"]["calls"] > 5 and state["next"] == ["dispatch"]
    out = client.runs.wait(thread, "approval", command={"resume": "approve"})
    assert out["stop_reason"] == "answered" and "taskgroups.py" in out["answer"]


def mcp(client: Any, method: str, **params: Any) -> dict[str, Any]:
    """A request of the Model Context Protocol, over streamable HTTP."""
    return rpc(client, "/mcp", method, **params)


def rpc(client: Any, path: str, method: str, **params: Any) -> dict[str, Any]:
    response = client.http.client.post(
        path,
        json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
        headers={"accept": "application/json, text/event-stream"},
    )
    response.raise_for_status()
    result: dict[str, Any] = response.json()["result"]
    return result


@pytest.mark.slow
def test_the_graphs_are_tools_of_the_model_context_protocol(client: Any) -> None:
    tools = {tool["name"]: tool for tool in mcp(client, "tools/list")["tools"]}
    assert {name: tool["description"] for name, tool in tools.items()} == {
        name: graph["description"] for name, graph in graphs().items()
    }
    assert set(tools["report"]["inputSchema"]["properties"]) == {"question", "text", "sample"}
    given = {"question": "What pays who loses a card?", "context": "handbook"}
    called = mcp(client, "tools/call", name="rlm", arguments=given)
    assert not called.get("isError") and "3 euros" in json.dumps(called)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        lambda path: path,
        lambda path: f"file://{path}",
        lambda path: f"{path} ",
        lambda path: [path],
        lambda path: {"type": "rlm_context", "kind": "file", "path": path, "encoding": "utf-8", "id": "0" * 32},
        lambda path: {"type": "rlm_context", "kind": "file", "path": path, "encoding": "utf-8", "id": f"../{path}"},
        lambda path: {"lc": 2, "type": "constructor", "id": ["pathlib", "Path"], "args": [path], "kwargs": {}},
        lambda path: {"lc": 1, "type": "constructor", "id": ["pathlib", "PosixPath"], "kwargs": {"args": [path]}},
        lambda path: [{"lc": 2, "type": "constructor", "id": ["pathlib", "Path"], "method": [None], "args": [path]}],
        lambda path: {"__type__": "pathlib.Path", "value": path},
    ],
    ids=["str", "url", "blank", "list", "reference", "key", "constructor", "lc1", "in-list", "type"],
)
def test_no_form_of_a_path_has_a_file_read(server: DevServer, client: Any, form: Any) -> None:
    path = str(server.folder / "secret.txt")
    thread = new_thread(client)
    out = ask(client, "rlm", thread, question="What is the password?", context=form(path))
    assert SECRET not in json.dumps([out, client.threads.get_history(thread)])


@pytest.mark.slow
def test_a_reference_written_into_the_state_names_no_file_either(server: DevServer, client: Any) -> None:
    thread = new_thread(client)
    ask(client, "rlm", thread, question="What does a card cost?", context="handbook")
    source = client.threads.get_state(thread)["values"]["sources"][-1]
    forged = {**source, "kind": "file", "path": str(server.folder / "secret.txt")}
    for claimed in (forged, {**forged, "id": "f" * 32}):
        client.threads.update_state(thread, {"sources": [claimed]}, as_node="__start__")
        out = ask(client, "rlm", thread, question="What is the password?")
        assert SECRET not in json.dumps([out, client.threads.get_history(thread)])


@pytest.mark.slow
def test_a_form_takes_a_path_for_a_text(server: DevServer, client: Any) -> None:
    out = ask(client, "report", question="What is the password?", text=str(server.folder / "secret.txt"))
    assert SECRET not in json.dumps(out) and "Read: your text" in out["report"]


@pytest.mark.slow
def test_who_gives_a_path_reads_what_is_wrong(client: Any) -> None:
    out = ask(client, "rlm", question="What is the password?", context="/etc/hostname")
    assert "A str is always text" in out["__error__"]["message"]
