"""The page of a run: opened from the disk in a real browser, and what it is made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.stores import InMemoryByteStore

from conftest import Scene
from model_server import Answer, ModelServer, Request, by_model, scripted
from rlm_graph import hold, read_trace, tracing
from rlm_graph.errors import TraceError
from rlm_graph.trace.notebook import result_html
from rlm_graph.trace.report import page, texts_of, write_report
from rlm_graph.trace.trajectory import Trajectory, told
from rlm_graph.trace.view import strip, view

SCRIPT = "<script>window.planted = true</script>"
ESCAPE = "\x1b]0;planted\x07\x1b[31m"
TURNED = "\u202egnihton\u202c"
TEXT = f"The word is kiwi. {SCRIPT}{ESCAPE}{TURNED}\n" + "nothing here\n" * 400
ROOT = scripted(
    "```repl probe\nprint(context[:80])\n```",
    "```repl chunk\nfound = llm_query_batched([f'passage {i}: ' + context[:60] for i in range(120)])\n"
    "deep = rlm_query('look deeper', context='part')\nllm_query('fail')\n```",
    f"```repl compose\nanswer['content'] = 'kiwi ' + {SCRIPT!r} + deep\nanswer['ready'] = True\n```",
)


def sub(request: Request) -> str | Answer:
    if len(request.messages) > 1:
        return f"```repl compose\nanswer['content'] = 'deep {SCRIPT}'\nanswer['ready'] = True\n```"
    return Answer("no", status=400) if request.prompt == "fail" else f"read: {request.prompt[:12]}{SCRIPT}{TURNED}"


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with everything that a page must show, recorded as it ran."""
    folder = tmp_path_factory.mktemp("report")
    patch = pytest.MonkeyPatch()
    patch.setenv("RLM_GRAPH_HOME", str(folder / "home"))
    with ModelServer(by_model({"root": ROOT, "sub": sub})) as server:
        with tracing(folder / "run.jsonl", texts=True):
            Scene(server).rlm().invoke({"question": f"Which word is it? {SCRIPT}", "context": TEXT})
        yield folder / "run.jsonl"
    patch.undo()


def cited(run: Trajectory) -> None:
    """Adds a citation and a coverage, as a run with checked quotes has them."""
    assert run.asked.answer is not None
    quote = "The word is kiwi."
    run.asked.answer["citations"] = [{"source": "text", "start": 0, "end": len(quote), "quote": quote}]
    unread = [{"source": "text", "start": 60, "end": len(TEXT)}]
    seen = {"scanned": 1.0, "read": 0.01, "map": {"scanned": "9999", "read": "1000"}}
    run.asked.answer["coverage"] = {"chars": len(TEXT), **seen, "unread": unread, "unread_more": 2}


# In a browser


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window.

    Raises:
        FileNotFoundError: It is not installed.
    """
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        raise FileNotFoundError("no Chromium is installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    quiet = ("disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync", "no-first-run")
    for argument in ("headless=new", "window-size=1200,1600", *quiet, *(["no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(f"--{argument}")
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    with ExitStack() as stack:
        try:
            started = stack.enter_context(browser())
        except FileNotFoundError as missing:
            pytest.skip(str(missing))
        yield started


@pytest.fixture
def opened(chrome: Any, trajectory: Path, tmp_path: Path) -> Any:
    """The page of the run, open in the browser."""
    return show(chrome, read_trace(trajectory), tmp_path)


def show(chrome: Any, run: Trajectory, folder: Path, texts: dict[str, str] | None = None) -> Any:
    file = folder / "run.html"
    file.write_text(page(run, texts or {}), "utf-8")
    chrome.get(file.as_uri())
    return chrome


def js(browser: Any, code: str) -> Any:
    return browser.execute_script(f"return {code}")


def shown(browser: Any, selector: str) -> str:
    """The text of an element, once it is there: a browser tells of what was opened a moment later."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    found = WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.CSS_SELECTOR, selector))
    return str(found[0].get_attribute("textContent"))


