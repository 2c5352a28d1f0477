"""What a run is kept in: what `auto` chooses, what an uncaged run says, and what happens where nothing works."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from conftest import kernels
from model_server import scripted
from rlm_graph import create_rlm
from rlm_graph.errors import IsolationError
from rlm_graph.kernel import isolation, pool
from rlm_graph.kernel.session import KernelOptions, Session
from rlm_graph.offline import OfflineRoot

GIVEN = {"question": "q", "context": "some text to work on. " * 100}
WHERE = scripted(
    "```repl compose\nimport os\nanswer['content'] = context and os.uname().nodename; answer['ready'] = True\n```"
)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="cages need Linux")


@LINUX
async def test_auto_is_bubblewrap_and_says_nothing(scene: Any) -> None:
    out = await scene(WHERE).rlm().ainvoke(GIVEN)
    assert (out["answer"], out["warnings"]) == ("cage", [])
    assert isolation.settled("auto") == "bubblewrap"


@LINUX
def test_where_namespaces_are_forbidden_auto_is_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    if isolation.landlock_fault():
        pytest.skip(f"landlock: {isolation.landlock_fault()}")
    monkeypatch.setattr(isolation, "bubblewrap_fault", lambda: "no namespaces")
    isolation.settled.cache_clear()
    assert isolation.settled("auto") == "landlock"


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
    monkeypatch.setattr(isolation, "landlock_fault", lambda: "not in this Linux")
    isolation.settled.cache_clear()
    s = scene(WHERE)
    why = r"bubblewrap: not installed; landlock: not in this Linux.*pip install 'rlm-graph\[sandbox\]'"
    with pytest.raises(IsolationError, match=why):
        await s.rlm().ainvoke(GIVEN)
    assert not s.server.seen and not kernels()


async def test_on_a_mac_the_error_says_what_can_be_done(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "bubblewrap_fault", lambda: "not on Darwin")
    monkeypatch.setattr(isolation, "landlock_fault", lambda: "not on Darwin")
    monkeypatch.setattr("sys.platform", "darwin")
    isolation.settled.cache_clear()
    with pytest.raises(IsolationError, match=r"Cages need Linux.*isolation='process'"):
        isolation.settled("auto")


def test_what_is_no_isolation_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="isolation='docker': one of auto, bubblewrap"):
        create_rlm(OfflineRoot(), isolation="docker")  # type: ignore[arg-type]


async def session_for(run: str) -> Session:
    place = object()
    try:
        return await pool._session(run, KernelOptions(), place)
    finally:
        pool._places.discard(place)


async def test_a_kernel_started_early_serves_its_own_run_alone() -> None:
    # Held as by the nodes of a run: what nobody holds is ended after a while.
    async with pool.holding("early"), pool.holding("nested"):
        pool.prepare("early", KernelOptions())
        pool.prepare("early", KernelOptions())
        pool.prepare("nested", KernelOptions(), parent="early")
        assert len(pool._starting) == 2
        other, own = await session_for("other"), await session_for("early")
        assert len({other.pid, own.pid}) == 2 and set(pool._starting) == {"nested"}
        await asyncio.gather(own.close(), other.close(), pool.close_run("early"))
        assert not pool._starting


async def test_kernels_that_are_only_being_started_count_among_those_that_may_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "MOST", 2)
    async with pool.holding("first"), pool.holding("second"):
        pool.prepare("first", KernelOptions())
        pool.prepare("second", KernelOptions())
        pool.prepare("third", KernelOptions())
        assert set(pool._starting) == {"first", "second"}
        # A run that was faster, and has none, takes the place of the one that was started last.
        other, place = await session_for("other"), object()
        assert set(pool._starting) == {"first"}
        pool._places.add(place)
        pool.prepare("second", KernelOptions())
        own = await session_for("first")
        assert not pool._starting
        pool._places.discard(place)
        await asyncio.gather(own.close(), other.close())


async def test_a_nested_kernel_starts_with_its_call_and_none_outlives_the_run(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    prepare = pool.prepare

    def noted(run: str, options: KernelOptions, *, parent: str | None = None) -> None:
        asked.append((run, parent))
        prepare(run, options, parent=parent)

    monkeypatch.setattr(pool, "prepare", noted)
    code = "got = rlm_query_batched(['q', 'r'], ['one', 'two'])\nanswer['content'] = str(got); answer['ready'] = True"
    own = "answer['content'] = context + str('got' in globals()); answer['ready'] = True"
    s = scene(scripted(f"```repl chunk\n{code}\n```"), lambda request: f"```repl compose\n{own}\n```")
    out = await s.rlm().ainvoke(GIVEN)
    assert out["answer"] == "['oneFalse', 'twoFalse']"
    (root, _), *calls = asked
    assert [parent for _, parent in calls] == [root, root, None, None]
    assert {run for run, parent in calls if parent} == {run for run, parent in calls if not parent}
    assert not kernels() and not pool._starting


@pytest.fixture(autouse=True)
def settled_anew() -> Any:
    yield
    isolation.settled.cache_clear()
