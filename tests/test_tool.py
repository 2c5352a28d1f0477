"""`create_rlm_tool`: an agent names a text and asks; it reads what it may, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.stores import InMemoryByteStore
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from model_server import scripted
from rlm_graph import Limits, create_rlm_tool, hold
from rlm_graph.beneath import MOST_BYTES, allowed, read_beneath
from rlm_graph.errors import ContextError
from rlm_graph.integrations import tool as of_tool
from rlm_graph.offline import OfflineReader, OfflineRoot

SECRET = "the secret is 4711"


def offline(**more: Any) -> BaseTool:
    return create_rlm_tool(OfflineRoot(), OfflineReader(), **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that may be read, beside a secret that may not."""
    (tmp_path / "secret.txt").write_text(SECRET)
    root = tmp_path / "docs"
    (root / "old").mkdir(parents=True)
    (root / "report.txt").write_text("The pier was built in 1907.")
    (root / "old" / "note.md").write_text("The reef is blue.")
    (root / "logo.png").write_bytes(b"\x89PNG\0\0")
    return root


def call(tool: BaseTool, source: str, question: str = "When was the pier built?") -> ToolMessage:
    """What an agent gets for a call."""
    args = {"question": question, "source": source}
    message = tool.invoke({"name": tool.name, "args": args, "id": "1", "type": "tool_call"})
    assert isinstance(message, ToolMessage)
    return message


class Standard:
    @property
    def tool_constructor(self) -> BaseTool:
        return offline(contexts={"report": "The pier was built in 1907."})

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": "When was the pier built?", "source": "report"}


class TestStandardUnit(Standard, ToolsUnitTests):
    pass


class TestStandardIntegration(Standard, ToolsIntegrationTests):
    pass


def test_a_path_below_the_root_is_read(folder: Path) -> None:
    message = call(offline(roots=[folder]), "report.txt")
    assert message.content == "The pier was built in 1907."
    assert message.artifact["stop_reason"] == "direct"
    assert message.artifact["usage"]["turns"] == 1


def test_an_absolute_path_below_the_root_is_read_too(folder: Path) -> None:
    assert call(offline(roots=folder), str(folder / "report.txt")).content == "The pier was built in 1907."


def test_a_folder_is_read_and_what_is_no_text_in_it_is_named(folder: Path) -> None:
    message = call(offline(roots=[folder]), ".", "What is the reef?")
    assert "The reef is blue." in message.content
    assert message.artifact["left_out"] == ["logo.png: binary"]
    assert "Not read: logo.png: binary" in message.content


def test_an_id_names_what_is_in_the_store() -> None:
    store = InMemoryByteStore()
    held = hold("The pier was built in 1907.", store=store)
    assert call(offline(content_store=store), held["id"]).content == "The pier was built in 1907."


def test_what_is_not_there_is_told_to_the_model(folder: Path) -> None:
    tool = offline(roots=[folder])
    message = call(tool, "reports.txt")
    assert (message.status, message.content) == ("error", "'reports.txt' does not exist")
    assert "there is no context" in call(tool, "0" * 32).content
    assert "no question" in call(tool, "report.txt", " ").content


def test_without_roots_no_path_is_read(folder: Path) -> None:
    tool = offline()
    assert "path" not in tool.description
    for source in ("report.txt", str(folder / "report.txt"), "/etc/passwd"):
        assert call(tool, source).content.startswith(f"{source!r} names nothing here")


def test_a_root_must_be_a_folder(folder: Path) -> None:
    for root in (folder / "report.txt", folder / "nowhere"):
        with pytest.raises(ContextError, match="is no folder"):
            offline(roots=[root])


