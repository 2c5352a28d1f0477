"""Each file of `examples/` runs without a key and a network, and prints what it promises."""

from __future__ import annotations

import asyncio
import re
import runpy
import socket
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from rlm_graph import assert_replays

pytestmark = pytest.mark.usefixtures("no_key_no_network")
EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTED = {
    "codebase": [r"^\d+ files, ", "If debug is True, the event loop will be run in debug mode", r"^\(runners.py\)$"],
    "html_folder": [r"^loaded: .*harbour.html \(The harbour\)", "built in 1907 of granite", r"^\(harbour.html"],
    "dataframe": ["^2,000 records", "the lamp was broken", r"^\(item 1233\)$"],
    "parent_graph": ["^ran: rlm$", "^you asked about the lighthouse.$", "^The lighthouse needs new paint.$"],
    "agent": [
        r"^agent calls ask_text\(",
        r"^read_logbook gives \d\d\d characters to the agent$",
        r"^The log has 1\d\d,\d+ characters.$",
        "the barque Margarethe struck the outer reef",
    ],
    "approval": [
        "^It is about to make 24 calls of offline-reader.$",
        "^Approved: 24 calls were made.$",
        "taskgroups.py",
    ],
    "follow_up": ["^1: The pier was built in 1907.$", "^2: The lighthouse needs new paint.$"],
    "typed_answer": [r"^Wreck\(date='11 February 1893', ship='Margarethe', barometer=30.59\)$"],
    "crash": [
        "^the first process ended by signal 9$",
        r"^the second process made (1?\d|2[0-3]) of the 24 calls: answered$",
    ],
    "novel": [
        r"^20 items, \d\d citations. They are what was planted, each with all that the novel tells of it.$",
        "^Verbatim in the novel: True$",
        r" (1[2-9]|2\d) sub-calls, ",  # 11 would do; the others ask again where a quote did not stand
        r"models read 2\d% ",
        "^They are all pairs that there are.$",
    ],
}
ARGUMENTS = {"novel": ["--tokens", "200000"]}


def test_what_would_need_a_network_fails_here_and_in_processes_of_an_example() -> None:
    with pytest.raises(OSError, match="there is no network in this test"):
        socket.create_connection(("192.0.2.1", 80), 5)
    with pytest.raises(OSError, match="there is no network in this test"):
        asyncio.run(asyncio.open_connection("192.0.2.1", 80))
    program = "import urllib.request; urllib.request.urlopen('http://192.0.2.1', timeout=5)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "there is no network in this test" in done.stderr


def test_every_example_is_run() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises_and_what_it_ran_replays(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *ARGUMENTS.get(name, [])])
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("RLM_GRAPH_TRACE", str(tmp_path / "traces"))
    # The content store of an example that keeps it in a folder of its own is still wanted for the replay.
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: nullcontext(tempfile.mkdtemp(dir=tmp_path)))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capfd.readouterr().out
    assert [line for line in PRINTED[name] if not re.search(line, out, re.M)] == [], out
    recorded = list((tmp_path / "traces").iterdir())
    assert recorded
    for path in recorded:
        assert_replays(path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_missed_in_a_novel_of_two_million_tokens(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["novel.py"])
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / "novel.py"), run_name="__main__")
    out = capfd.readouterr().out
    assert re.search(r"^A novel of 2,\d{3},\d{3} tokens, 400 chapters.$", out, re.M)
    assert re.search(r"^200 items, \d+ citations. They are what was planted", out, re.M), out
    assert re.search(r"^… 2,\d{3} pairs.\nThey are all pairs that there are.$", out, re.M), out


def test_a_reader_that_misses_things_in_the_novel_is_found_out(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["novel.py", "--tokens", "40000"])
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("scripted_novel.reader.IT_WAS_MADE_BY", re.compile("(?!)"))
    runpy.run_path(str(EXAMPLES / "novel.py"), run_name="__main__")
    assert re.search(r"Of 8 planted: missed \['[^]]+'\], invented \[\]", capfd.readouterr().out)


def test_the_example_with_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SystemExit, match="pip install pandas"):
        runpy.run_path(str(EXAMPLES / "dataframe.py"), run_name="__main__")
