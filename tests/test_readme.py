"""What README.md shows is what the code does: the picture, the examples, the limits."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from ast import literal_eval
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from rlm_graph import Limits, build_rlm, create_rlm
from rlm_graph.cli import DEFAULT_MODEL
from rlm_graph.graph import Graph
from rlm_graph.kernel.inside.checked import PACKED_CHUNKS, PACKED_TOKENS
from rlm_graph.kernel.inside.toolkit import Toolkit
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.state import PHASES
from rlm_graph.trace import events

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
NODES = {"load", "plan", "probe", "filter", "chunk", "dispatch", "verify", "compose"}


@pytest.fixture
def rlm() -> Graph:
    return create_rlm(OfflineRoot(), OfflineReader())


def drawing() -> Any:
    """`graphs/picture.py`, which is no package."""
    spec = spec_from_file_location("picture", ROOT / "graphs" / "picture.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a section's tables, by their first cell."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in cells}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_picture_is_what_the_command_draws() -> None:
    assert drawing().with_picture(README) == README, "run `make picture`"


def test_the_terminal_and_the_page_in_the_pictures_are_those_of_today() -> None:
    picture = drawing()
    run, asked = picture.read_trace(picture.RUN), picture.read_trace(picture.ASKED)
    assert picture.terminal(asked) == picture.TERMINAL.read_text("utf-8"), "run `make picture`"
    assert picture.digest(picture.page(run, {})) == picture.REPORT_OF.read_text().strip(), "run `make picture`"
    # The command that is shown is the one that ran, and the one that README names.
    shown = picture.ASK.read_text("utf-8").splitlines()[0].removeprefix("$ ")
    assert shown == picture.COMMAND and any(line.startswith(shown) for line in blocks("sh")[2].splitlines())
    assert shlex.split(shown)[2:] == [asked.asked.run["question"], asked.asked.run["sources"][-1]["name"]]
    assert all(f"graphs/pictures/{file.name}" in README for file in (picture.TERMINAL, picture.REPORT))


def test_drawing_needs_each_marker_once() -> None:
    picture = drawing()
    for text in ("", picture.BEGIN, picture.END + picture.BEGIN, 2 * (picture.BEGIN + picture.END)):
        with pytest.raises(ValueError, match="once each"):
            picture.with_picture(text)


def test_the_picture_shows_every_node_and_the_inside_of_sub_call(rlm: Graph) -> None:
    drawn = set(rlm.get_graph(xray=1).nodes)
    assert drawn >= NODES | {"sub_call:ask", "sub_call:rlm"}
    (shown,) = blocks("mermaid")
    assert all(f"({node.rpartition(':')[2]})" in shown for node in drawn if "__" not in node)


def test_x_ray_opens_the_nested_rlm_too(rlm: Graph) -> None:
    drawn = set(rlm.get_graph(xray=True).nodes)
    assert drawn >= NODES | {"sub_call:ask"} | {f"sub_call:rlm:{node}" for node in NODES}


def test_it_opens_with_the_two_commands() -> None:
    assert [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()] == ["make demo", "make test"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_python_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Models are made by their names here, not asked.
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    script = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "json/decoder.py" in done.stdout
    assert "answered 3 24" in done.stdout


def test_the_first_python_example_is_short() -> None:
    assert len(blocks("python")[0].splitlines()) <= 10


def test_every_limit_is_named_with_its_default() -> None:
    told = {name.strip("`"): row[0] for name, row in rows(section("Limits")).items()}
    for limit in fields(Limits):
        assert literal_eval(told[limit.name]) == limit.default, limit.name


@pytest.mark.parametrize("made_by", [create_rlm, build_rlm])
def test_every_parameter_is_named(made_by: Any) -> None:
    told = " ".join(rows(section("Parameters")))
    assert [name for name in signature(made_by).parameters if name != "model" and f"`{name}`" not in told] == []


def test_both_bounds_of_a_packed_call_are_named() -> None:
    told = section("Results, citations, coverage")
    assert f"up to {PACKED_CHUNKS} chunks and {PACKED_TOKENS:,} tokens".replace(",", " ") in told.replace("\n", " ")


def test_every_isolation_is_named() -> None:
    assert set(rows(section("Isolation"))) >= {f'`"{name}"`' for name in get_args(Isolation)}


def test_every_label_is_named() -> None:
    assert all(f"`` ```repl {phase} ``" in section("What the root writes") for phase in PHASES)


def test_every_tool_of_the_kernel_is_named() -> None:
    tools = [name for name, tool in vars(Toolkit).items() if callable(tool) and not name.startswith("_")]
    assert tools and all(f"`{name}`" in section("What the root writes") for name in tools)


def test_every_node_is_explained() -> None:
    table = " ".join(rows(section("The graph")))
    assert all(f"`{node}`" in table for node in NODES | {"sub_call"})


def test_every_event_is_explained_with_fields_that_it_has() -> None:
    told = rows(section("Events"))
    assert {row.strip("`") for row in told} - {"event", "---"} == {kind_of(event) for event in get_args(events.Event)}
    for event in get_args(events.Event):
        fields = re.findall(r"`(\w+)`", told[f"`{kind_of(event)}`"][1])
        assert set(fields) <= set(event.__annotations__) | {"at"}, event


def kind_of(event: Any) -> str:
    (kind,) = get_args(get_type_hints(event)["event"])
    return str(kind)


def test_the_command_s_options_exist() -> None:
    command = [sys.executable, "-m", "rlm_graph.cli", "ask", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in re.findall(r"--[a-z-]+", section("From the command line")))


def test_the_default_model_is_named() -> None:
    assert f"`{DEFAULT_MODEL}`" in section("From the command line")


def test_every_module_is_on_the_map() -> None:
    """By its name, or by a folder that it is in."""
    map_ = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Where things are")[2].partition("\n## ")[0]
    first = {
        name for row in map_.splitlines() if row.startswith("|") for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    package = ROOT / "rlm_graph"
    for module in package.rglob("*.py"):
        folders = {f"{folder.name}/" for folder in module.relative_to(package).parents}
        assert module.name in first or folders & first, module
    named = {name for name in first if name.endswith(".py")}
    assert named <= {module.name for module in package.rglob("*.py")}, "a line names what is gone"
