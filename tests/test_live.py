"""What `rlm-graph ask` shows while it works, on an emulated terminal; the view behind it, by its events alone."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.cells import cell_len
from rich.console import Console

from model_server import Answer, ModelServer, Request, by_model, scripted
from rlm_graph.live import View, first_line, lines, rendered, said_of

BIG = "The word is kiwi.\n" + "nothing here\n" * 6_000
HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]\u202edlot"
ROOT = scripted(
    "```repl probe\nprint(len(context))\n```",
    "```repl chunk\n# a comment first\n"
    f"note = {HOSTILE!r}; found = llm_query_batched([str(n) for n in range(40)])\n"
    "deep = rlm_query('look deeper into the part', context='part')\n```",
    "```repl compose\nanswer.update(content=found[0] + deep, ready=True)\n```",
)


def sub(request: Request) -> Answer:
    if len(request.messages) > 1:
        return Answer("```repl compose\nanswer.update(content='deep', ready=True)\n```", latency=0.6)
    return Answer("ok", latency=0.2 + int(request.prompt) % 4 / 5)


WIPE = b"\r\x1b[2K"
"""How Rich begins to wipe off what it has drawn, to draw it anew."""


class Terminal:
    """A terminal of some size, and every screen that a command drew on it."""

    def __init__(self, columns: int, rows: int = 24, home: Path | None = None) -> None:
        self.env = {**os.environ, "TERM": "xterm-256color", **({"RLM_GRAPH_HOME": str(home)} if home else {})}
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.seen: list[list[str]] = []

    def run(self, *arguments: object) -> int:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0))
        command = [sys.executable, "-m", "rlm_graph.cli", *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=self.env)
        os.close(theirs)
        unread = b""
        while chunk := _read(ours):
            # What is read ends anywhere, but where one drawing is wiped off for the next, it was whole.
            *drawings, unread = (unread + chunk).split(WIPE)
            for drawing in drawings:
                self._draw(drawing)
                self.stream.feed(WIPE)
        self._draw(unread)
        os.close(ours)
        return process.wait(60)

    def _draw(self, sent: bytes) -> None:
        self.stream.feed(sent)
        self.seen.append([row.rstrip() for row in self.screen.display])

    def rows(self) -> set[str]:
        return {row for screen in self.seen for row in screen if row}

    def last(self) -> list[str]:
        return [row for row in self.seen[-1] if row]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # Linux says EIO when the other side has closed
        return b""


@pytest.fixture(scope="module", params=[80, 200])
def terminal(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    folder = tmp_path_factory.mktemp("live")
    (folder / "big.txt").write_text(BIG)
    shown = Terminal(request.param)
    with ModelServer(by_model({"root": ROOT, "sub": sub})) as server:
        models = ["--base-url", server.base_url, "--model", "openai:root", "--sub-model", "openai:sub"]
        assert shown.run("ask", "Which word?", folder / "big.txt", *models) == 0
    return shown


@pytest.mark.slow
def test_the_tree_shows_cells_by_their_first_line_with_their_phase(terminal: Terminal) -> None:
    rows = terminal.rows()
    assert any(row.startswith("✓ probe   print(len(context))") for row in rows)
    assert any(row[2:].startswith("chunk   40 calls: note = ") for row in rows)
    assert not any("a comment first" in row for row in rows)


@pytest.mark.slow
def test_a_fan_out_has_a_bar_and_says_how_far_it_is(terminal: Terminal) -> None:
    (found, *_) = [row for row in terminal.rows() if "of 40 calls done" in row]
    assert "━" in found and "token" in found
    assert all(" s" in row for row in terminal.rows() if "calls done" in row)


@pytest.mark.slow
def test_a_nested_run_stands_below_its_parent(terminal: Terminal) -> None:
    screens = [screen for screen in terminal.seen if any("└ look deeper into the part" in row for row in screen)]
    below = []
    for screen in screens:
        at = next(n for n, row in enumerate(screen) if "└ look deeper" in row)
        assert any("chunk" in row for row in screen[:at])
        below.append(screen[at + 1])
    assert below and all(row.startswith("    ") and row[4:5].strip() for row in below)


@pytest.mark.slow
def test_nothing_of_the_model_s_steers_the_terminal(terminal: Terminal) -> None:
    assert terminal.screen.title == ""
    assert not any("\u202e" in row for row in terminal.rows())


@pytest.mark.slow
def test_what_is_left_is_the_answer_and_the_notes(terminal: Terminal) -> None:
    last = terminal.last()
    assert "okdeep" in last
    assert not any("✓" in row or "━" in row for row in last)
    assert any("stop reason: answered" in row for row in last)


@pytest.mark.slow
def test_verbose_prints_each_cell_and_its_output(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text(BIG)
    with ModelServer(by_model({"root": ROOT, "sub": sub})) as server:
        models = ["--base-url", server.base_url, "--model", "openai:root", "--sub-model", "openai:sub"]
        command = [sys.executable, "-m", "rlm_graph.cli", "ask", "Which?", tmp_path / "big.txt", *models, "--verbose"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "okdeep\n"
    assert f"── probe 0 ──\nprint(len(context))\n──\n{len(BIG)}\n" in done.stderr
    assert "── compose 0 at depth 1 ──" in done.stderr


LONG = "The word stands in the first line; " * 6 + "x" * 250
SCREENS = scripted(
    f"```repl probe\nprint('a word ' * 40)\nprint('漢字' * 60)\nprint({HOSTILE!r})\n```",
    "```repl chunk\nfound = llm_query_batched([str(n) for n in range(8)])\n```",
    f"```repl compose\nanswer.update(content={LONG + HOSTILE!r}, ready=True)\n```",
)


def one_by_one(request: Request) -> Answer:
    return Answer("ok", latency=0.2 + int(request.prompt) / 5)


@pytest.fixture(scope="module", params=[80, 200])
def screens(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, list[str]]:
    """A terminal's width, a folder with what was recorded in one of that width, and what `ask --verbose` left there."""
    folder = tmp_path_factory.mktemp("screens")
    (folder / "big.txt").write_text(BIG)
    shown, other = (Terminal(request.param, 200, folder / "home") for _ in range(2))
    ask = ["ask", "Which word is it that stands in the first line, and is there any other?", folder / "big.txt"]
    with ModelServer(by_model({"root": SCREENS, "sub": one_by_one})) as server:
        models = ["--base-url", server.base_url, "--model", "openai:root", "--sub-model", "openai:sub"]
        trace = ["--trace", folder / "run.jsonl", "--texts"]
        assert shown.run(*ask, *models, *trace, "--verbose", "--max-tokens", "900000") == 0
        assert other.run(*ask[:1], "Which?", *ask[2:], *models, "--trace", folder / "other.jsonl") == 0
    assert any("of 900k tokens" in row for row in shown.rows())
    return request.param, folder, shown.last()