def attacks(folder: Path) -> list[str]:
    """Ways to name what lies outside of the folder."""
    secret = folder.parent / "secret.txt"
    (folder / "link.txt").symlink_to(secret)
    (folder / "up").symlink_to(folder.parent)
    (folder / "old" / "chain").symlink_to(folder / "up")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "etc").symlink_to("/etc")
    return [
        "../secret.txt",
        "old/../../secret.txt",
        "./../secret.txt",
        "..",
        "old/..",
        str(secret),
        f"{folder}/../secret.txt",
        f"{folder}x/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "/",
        "/proc/self/environ",
        "/proc/self/root/etc/passwd",
        "~/secret.txt",
        "~root/.profile",
        f"file://{secret}",
        f"file:{secret}",
        "http://127.0.0.1/secret.txt",
        "link.txt",
        "link.txt/",
        "up/secret.txt",
        "up",
        "up/docs/report.txt",
        "old/chain/secret.txt",
        "loop",
        "etc/passwd",
        "report.txt/../../secret.txt",
        "report.txt/x",
        "report.txt\0.png",
        "\0",
        "re\nport.txt",
        "..\\secret.txt",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "\u2025/secret.txt",
        "x" * 5_000,
        "/".join(["old"] * 3_000),
        "$HOME/secret.txt",
        "`cat ../secret.txt`",
        "*",
        "",
        "\udcff",
    ]


def test_no_way_of_writing_a_path_leads_outside(folder: Path) -> None:
    roots = allowed([folder])
    for attack in attacks(folder):
        try:
            found = read_beneath(roots, attack)
        except ContextError:
            continue
        assert attack == "", f"{attack!r} was read"
        assert SECRET not in repr(found.context)


def test_a_folder_s_links_are_left_out(folder: Path) -> None:
    attacks(folder)
    found = read_beneath(allowed([folder]), ".")
    assert set(found.context) == {"report.txt", "old/note.md"}
    assert "link.txt: link, not followed" in found.left_out


def test_a_link_on_the_way_to_the_root_itself_is_the_user_s_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert read_beneath(allowed([tmp_path / "current"]), "old/note.md").context == "The reef is blue."


