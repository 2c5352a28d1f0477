"""The command line, as a user runs it: real processes, a real terminal, and what is left when it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from model_server import Answer, ModelServer, Script, by_model, scripted
from rlm_graph import read_trace
from rlm_graph.cli import DEFAULT_MODEL, Choice, choose, printable
from rlm_graph.errors import ModelError

COMMAND = [sys.executable, "-m", "rlm_graph.cli"]
KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_MODEL")
BIG = "The word is kiwi.\n" + "nothing here\n" * 6_000


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A text above the size that goes straight into one prompt."""
    path = tmp_path / "big.txt"
    path.write_text(BIG)
    return path


@pytest.fixture
def serve() -> Iterator[Callable[..., ModelServer]]:
    servers: list[ModelServer] = []

    def start(root: Script, sub: Script = lambda request: "ok", **options: Any) -> ModelServer:
        servers.append(ModelServer(by_model({"root": root, "sub": sub}), **options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def run(*arguments: object, text: str | bytes = "", **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=text.encode() if isinstance(text, str) else text,
        capture_output=True,
        env={**os.environ, **env},
        timeout=100,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def with_server(server: ModelServer) -> list[str]:
    return ["--base-url", server.base_url, "--model", "openai:root", "--sub-model", "openai:sub"]


def deliver(content: str) -> Script:
    """A root that delivers a Python expression at once."""
    return scripted(f"```repl compose\nanswer['content'] = {content}\nanswer['ready'] = True\n```")


def on_a_terminal(*arguments: object) -> str:
    """What a terminal is sent, by standard output and standard error together."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    sent = b""
    # Linux says EIO when the other side has closed.
    while chunk := _read(ours):
        sent += chunk
    os.close(ours)
    process.wait(60)
    return sent.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:
        return b""


def test_the_answer_alone_is_on_standard_output(big: Path, serve: Any) -> None:
    done = run("ask", "Which word?", big, *with_server(serve(deliver("'kiwi'"))))
    assert (done.returncode, done.stdout) == (0, "kiwi\n")


@pytest.mark.slow
def test_a_real_model_is_asked_at_the_base_url(big: Path, serve: Any) -> None:
    server = serve(deliver("llm_query('Which word? ' + context[:20])"), lambda request: "it is kiwi")
    done = run("ask", "Which word?", big, *with_server(server))
    assert done.stdout == "it is kiwi\n"
    assert [record.model for record in server.seen] == ["root", "sub"]
    assert "model: openai:root, sub-model openai:sub" in done.stderr


@pytest.mark.slow
def test_json_is_one_object(big: Path, serve: Any) -> None:
    done = run("ask", "Which word?", big, "--json", *with_server(serve(deliver("'kiwi'"))))
    shown = json.loads(done.stdout)
    assert (shown["answer"], shown["stop_reason"], shown["usage"]["turns"]) == ("kiwi", "answered", 1)
    assert "note" not in shown


def test_offline_says_that_no_language_model_answered(big: Path) -> None:
    done = run("ask", "Which word is it?", big, "--json")
    assert json.loads(done.stdout)["note"] == "offline keyword search, no language model"
    assert "model: offline keyword search, no language model (no --model" in done.stderr


@pytest.mark.slow
def test_standard_input_is_the_text_without_a_path() -> None:
    done = run("ask", "Which word?", text=BIG)
    assert "kiwi" in done.stdout
    assert "context: standard input, 1 text" in done.stderr


@pytest.mark.slow
def test_standard_input_is_text_even_when_it_looks_like_a_path() -> None:
    assert run("ask", "What is hosts?", text="/etc/hosts").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "error: standard input is empty: name a file or a directory, or send a text to it"),
        (b"caf\xe9 au lait", "error: standard input is not UTF-8 text"),
    ],
)
def test_standard_input_that_cannot_be_used_is_one_line(text: str | bytes, told: str) -> None:
    done = run("ask", "What?", text=text)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_path_and_no_standard_input_is_wrong_usage() -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run([*COMMAND, "ask", "What?"], stdin=theirs, capture_output=True, timeout=60)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert b"name a file or a directory" in done.stderr


@pytest.mark.slow
def test_several_files_are_one_context(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"The word of {name} is kiwi.\n")
    assert "2 texts" in run("ask", "Which word?", tmp_path / "a.txt", tmp_path / "b.txt").stderr


@pytest.mark.slow
def test_what_was_left_out_of_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The word is kiwi.\n")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "secret.txt").write_text("no\n")
    done = run("ask", "Which word?", tmp_path, "--exclude", "secret*")
    assert "1 text," in done.stderr
    assert "left out: 1 excluded by secret*; logo.png: binary" in done.stderr


@pytest.mark.slow
def test_exclude_without_a_directory_is_wrong_usage(big: Path) -> None:
    done = run("ask", "Which word?", big, "--exclude", "*.png")
    assert done.returncode == 2
    assert "--exclude is for a directory" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ask", "What?", "/no/such/file"), "error: /no/such/file: does not exist"),
        (("ask", "What?", __file__, "--model", "gpt"), "error: no provider in the model name 'gpt'"),
        (("ask", " ", __file__, "--model", "offline"), "error: no question"),
        (("ask", "What?", __file__, "--isolation", "gateway"), "error: isolation='gateway' needs JUPYTER_GATEWAY_URL"),
    ],
)
def test_an_error_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_that_the_server_does_not_know_is_one_line(big: Path, serve: Any) -> None:
    server = serve(deliver("1"))
    done = run("ask", "What?", big, "--base-url", server.base_url, "--model", "openai:nobody")
    assert done.returncode == 1
    assert "error: the root model 'nobody' failed" in done.stderr
    assert "The model `nobody` does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        ("--max-calls", "-1"),
        ("--max-turns", "0"),
        ("--max-depth", "deep"),
        ("--nonsense",),
        ("--base-url", "http://127.0.0.1:9/v1", "--model", "qwen:7b"),
    ],
)
def test_wrong_usage_ends_with_2(big: Path, option: tuple[str, ...]) -> None:
    assert run("ask", "What?", big, *option).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("trace", ["text.md", "notes.txt", "folder/run.jsonl"])
def test_trace_never_writes_over_a_text_or_a_foreign_file(tmp_path: Path, trace: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("text.md", "notes.txt"):
        (tmp_path / name).write_text("The word is kiwi.")
    (tmp_path / "folder" / "run.jsonl").write_text('{"event":"trace","version":1}\n')
    before = (tmp_path / trace).read_text()
    done = run("ask", "Which word?", tmp_path / "text.md", tmp_path / trace, "--trace", tmp_path / trace)
    assert (done.returncode, done.stdout) == (2, "") and "it is part of the text" in done.stderr
    done = run("ask", "Which word?", tmp_path / "folder", "--trace", tmp_path / trace)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (tmp_path / trace).read_text() == before


@pytest.mark.slow
def test_every_run_writes_its_trajectory_into_the_folder_of_the_environment(big: Path, tmp_path: Path) -> None:
    done = run("ask", "Which word?", big, RLM_GRAPH_TRACE=str(tmp_path / "new" / "traces"))
    (file,) = (tmp_path / "new" / "traces").iterdir()
    assert read_trace(file).header["texts"]
    assert f"trajectory: {file}" in done.stderr


@pytest.mark.slow
def test_a_run_that_a_limit_ended_gives_its_best_answer_and_ends_with_3(big: Path, serve: Any) -> None:
    root = scripted("```repl probe\nanswer['content'] = 'perhaps kiwi'\n```")
    done = run("ask", "Which word?", big, "--max-turns", "1", *with_server(serve(root)))
    assert (done.returncode, done.stdout) == (3, "perhaps kiwi\n")
    assert "warning: max_turns: 1 of 1 turns used" in done.stderr
    assert "stop reason: max_turns: this is the best answer so far" in done.stderr


@pytest.mark.slow
def test_max_calls_reaches_the_run(big: Path, serve: Any) -> None:
    asks = "```repl chunk\nfor n in range(3):\n    llm_query(str(n))\n```"
    root = scripted(asks, "```repl compose\nFINAL('as far as it went')\n```")
    done = run("ask", "Which word?", big, "--max-calls", "2", *with_server(serve(root)))
    assert (done.returncode, done.stdout) == (3, "as far as it went\n")
    assert "2 calls, 1 refused" in done.stderr
    assert "stop reason: max_calls" in done.stderr


@pytest.mark.slow
def test_budgets_reach_the_run(big: Path, serve: Any) -> None:
    server = serve(deliver("1"))
    limits = ("--max-tokens", "70000", "--max-seconds", "500")
    assert run("ask", "Which word?", big, *limits, *with_server(server)).returncode == 0
    assert "70,000 tokens for calls, " in str(server.seen[0].messages)
    done = run("ask", "Which word?", big, "--max-cost", "0.5", *with_server(server))
    assert (done.returncode, server.asked()) == (1, 1)
    assert "error: max_cost needs the price of every model" in done.stderr


@pytest.mark.slow
def test_max_depth_reaches_the_run(big: Path, serve: Any) -> None:
    server = serve(deliver("1"))
    run("ask", "Which word?", big, "--max-depth", "0", *with_server(server))
    assert "No model can be called in this run (depth 0)" in str(server.seen[0].messages)


@pytest.mark.slow
def test_the_kernel_notice_is_told_once(big: Path) -> None:
    told = run("ask", "Which word?", big).stderr
    assert told.count("kernel: caged by bubblewrap") == 1
    assert "Run it only on inputs and with models that you trust." not in told


@pytest.mark.slow
def test_an_uncaged_kernel_is_told_of_once(big: Path) -> None:
    told = run("ask", "Which word?", big, "--isolation", "process").stderr
    assert told.count("kernel: not caged") == 1
    assert told.count("Run it only on inputs and with models that you trust.") == 1


@pytest.mark.slow
def test_without_a_terminal_there_is_no_progress_line(big: Path) -> None:
    done = run("ask", "Which word?", big)
    assert "\r" not in done.stderr and "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) <= 8


HOSTILE = "red \x1b[31malert\x1b[0m \x1b]0;title\x07 \x9b2J end\ttab\n"


@pytest.mark.slow
def test_control_codes_of_an_answer_do_not_reach_a_terminal(big: Path, serve: Any) -> None:
    sent = on_a_terminal("ask", "Which word?", big, *with_server(serve(deliver(ascii(HOSTILE)))))
    assert "red [31malert[0m ]0;title 2J end\ttab" in sent
    assert "\x1b[31m" not in sent and "\x07" not in sent and "\x9b" not in sent


@pytest.mark.slow
def test_control_codes_of_a_server_s_error_do_not_reach_a_terminal(big: Path, serve: Any) -> None:
    refuse = scripted(Answer(status=400, text="bad \x1b]0;title\x07 request"))
    sent = on_a_terminal("ask", "Which word?", big, *with_server(serve(refuse)))
    assert "error: the root model 'root' failed" in sent
    assert "\x1b]0" not in sent and "\x07" not in sent


@pytest.mark.slow
def test_a_pipe_gets_the_answer_byte_for_byte(big: Path, serve: Any) -> None:
    done = run("ask", "Which word?", big, *with_server(serve(deliver(ascii(HOSTILE)))))
    assert done.stdout == HOSTILE


@pytest.mark.slow
def test_a_lone_surrogate_in_an_answer_is_escaped(big: Path, serve: Any) -> None:
    done = run("ask", "Which word?", big, "--json", *with_server(serve(deliver(r"'half \ud83d'"))))
    assert json.loads(done.stdout)["answer"] == "half \ud83d"


def test_printable_keeps_letters_newlines_and_tabs() -> None:
    assert printable("é\t漢 \u202b\n\r\0\x7f") == "é\t漢 \u202b\n"


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    root, sub, said = choose(Choice(model="offline"))
    assert (type(root).__name__, type(sub).__name__) == ("OfflineRoot", "OfflineReader")
    assert said == "offline keyword search, no language model"


def test_a_key_in_the_environment_picks_the_default_model_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    root, sub, said = choose(Choice())
    assert (root.model_name, sub.model_name) == (DEFAULT_MODEL, DEFAULT_MODEL)  # type: ignore[union-attr]
    assert said == f"openai:{DEFAULT_MODEL} (the default; OPENAI_MODEL or --model names another)"


def test_openai_model_names_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_MODEL", "qwen2.5:0.5b")
    root, _, said = choose(Choice())
    assert root.model_name == "qwen2.5:0.5b"  # type: ignore[union-attr]
    assert said == "openai:qwen2.5:0.5b"


@pytest.mark.slow
def test_the_offline_root_over_a_real_sub_model_is_a_mode(big: Path, serve: Any) -> None:
    server = serve(deliver("1"), lambda request: "The word is kiwi, says the model.")
    models = ("--base-url", server.base_url, "--model", "offline", "--sub-model", "openai:sub")
    done = run("ask", "Which word?", big, *models)
    assert "kiwi, says the model." in done.stdout
    assert {record.model for record in server.seen} == {"sub"}
    assert "model: offline keyword search, no language model, sub-model openai:sub" in done.stderr


def test_a_key_is_needed_where_no_base_url_is_given() -> None:
    with pytest.raises(ModelError, match="openai:gpt-5-mini"):
        choose(Choice(model="openai:gpt-5-mini"))


@pytest.mark.slow
def test_the_kernel_sees_no_key(big: Path, serve: Any) -> None:
    root = deliver("str(sorted(__import__('os').environ))")
    done = run("ask", "Which word?", big, *with_server(serve(root)), OPENAI_API_KEY="sk-secret")
    assert "PATH" in done.stdout and "OPENAI" not in done.stdout


def _descendants(pid: int) -> set[int]:
    """Process ids of all that a process has started, as far as they are still its own."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)
    return found


def _asked_sub(server: ModelServer) -> bool:
    return any(record.model == "sub" for record in server.seen)


WAITS = scripted("```repl chunk\nfound = llm_query_batched([str(n) for n in range(9)])\n```")
COMPUTES = scripted("```repl chunk\nllm_query('begun')\nwhile True:\n    pass\n```")


@pytest.mark.slow
@pytest.mark.parametrize(("root", "latency"), [(WAITS, 30.0), (COMPUTES, 0.0)], ids=["waiting", "computing"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_run_that_was_stopped(
    big: Path, serve: Any, root: Script, latency: float, end: signal.Signals
) -> None:
    server = serve(root, lambda request: Answer("ok", latency=latency))
    process = subprocess.Popen(
        [*COMMAND, "ask", "Which word?", str(big), *with_server(server)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    _wait_for(lambda: _asked_sub(server))
    started = _descendants(process.pid)
    assert started, "there was no kernel to look for"
    process.send_signal(end)
    out, told = process.communicate(timeout=60)
    assert out == ""
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert told.endswith("stopped\n") and "Traceback" not in told
    _wait_for(lambda: not any(map(_alive, started)))


def heed_ctrl_c() -> None:
    """A shell has what it runs in the background ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_without_typer_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom rlm_graph.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "rlm-graph: the command line needs 'typer': pip install 'rlm-graph[cli]'\n"


@pytest.mark.slow
def test_the_version_is_the_package_s() -> None:
    try:
        installed = version("rlm-graph")
    except PackageNotFoundError:
        pytest.skip("rlm-graph is not installed here, so it has no version")
    assert run("--version").stdout == installed + "\n"