def drawn(folder: Path, columns: int, *arguments: object) -> tuple[int, list[str]]:
    """A command's exit code, and what it left on a terminal."""
    terminal = Terminal(columns, 200, folder / "home")
    return terminal.run(*arguments), terminal.last()


@pytest.mark.slow
def test_verbose_prints_all_of_a_cell_at_any_width(screens: tuple[int, Path, list[str]]) -> None:
    columns, folder, rows = screens
    assert max(map(cell_len, rows)) <= columns
    told = "".join(row if cell_len(row) > columns - 2 else f"{row}\n" for row in rows).replace(" ", "")
    for said in (
        "── probe 0 ──",
        "a word " * 40,
        "漢字" * 60,
        "── compose 2 ──",
        f"trajectory: {folder}/run.jsonl",
        LONG,
    ):
        assert said.replace(" ", "") in told, said
    assert not any("✓" in row or "━" in row for row in rows)


@pytest.mark.slow
def test_the_columns_of_a_comparison_are_aligned_and_whole(screens: tuple[int, Path, list[str]]) -> None:
    columns, folder, _ = screens
    code, rows = drawn(folder, columns, "compare", folder / "run.jsonl", folder / "other.jsonl")
    assert code == 0 and max(map(cell_len, rows)) <= columns
    begins = next(row for row in rows if row.startswith("  models"))
    left = begins.index("root")
    right = begins.index("root", left + 1)
    body = [row.ljust(columns) for row in rows if "─" not in row]
    assert all(row[left - 2 : left].isspace() and row[right - 2 : right].isspace() for row in body)
    names = [row[2:left].strip() for row in body if row[2:left].strip()]
    assert names[:4] == ["question", "context", "models", "answer"] and names[-1] == "coverage"
    assert all(not row[2:left].endswith("…") for row in body)
    halves = ["".join(row[at:end] for row in body).replace(" ", "") for at, end in ((left, right), (right, columns))]
    hostile = "[U+001B][31mred[U+001B]]0;title[U+0007][bold][U+202E]dlot"
    for half, file in zip(halves, ("run.jsonl", "other.jsonl"), strict=True):
        assert half.startswith(str(folder / file))
        assert (LONG + hostile).replace(" ", "") in half and "scanned0.0%,read0.0%" in half


