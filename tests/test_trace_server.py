"""What a run of a thousand calls sends to who watches it on a real `langgraph dev` server."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev_server import DevServer

pytest.importorskip("langgraph_api", reason="needs the extra `studio` (langgraph-cli[inmem])")
GRAPH = """
from langchain_core.language_models.chat_models import SimpleChatModel
from rlm_graph import create_rlm

class Scripted(SimpleChatModel):
    replies: list[str]
    _llm_type = "scripted"

    def _call(self, messages, stop=None, run_manager=None, **more):
        return self.replies[sum(m.type == "ai" for m in messages)]

root = Scripted(replies=[
    "```repl chunk\\nfound = llm_query_batched([f'{n} ' + context[:2000] for n in range(1000)])\\n```",
    "```repl compose\\nanswer['content'] = len(found)\\nanswer['ready'] = True\\n```",
])
rlm = create_rlm(root, Scripted(replies=["a reply of some length " * 20]), direct_below=0)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DevServer]:
    (tmp_path / "graph.py").write_text(GRAPH)
    (tmp_path / "langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": {"rlm": "./graph.py:rlm"}}))
    server = DevServer(tmp_path, tmp_path / "home")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_stream_of_a_thousand_calls_stays_below_500_kb(server: DevServer) -> None:
    given = {"question": "How many?", "context": "some text\n" * 1_000}
    modes = ["values", "updates", "custom", "messages-tuple"]
    body = {"assistant_id": "rlm", "input": given, "stream_mode": modes, "stream_subgraphs": True}
    request = urllib.request.Request(
        f"{server.url}/runs/stream", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=180) as response:
        sent = response.read().decode()
    data = [line.removeprefix("data: ") for line in sent.splitlines() if line.startswith("data: {")]
    events = [event for event in map(json.loads, data) if "event" in event]
    assert '"answer":"1000"' in sent.replace(" ", "")
    assert len(sent) < 500_000
    kinds = Counter(event["event"] for event in events)
    assert (kinds["run"], kinds["cell"], kinds["answer"]) == (1, 2, 1)
    assert kinds["progress"] >= 1
    assert sum(len(json.dumps(event)) for event in events) < 15_000, "a few kB for 1,000 calls"