def until(browser: Any, code: str, wanted: Callable[[Any], bool]) -> Any:
    """What a piece of script gives, once it is what is wanted: a page draws a moment later."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(lambda page: wanted(js(page, code)), message=code)
    return js(browser, code)


def press(browser: Any, *keys: str) -> None:
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def test_it_opens_without_an_error_and_loads_nothing(opened: Any) -> None:
    assert opened.get_log("browser") == []
    assert js(opened, "performance.getEntriesByType('resource').length") == 0
    assert "kiwi" in js(opened, "document.getElementById('answer').textContent")


def test_the_tree_unfolds_and_folds_by_keyboard(opened: Any) -> None:
    js(opened, "document.querySelector('#tree details details > summary').focus()")
    press(opened, "\ue007")
    assert "```repl probe" in shown(opened, "#tree details details[open] pre")
    press(opened, "\ue007")
    assert js(opened, "document.querySelectorAll('#tree details details[open]').length") == 0


def test_a_nested_run_stands_below_the_call_that_made_it(opened: Any) -> None:
    js(opened, "reveal([...nodes.keys()].find((path) => path.endsWith('/r')))")
    assert "look deeper" in js(opened, "document.querySelector('.here').textContent")
    assert "rlm" in js(opened, "document.querySelector('.here').parentElement.querySelector('summary').textContent")


def test_search_finds_a_call_among_many_and_opens_it(opened: Any) -> None:
    press(opened, "/", *"passage 117:", "\ue007")
    assert js(opened, "document.getElementById('found').textContent") == "1 of 1"
    assert js(opened, "document.querySelector('.here mark').textContent") == "passage 117:"


def test_a_failed_call_is_marked_and_says_why(opened: Any) -> None:
    press(opened, "/", *"failed: ", "\ue007")
    assert js(opened, "document.querySelector('.here .tag.bad') !== null")
    assert "SubCallError" in js(opened, "document.querySelector('.here > summary').textContent")


def test_a_citation_opens_at_its_place_in_the_source(chrome: Any, trajectory: Path, tmp_path: Path) -> None:
    run = read_trace(trajectory)
    cited(run)
    show(chrome, run, tmp_path, {"text": TEXT})
    js(chrome, "document.querySelector('#citations summary').focus()")
    press(chrome, "\ue007")
    assert js(chrome, "document.querySelector('#citations pre').innerText").startswith("The word is kiwi. <script>")
    assert js(chrome, "document.querySelector('#citations mark').textContent") == "The word is kiwi."


def test_what_was_read_is_drawn_and_what_was_not_is_named(chrome: Any, trajectory: Path, tmp_path: Path) -> None:
    run = read_trace(trajectory)
    cited(run)
    show(chrome, run, tmp_path, {"text": TEXT})
    rows = js(chrome, "[...document.querySelectorAll('#strip path')].map((path) => path.getAttribute('d'))")
    assert [row.count("M") for row in rows] == [4, 1, 1]
    told = js(chrome, "document.getElementById('covered').textContent")
    assert "scanned by code: 100 %" in told and "read by a model: 1.0 %" in told
    assert f"Read by no model: text, 60 to {len(TEXT):,}; 2 shorter parts" in told


def test_what_was_planted_is_text(opened: Any) -> None:
    js(opened, "nodes.forEach((node) => reveal(node.path))")
    assert js(opened, "window.planted === undefined")
    assert js(opened, "document.querySelectorAll('main script, #question script').length") == 0
    shown = js(opened, "document.body.textContent")
    assert SCRIPT in shown and "U+001B" in shown and "U+202E" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(js(opened, "document.querySelector('main').textContent"))
    assert opened.get_log("browser") == []


PIXELS = """(() => {
  const canvas = byId("time"), style = getComputedStyle(document.documentElement);
  const probe = make("i", undefined, document.body), drawn = {};
  const named = Object.fromEntries(["plan", "cell", "nested", "call", "bad", "raised"].map((name) => {
    probe.style.color = style.getPropertyValue("--" + name);
    return [getComputedStyle(probe).color.match(/\\d+/g).join(), name];
  }));
  probe.remove();
  const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const seen = copy.getContext("2d", { willReadFrequently: true });
  seen.drawImage(canvas, 0, 0);
  const { data, width } = seen.getImageData(0, 0, copy.width, copy.height);
  for (let at = 0; at < data.length; at += 4) {
    const name = named[[...data.slice(at, at + 3)].join()];
    if (data[at + 3] !== 255 || !name) continue;
    (drawn[name] = drawn[name] || []).push([at / 4 % width, Math.floor(at / 4 / width)]);
  }
  return drawn;
})()"""
"""What is drawn of the chart: places by the name of their colour, as the style has it now; `raised` is its ground."""


@pytest.fixture
def charted(chrome: Any, tmp_path: Path) -> Any:
    """The page of a run whose bars are wide: two calls side by side, and one behind them that failed."""
    run = many(3)
    first, second, last = run.asked.replies.values()
    for reply, asked, at in ((first, 1.0, 4.0), (second, 1.0, 3.0), (last, 5.0, 8.0)):
        reply["asked"], reply["at"] = asked, at
    last["status"] = "SubCallError"
    opened = show(chrome, run, tmp_path)
    js(opened, "byId('time').scrollIntoView({ block: 'center' })")
    return opened


def test_the_chart_is_drawn_and_a_click_on_a_bar_reveals_its_call(charted: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    opened = charted
    drawn = until(opened, PIXELS, bool)
    assert set(drawn) == {"cell", "call", "bad"}
    canvas = opened.find_element("id", "time")
    x, y = drawn["bad"][len(drawn["bad"]) // 2]
    middle = [js(opened, f"byId('time').{side}") / 2 for side in ("clientWidth", "clientHeight")]
    pointer = ActionChains(opened).move_to_element_with_offset(canvas, int(x - middle[0]), int(y - middle[1]))
    pointer.perform()
    until(opened, "byId('pointed').textContent", lambda text: text.startswith("llm: item 2 — 5.00 s"))
    pointer.click().perform()
    assert "item 2 — SubCallError" in shown(opened, ".here > summary")


def test_the_chart_is_drawn_anew_in_dark_mode(charted: Any) -> None:
    opened = charted
    light = until(opened, PIXELS, bool)
    with_scheme(opened, "dark")
    try:
        dark = until(opened, PIXELS, bool)
        grounds = js(opened, "[getComputedStyle(byId('time')).backgroundColor, getComputedStyle(document.body).color]")
    finally:
        with_scheme(opened, "light")
    # Colours are looked up anew: what is drawn has those of the dark style, and none of its ground.
    assert {name: len(places) for name, places in dark.items()} == {name: len(p) for name, p in light.items()}
    assert grounds == ["rgb(29, 34, 40)", "rgb(228, 232, 236)"]


def with_scheme(browser: Any, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


def test_dark_mode_has_dark_ground_and_light_ink(opened: Any) -> None:
    def colours(scheme: str) -> list[int]:
        with_scheme(opened, scheme)
        style = "getComputedStyle(document.body)"
        return [int(js(opened, f"{style}.{name}.match(/\\d+/)[0]")) for name in ("backgroundColor", "color")]

    light, dark = colours("light"), colours("dark")
    assert light[0] > 200 > 100 > light[1]
    assert dark[0] < 100 < 200 < dark[1]


def test_it_prints_without_its_controls(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert js(opened, "getComputedStyle(document.getElementById('search')).display") == "none"
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_ten_thousand_calls_are_built_only_where_they_are_looked_at(chrome: Any, tmp_path: Path) -> None:
    show(chrome, many(10_000), tmp_path)
    assert js(chrome, "document.querySelectorAll('#tree details').length") < 50
    press(chrome, "/", *"item 7777", "\ue007")
    assert "item 7777" in js(chrome, "document.querySelector('.here').textContent")
    assert js(chrome, "document.querySelectorAll('#tree details').length") < 500
    assert chrome.get_log("browser") == []


# What it is made of


def text(said: str) -> dict[str, Any]:
    return {"chars": len(said), "hash": "0", "text": said}


def many(calls: int) -> Trajectory:
    """A run that has not ended, with so many calls in its only cell."""
    about: dict[str, Any] = {"run": "r", "depth": 0}
    entries: list[Any] = [
        {**about, "at": 0.0, "event": "run", "tree": "r.0", "number": 0, "question": "q", "sources": [{}]},
        {**about, "at": 0.5, "event": "cell", "index": 0, "turn": 0, "phase": "chunk", "code": text("found = …")},
    ]
    paid = {"input_tokens": 10, "output_tokens": 2, "cost": 0.5}
    asked = {"event": "reply", "index": 0, "kind": "llm", "model": "m", "status": "answered", "message": "", **paid}
    for n in range(calls):
        said = {"id": str(n), "prompt": text(f"item {n}"), "reply": text(f"read {n}")}
        entries.append({**about, **asked, **said, "at": 1.0 + n * 0.01, "asked": 1.0 + n * 0.009})
    return told({"event": "trace", "version": 1, "by": "a test", "texts": True}, entries, "a test")


def test_the_tables_add_up_to_the_run_s_usage(trajectory: Path) -> None:
    run = read_trace(trajectory)
    assert run.asked.answer is not None
    usage = run.asked.answer["usage"]
    for rows in view(run, {})["spent"].values():
        assert sum(row[2] for row in rows) == usage["input_tokens"]
        assert sum(row[3] for row in rows) == usage["output_tokens"]


def test_a_price_that_is_not_known_is_not_zero(trajectory: Path) -> None:
    spent = view(many(3), {})["spent"]
    assert spent["model"] == [["m", 3, 30, 6, 1.5]]
    run = many(3)
    for reply in run.asked.replies.values():
        reply["cost"] = None
    assert view(run, {})["spent"]["model"] == [["m", 3, 30, 6, None]]


def test_a_run_that_was_killed_has_a_page(chrome: Any, trajectory: Path, tmp_path: Path) -> None:
    lines = trajectory.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:40])
    write_report(cut, tmp_path / "cut.html")
    chrome.get((tmp_path / "cut.html").as_uri())
    assert "did not end" in js(chrome, "document.getElementById('facts').textContent")
    assert chrome.get_log("browser") == []


def test_a_page_replaces_a_page_and_nothing_else(trajectory: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    write_report(trajectory, page)
    write_report(trajectory, page)
    kept = tmp_path / "keep.html"
    kept.write_text("<!doctype html><title>mine</title>")
    for foreign in (kept, trajectory):
        before = foreign.read_bytes()
        with pytest.raises(TraceError, match="is no page of rlm-graph's"):
            write_report(trajectory, foreign)
        assert foreign.read_bytes() == before


def test_attempts_stand_below_the_call_that_they_are_made_at() -> None:
    run = many(3)
    call, first, second = run.asked.replies.values()
    for reply in (call, first, second):
        reply["kind"] = "sub"
    call["model"], call["context"] = None, text('{"texts": {}}')
    for attempt in (first, second):
        attempt["context"] = text(json.dumps({"call": call["id"], "texts": {}}))
    (shown,) = view(run, {})["runs"][0]["cells"][0]["calls"]
    assert [attempt["id"] for attempt in shown["attempts"]] == ["1", "2"]
    assert view(run, {})["spent"]["model"] == [["m", 2, 20, 4, 1.0]]


def test_what_earlier_questions_of_the_thread_cost_is_not_this_one_s() -> None:
    run = many(3)
    run.asked.run["at"] = run.asked.cells[0]["at"] + 0.1
    shown = view(run, {})
    assert (shown["spent"]["model"], shown["runs"][0]["cells"]) == ([], [])


def test_the_strip_shows_what_was_scanned_read_and_cited() -> None:
    coverage = {"map": {"scanned": "9999900000", "read": "0300000000"}}
    citation = {"source": "b", "start": 0, "end": 100, "quote": "…"}
    shown = strip(coverage, [citation], {"a": "x" * 600, "b": "y" * 400})
    assert shown["sources"] == [["a", 600], ["b", 400]]
    assert shown["scanned"] == [1.0] * 5 + [0.0] * 5
    assert shown["read"] == [0.0, 3 / 9] + [0.0] * 8
    assert shown["cited"] == [0] * 6 + [1, 1] + [0] * 2


def test_the_texts_are_the_run_s_own_context(tmp_path: Path) -> None:
    run, file = many(0), tmp_path / "a.txt"
    file.write_text("kiwi\r\n", newline="")
    store = InMemoryByteStore()
    run.asked.run["sources"] = [dict(hold({"a": "one", "b": "two"}, store=store))]
    assert texts_of(run, store) == {"a": "one", "b": "two"}
    run.asked.run["sources"] = [dict(hold(file, store=store))]
    assert texts_of(run, store) == {"text": "kiwi\r\n"}
    file.write_text("changed since")
    assert texts_of(run, store) == {}


# In a notebook


def test_a_notebook_shows_a_result_and_leaves_other_dicts_alone() -> None:
    from IPython.core.formatters import DisplayFormatter

    import rlm_graph

    class Shell:
        display_formatter = DisplayFormatter()

    rlm_graph.load_ipython_extension(Shell())
    usage = {"turns": 3, "calls": 2, "input_tokens": 10, "output_tokens": 5, "cost": None, "seconds": 1.25}
    result = {"answer": f"kiwi {SCRIPT}{TURNED}", "stop_reason": "answered", "usage": usage, "warnings": ["w<b>"]}
    shown = Shell.display_formatter.format(result)[0]["text/html"]
    assert "kiwi &lt;script&gt;" in shown and "[U+202E]" in shown and "w&lt;b&gt;" in shown
    assert "<script" not in shown
    assert "cost not known" in shown and "15 tokens" in shown
    assert "text/html" not in Shell.display_formatter.format({"answer": 1})[0]


def test_a_notebook_counts_the_citations_that_it_leaves_out() -> None:
    citation = {"source": "a", "start": 0, "end": 4, "quote": "kiwi"}
    result = {"answer": "a", "stop_reason": "answered", "usage": {}, "citations": [citation] * 25}
    assert "and 5 more" in str(result_html(result))


# From the command line


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rlm_graph.cli", *map(str, arguments)], capture_output=True, text=True)


def test_the_command_makes_a_page_beside_the_trajectory_and_says_where(trajectory: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(trajectory, tmp_path))
    done = command("report", file)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "run.html"))
    assert (tmp_path / "run.html").read_text("utf-8").startswith("<!doctype html>")


def test_what_is_no_trajectory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    done = command("report", tmp_path / "notes.txt", "-o", tmp_path / "page.html")
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {tmp_path / 'notes.txt'}: not a trajectory of rlm-graph's"
    assert not (tmp_path / "page.html").exists()