@pytest.mark.slow
def test_replay_and_report_say_all_on_a_terminal_of_any_width(screens: tuple[int, Path, list[str]]) -> None:
    columns, folder, _ = screens
    assert drawn(folder, columns, "replay", folder / "run.jsonl") == (0, ["the same: 3 cells of 1 run"])
    code, rows = drawn(folder, columns, "report", folder / "run.jsonl")
    assert (code, "".join(rows)) == (0, str(folder / "run.html"))
    changed = folder / "changed.jsonl"
    changed.write_text((folder / "run.jsonl").read_text().replace("stands in the first line;", "is gone;"))
    code, rows = drawn(folder, columns, "replay", changed)
    assert code == 4 and "".join(rows).startswith("differs: ") and max(map(len, rows)) <= columns
    code, rows = drawn(folder, columns, "replay", folder / "none.jsonl")
    assert (code, "".join(rows)) == (1, f"error: {folder}/none.jsonl: No such file or directory")


def event(kind: str, run: str = "r", depth: int = 0, namespace: str = "", **more: Any) -> dict[str, Any]:
    return {"event": kind, "run": run, "depth": depth, "namespace": namespace, **more}


def view_of(*events: dict[str, Any]) -> View:
    view = View()
    for each in [event("run", question="Which?"), *events]:
        view.take(each)
    return view


def cell(index: int, **more: Any) -> dict[str, Any]:
    return event("cell", index=index, phase="probe", code={"text": f"cell_{index}()"}, **more)


def ended(**more: Any) -> dict[str, Any]:
    return event("output", **{"error": None, "asked": 0, **more})


def test_before_a_cell_the_root_thinks() -> None:
    ((row, _),) = lines(view_of(), 24)
    assert row.endswith("the root thinks, turn 1")


def test_old_cells_are_folded_and_counted() -> None:
    view = view_of(*[e for n in range(20) for e in (cell(n), ended(index=n))], event("answer"))
    rows = [row for row, _ in lines(view, 24)]
    assert rows[0] == "… 14 earlier cells" and rows[-1] == "✓ probe   cell_19()"


def test_a_failed_cell_is_marked() -> None:
    view = view_of(cell(0), ended(index=0, error={"head": "Traceback"}), event("answer"))
    assert lines(view, 24) == [("✗ probe   cell_0()", "red")]


def test_two_hundred_nested_runs_fit_a_small_terminal() -> None:
    nested = [
        event("run", run=f"n{n}", depth=1, namespace=f"sub_call:{n}|rlm:{n}", question=f"part {n}") for n in range(200)
    ]
    view = view_of(cell(0), *nested, event("answer", run="n0", depth=1))
    rows = [row for row, _ in lines(view, 24)]
    assert len(rows) < 20
    assert "  └ part 1" in rows and rows[-1] == "  └ 197 other nested runs, 1 ended"


def test_the_calls_are_told_with_what_failed_what_was_asked_again_and_the_cost() -> None:
    told = {"asked": 1_200, "done": 700, "failed": 3, "of": 2_000, "input_tokens": 9_000, "output_tokens": 1_000}
    view = view_of(event("verdict", uncertain=4), progress(cost=1.234, **told))
    assert said_of(view) == "700 of 1,200 calls done, 3 failed, 4 asked again, 10k tokens, $1.23, limit 2,000"


def progress(**told: Any) -> dict[str, Any]:
    calls = {"asked": 40, "done": 20, "failed": 0, "of": 1_000, "of_tokens": None, "of_cost": None}
    return event("progress", **{**calls, "input_tokens": 900, "output_tokens": 100, "cost": None, **told})


def test_cost_and_tokens_are_told_with_the_limit_that_was_set() -> None:
    def said(**told: Any) -> str:
        return said_of(view_of(progress(**told))).removeprefix("20 of 40 calls done, ")

    assert said() == "1,000 tokens, limit 1,000"
    assert said(cost=0.12, of_cost=1.0) == "1,000 tokens, $0.12 of $1.00"
    assert said(of_tokens=70_000, input_tokens=12_345) == "12.4k of 70k tokens"
    assert said(cost=0.12, of_cost=1.0, of_tokens=2_500_000) == "1,000 of 2.5M tokens, $0.12 of $1.00"


@pytest.mark.parametrize("columns", [80, 200])
def test_all_that_is_told_of_the_calls_is_on_the_screen(columns: int) -> None:
    told = {"asked": 12_000, "done": 7_000, "failed": 31, "cost": 10.5, "of_cost": 20.0, "of_tokens": 9_000_000}
    view = view_of(event("verdict", uncertain=401), progress(input_tokens=1_200_000, **told))
    console = Console(width=columns, height=24, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(rendered(view, console))
    rows = console.file.getvalue().splitlines()
    assert max(map(len, rows)) <= columns and "━" in rows[1]
    foot = " ".join(row.strip("━╸╺ ") for row in rows[1:])
    assert foot == ("7,000 of 12,000 calls done, 31 failed, 401 asked again, 1.2M of 9M tokens, $10.50 of $20.00, 0 s")


def test_a_row_is_of_printable_characters_alone() -> None:
    assert first_line(f"\n  # why\n\t{HOSTILE}\nsecond") == "�[31mred�]0;title� [bold]�dlot"