def test_a_folder_swapped_for_a_link_while_it_is_walked_leads_nowhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "note.md").write_text(SECRET)
    real_open, swapped = os.open, []

    def swap_then_open(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if path == "old" and not swapped:
            (folder / "old").rename(tmp_path / "moved")
            (folder / "old").symlink_to(tmp_path / "outside")
            swapped.append(path)
        return real_open(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(ContextError, match="is a link"):
        read_beneath(allowed([folder]), "old/note.md")
    assert swapped


def test_a_pipe_and_a_device_are_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ContextError, match="not a regular file"):
        read_beneath(allowed([folder]), "pipe")
    assert "pipe: not a regular file" in read_beneath(allowed([folder]), ".").left_out


def test_what_is_too_large_is_refused_with_its_bound(folder: Path) -> None:
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    for source in ("huge.txt", "."):
        with pytest.raises(ContextError, match="more than 200,000,000 bytes"):
            read_beneath(allowed([folder]), source)


def in_an_agent(tool: BaseTool, source: str) -> ToolMessage:
    """The tool's message in an agent that has called a tool `fetch` before."""
    graph = StateGraph(MessagesState).add_node("tools", ToolNode([tool])).add_edge(START, "tools")
    messages = [
        HumanMessage("When?"),
        AIMessage("", tool_calls=[{"name": "fetch", "args": {}, "id": "f1"}]),
        ToolMessage("The pier was built in 1907.", name="fetch", tool_call_id="f1"),
        AIMessage(
            "", tool_calls=[{"name": tool.name, "args": {"question": "When was it?", "source": source}, "id": "a1"}]
        ),
    ]
    out = graph.compile(checkpointer=InMemorySaver()).invoke(
        {"messages": messages}, {"configurable": {"thread_id": "1"}}
    )
    return out["messages"][-1]


@pytest.mark.parametrize("source", ["fetch", "f1"])
def test_an_earlier_result_is_named_by_its_tool_or_its_call(scene: Callable[..., Any], source: str) -> None:
    s = scene(lambda request: f"read: {'1907' in request.prompt}")
    assert in_an_agent(create_rlm_tool(s.root, s.sub), source).content == "read: True"


def test_a_long_answer_is_kept_and_can_be_asked_about(scene: Callable[..., Any]) -> None:
    s = scene(scripted("```repl compose\nFINAL('word ' * 10_000)\n```"))
    store = InMemoryByteStore()
    held = hold("x y", store=store)
    message = call(create_rlm_tool(s.root, s.sub, direct_below=0, content_store=store), held["id"])
    assert len(message.content) < 2_000
    kept = message.content.partition('source="')[2][:32]
    assert of_tool.context.read_text({"id": kept}, store) == "word " * 10_000  # type: ignore[typeddict-item]
    assert len(message.artifact["answer"]) == 50_000


def cited_by(scene: Callable[..., Any], lines: list[str], cited: str = "grep('paid', limit=5_000)") -> ToolMessage:
    """What an agent gets that asks about these lines; the answer cites those with "paid" in them."""
    s = scene(scripted(f"```repl compose\nFINAL('So many.')\nanswer['citations'] = {cited}\n```"))
    store = InMemoryByteStore()
    held = hold("\n".join(lines), store=store)
    return call(create_rlm_tool(s.root, s.sub, direct_below=0, content_store=store), held["id"])


def test_an_answer_comes_with_its_citations_as_content_and_artifact(scene: Callable[..., Any]) -> None:
    message = cited_by(scene, ["Nobody came.", "Ann paid 3 euros.", "Bob paid 5 euros."])
    assert message.content == (
        "So many.\n\nCitations:\n[1] text:13-30 'Ann paid 3 euros.'\n[2] text:31-48 'Bob paid 5 euros.'"
    )
    assert message.artifact["citations"] == [
        {"source": "text", "start": 13, "end": 30, "quote": "Ann paid 3 euros."},
        {"source": "text", "start": 31, "end": 48, "quote": "Bob paid 5 euros."},
    ]


def test_of_many_citations_the_content_has_some_and_the_artifact_all(scene: Callable[..., Any]) -> None:
    message = cited_by(scene, [f"Customer {n} paid {n} euros." for n in range(2_000)])
    assert len(message.content) < 2_000
    assert message.content.startswith("So many.\n\nCitations:\n[1] text:0-24 'Customer 0 paid 0 euros.'")
    assert "[20] " in message.content and "[21] " not in message.content
    assert message.content.endswith("\n… and 1,980 more.")
    assert len(message.artifact["citations"]) == 2_000


def test_of_a_long_passage_the_content_has_the_ends_and_the_artifact_all(scene: Callable[..., Any]) -> None:
    line = "Ann paid " + "very " * 10_000 + "late."
    message = cited_by(scene, [line], "split(by='item', tokens=100_000)")
    assert len(message.content) < 500
    assert "[1] text:0-50014 'Ann paid very " in message.content and " … " in message.content
    assert message.content.endswith("very late.'")
    assert message.artifact["citations"][0]["quote"] == line


async def test_a_limit_that_stopped_it_is_told(scene: Callable[..., Any]) -> None:
    s = scene(lambda request: "```repl probe\nprint(context)\n```")
    store = InMemoryByteStore()
    held = hold("x y", store=store)
    tool = create_rlm_tool(s.root, s.sub, direct_below=0, content_store=store, limits=Limits(max_turns=1))
    content = await tool.ainvoke({"question": "Why?", "source": held["id"]})
    assert "stopped by a limit (max_turns)" in content


def test_a_run_that_read_nothing_is_an_error_to_the_agent(scene: Callable[..., Any]) -> None:
    s = scene(lambda request: "I do not write code.")
    store = InMemoryByteStore()
    held = hold("x y", store=store)
    message = call(create_rlm_tool(s.root, s.sub, direct_below=0, content_store=store), held["id"])
    assert message.status == "error" and "nothing of the context was read" in message.content
