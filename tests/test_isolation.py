"""What a run is kept in: what `auto` chooses, what an uncaged run says, and what happens where nothing works."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from conftest import kernels
from model_server import scripted
from rlm_graph import create_rlm
from rlm_graph.errors import IsolationError
from rlm_graph.kernel import isolation
from rlm_graph.offline import OfflineRoot

GIVEN = {"question": "q", "context": "some text to work on. " * 100}
WHERE = scripted("```repl compose\nimport os\nanswer['content'] = os.uname().nodename; answer['ready'] = True\n```")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="cages need Linux")


@LINUX
async def test_auto_is_bubblewrap_and_says_nothing(scene: Any) -> None:
    out = await scene(WHERE).rlm().ainvoke(GIVEN)
    assert (out["answer"], out["warnings"]) == ("cage", [])
    assert isolation.settled("auto") == "bubblewrap"


async def test_an_uncaged_run_says_once_what_that_does_not_stop(scene: Any) -> None:
    asks = "answer['content'] = rlm_query('q', context='text')\nanswer['ready'] = True"
    nested = scripted(f"```repl compose\n{asks}\n```")
    out = await scene(nested, WHERE).rlm(isolation="process").ainvoke(GIVEN)
    assert out["answer"] != "cage"
    assert out["warnings"] == [isolation.UNCAGED]
    assert "can reach the network" in isolation.UNCAGED


async def test_where_nothing_works_a_run_fails_before_it_costs_anything(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "bubblewrap_fault", lambda: "not installed")
    isolation.settled.cache_clear()
    s = scene(WHERE)
    with pytest.raises(IsolationError, match=r"bubblewrap: not installed.*pip install 'rlm-graph\[sandbox\]'"):
        await s.rlm().ainvoke(GIVEN)
    assert not s.server.seen and not kernels()


async def test_on_a_mac_the_error_says_what_can_be_done(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "bubblewrap_fault", lambda: "not on Darwin")
    monkeypatch.setattr("sys.platform", "darwin")
    isolation.settled.cache_clear()
    with pytest.raises(IsolationError, match=r"Cages need Linux.*isolation='process'"):
        isolation.settled("auto")


def test_what_is_no_isolation_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="isolation='docker': one of auto, bubblewrap"):
        create_rlm(OfflineRoot(), isolation="docker")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def settled_anew() -> Any:
    yield
    isolation.settled.cache_clear()
