"""A recorded run that another model goes on with, from one of its cells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from model_server import ModelServer, Request, by_model, scripted
from rlm_graph import Limits, create_rlm, read_trace, tracing
from rlm_graph.errors import TraceError
from rlm_graph.trace.handover import state_at

TEXT = "some text\n" * 500
ROOT = scripted(
    "```repl probe\nn = len(context)\nprint(n)\n```",
    "```repl chunk\nfound = llm_query_batched([f'part {i}' for i in range(3)])\n```\n```repl filter\nfound = []\n```",
    "```repl compose\nanswer['content'] = 'the old answer'\nanswer['ready'] = True\n```",
)
BETTER = "```repl compose\nanswer['content'] = f'{n} {found} ' + llm_query('one more')\nanswer['ready'] = True\n```"


def sub(request: Request) -> str:
    return f"<{request.prompt}>"


@pytest.fixture
def recorded(scene: Any, tmp_path: Path) -> Path:
    with tracing(tmp_path / "run.jsonl", texts=True):
        scene(ROOT, sub).rlm().invoke({"question": "What is it?", "context": TEXT})
    return tmp_path / "run.jsonl"


async def test_another_model_goes_on_from_a_cell_with_its_variables_and_its_replies(scene: Any, recorded: Path) -> None:
    played = scene(lambda request: BETTER, sub)
    rlm = create_rlm(played.root, played.sub, direct_below=0, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    await rlm.aupdate_state(thread, await state_at(read_trace(recorded), 2, played.sub), as_node="plan")
    out = await rlm.ainvoke(None, thread)
    assert out["answer"] == "5000 ['<part 0>', '<part 1>', '<part 2>'] <one more>"
    assert [r.prompt for r in played.server.seen if r.model == "sub"] == ["one more"]
    (prompt,) = played.root_prompts()
    assert "What is it?" in prompt and "5000" in prompt and "The cells behind it were not run (filter)." in prompt
    assert out["usage"]["calls"] == 1


async def test_a_cell_that_is_not_there_and_one_behind_a_difference_are_told(scene: Any, recorded: Path) -> None:
    trajectory = read_trace(recorded)
    with pytest.raises(TraceError, match="there is no cell 9: the run has 4"):
        await state_at(trajectory, 9, scene(ROOT).sub)
    recorded.write_text(recorded.read_text().replace("n = len(context)", "n = len(context) + 1"))
    with pytest.raises(TraceError, match="another way before cell 2: cell 0 printed something else"):
        await state_at(read_trace(recorded), 2, scene(ROOT).sub)


@pytest.mark.slow
def test_the_command_hands_over(recorded: Path) -> None:
    with ModelServer(by_model({"root": lambda request: BETTER, "sub": sub})) as server:
        models = ["--base-url", server.base_url, "--model", "openai:root", "--sub-model", "openai:sub"]
        command = [sys.executable, "-m", "rlm_graph.cli", "replay", recorded, "--from", "2", *models]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.stdout == "5000 ['<part 0>', '<part 1>', '<part 2>'] <one more>\n", done.stderr
    assert done.returncode == 0
    assert "limits:" not in done.stderr


@pytest.mark.slow
def test_the_command_goes_on_within_the_limits_of_the_run(scene: Any, tmp_path: Path) -> None:
    with tracing(tmp_path / "run.jsonl", texts=True):
        scene(ROOT, sub).rlm(limits=Limits(max_calls=3, max_turns=50)).invoke({"question": "?", "context": TEXT})
    asks = "```repl compose\nfor n in range(5): llm_query(f'more {n}')\n```"
    with ModelServer(by_model({"root": scripted("", asks, "```repl compose\nFINAL(n)\n```"), "sub": sub})) as server:
        models = ["--base-url", server.base_url, "--model", "openai:root", "--sub-model", "openai:sub"]
        command = [sys.executable, "-m", "rlm_graph.cli", "replay", tmp_path / "run.jsonl", "--from", "1", *models]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "stop reason: max_calls" in done.stderr and "3 calls, 1 refused" in done.stderr
    assert "limits: max_turns 30, not 50 as recorded" in done.stderr
