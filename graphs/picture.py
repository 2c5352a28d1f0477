"""Draws README's pictures: `make picture`.

The graph goes into README.md, between the two markers. The terminal and the page are drawn from recorded runs, of
`COMMAND` and of `examples/novel.py`, which `python graphs/picture.py --record` records anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from rlm_graph import create_rlm, read_trace
from rlm_graph.live import View, rendered
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.trace.events import event_of, without_texts
from rlm_graph.trace.recording import line_of
from rlm_graph.trace.report import page
from rlm_graph.trace.trajectory import Trajectory

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- drawn by `make picture` -->\n", "<!-- end of the picture -->\n"
FOLDER = Path(__file__).parent / "pictures"
RUN, TERMINAL, REPORT = FOLDER / "run.jsonl", FOLDER / "terminal.svg", FOLDER / "report.png"
ASK, ASKED = FOLDER / "ask.txt", FOLDER / "ask.jsonl"
"""The command that `TERMINAL` shows, with what it said before it drew; and the run."""

COMMAND = 'rlm-graph ask "Where are calls reserved?" rlm_graph'
REPORT_OF = FOLDER / "report.sha256"
"""Hash of the page that `REPORT` shows: pixels differ from browser to browser, the page does not."""

LIMITS = {"of": "max_calls", "of_tokens": "max_tokens", "of_cost": "max_cost"}
"""Limits by the names that progress tells them by."""

MOMENT = 0.5
"""Share of the calls that have been answered in the terminal's picture."""


def picture() -> str:
    """The graph in Mermaid, `sub_call` opened up. Not deeper: the RLM inside it is the same graph again."""
    graph = create_rlm(OfflineRoot(), OfflineReader()).get_graph(xray=1)
    return f"```mermaid\n{graph.draw_mermaid()}```\n"


def with_picture(text: str) -> str:
    """The text with the picture between its markers.

    Raises:
        ValueError: It does not have each marker once.
    """
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    if text.count(BEGIN) != 1 or text.count(END) != 1 or END in before:
        raise ValueError(f"README.md needs, once each and in this order: {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + picture() + END + after


def terminal(run: Trajectory) -> str:
    """What `COMMAND` showed in the middle of its recorded run, as SVG. It draws with the command's own code."""
    told = run.asked
    replies = sorted(told.replies.values(), key=lambda reply: reply["at"])
    now = replies[int(len(replies) * MOMENT)]["at"]
    view = View(began=time.monotonic() - (now - told.run["at"]) - 0.01)
    entries = [told.run, *told.turns, *told.cells.values(), *told.outputs.values()]
    entries += [e for e in run.others if e["run"] == run.top]
    for entry in sorted(entries, key=lambda entry: entry["at"]):
        if entry["at"] <= now:
            view.take(event_of(entry, ""))
    done = [reply for reply in replies if reply["at"] <= now]
    view.calls = {
        "asked": sum(reply["asked"] <= now for reply in replies),
        "done": len(done),
        "failed": sum(reply["status"] != "answered" for reply in done),
        **{name: told.run["limits"][limit] for name, limit in LIMITS.items()},
        "cost": None,
        **{name: sum(e[name] for e in [*told.turns, *done]) for name in ("input_tokens", "output_tokens")},  # type: ignore[literal-required]
    }
    console = Console(record=True, width=100, height=24, file=io.StringIO(), force_terminal=True)
    console.print(Group(Text(ASK.read_text("utf-8").rstrip()), rendered(view, console)))
    drawn = console.export_svg(title="rlm-graph", unique_id="rlm")
    still = re.sub("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", "⠹", drawn)
    return re.sub(r"@font-face \{.*?\}", "", still, flags=re.S)  # fonts that would be loaded from elsewhere


def shot(html: str, to: Path) -> None:
    """Takes a picture of a page."""
    browser = shutil.which("chromium") or sys.exit("the page's picture needs Chromium (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.html"
        file.write_text(html, "utf-8")
        quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--hide-scrollbars"]
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        size = [f"--screenshot={to}", "--window-size=1100,1500", f"--user-data-dir={folder}/profile"]
        command = [browser, "--headless=new", *quiet, *root, *size, file.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def digest(html: str) -> str:
    """Names a page."""
    return hashlib.sha256(html.encode()).hexdigest()


def record(command: list[str], to: Path) -> str:
    """Records the first run of a command, and returns what it said on standard error."""
    with tempfile.TemporaryDirectory() as folder:
        models = [name for name in os.environ if name.startswith("OPENAI_")]
        env = {name: value for name, value in os.environ.items() if name not in models}
        env |= {"RLM_GRAPH_TRACE": folder, "RLM_GRAPH_HOME": folder}
        done = subprocess.run([sys.executable, *command], check=True, env=env, cwd=ROOT, stderr=subprocess.PIPE)
        (first,) = Path(folder).glob("*.0.jsonl")
        head, *entries = map(json.loads, first.read_text().splitlines())
        kept = [{**head, "texts": False}, *map(without_texts, entries)]
        to.write_text("".join(map(line_of, kept)).replace(f"{ROOT}/", ""))
        return done.stderr.decode()


def record_terminal() -> None:
    """Records what `COMMAND` does."""
    said = record(["-m", "rlm_graph.cli", *shlex.split(COMMAND)[1:]], ASKED)
    ASK.write_text(f"$ {COMMAND}\n{said.partition('trajectory: ')[0]}")


def record_page() -> None:
    """Records the run whose page is shown: the novel's, a tenth as long."""
    record(["examples/novel.py", "--tokens", "200000"], RUN)


def main() -> None:
    """Draws them all."""
    if "--record" in sys.argv:
        record_terminal()
        record_page()
    README.write_text(with_picture(README.read_text("utf-8")), "utf-8")
    TERMINAL.write_text(terminal(read_trace(ASKED)), "utf-8")
    html = page(read_trace(RUN), {})
    shot(html, REPORT)
    REPORT_OF.write_text(digest(html) + "\n")


if __name__ == "__main__":
    main()
