"""`retry_model`: answers in doubt are asked for again of another model, at its own price and within its own window."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from conftest import chat
from model_server import Answer, Request, scripted
from rlm_graph import Limits, assert_replays, create_rlm, read_trace, tracing, trees
from rlm_graph.errors import ModelError, PriceError
from rlm_graph.kernel.kernel import payload_of
from rlm_graph.kernel.session import close_all
from rlm_graph.offline import OfflineRoot
from rlm_graph.state import Call
from rlm_graph.trace.compare import compare
from rlm_graph.trace.handover import state_at
from test_checked_answers import TEXT, answering, one_cell, payer, results, texts_of

CODE = (
    "got = sub_call(split(by='chapter'), 'Who paid?')\nanswer['content'] = [[r.answer, r.verified, r.why] for r in got]"
)
PRICES = {"root": (0.0, 0.0), "sub": (1.0, 2.0), "strong": (30.0, 60.0)}
THREAD: Any = {"configurable": {"thread_id": "1"}}
GIVEN: Any = {"question": "q", "context": TEXT}
ODD = {f"Payer{i}" for i in (1, 3, 5, 7)}


def of_odd_chapters_invented(id: str, text: str) -> dict[str, Any]:
    right = payer(id, text)
    return {"answer": "A", "quotes": ["never said by anyone"]} if right["answer"] in ODD else right


def scene_with(scene: Any, sub: Any = None, strong: Any = None, code: str = CODE) -> Any:
    others = {"strong": strong or answering(payer), "other": strong or answering(payer)}
    return scene(one_cell(code), sub or answering(of_odd_chapters_invented), others)


def rlm_of(s: Any, **more: Any) -> Any:
    return s.rlm(**{"retry_model": chat(s.server, "strong"), "prices": PRICES, **more})


async def test_second_tries_go_to_the_other_model_and_first_ones_do_not(scene: Any) -> None:
    s = scene_with(scene)
    out = await rlm_of(s).ainvoke(GIVEN)
    assert [row[:2] for row in json.loads(out["answer"])] == [[f"Payer{i}", True] for i in range(8)]
    again = Counter((r.model, "asked before" in r.prompt) for r in s.server.seen)
    assert again == {("root", False): 1, ("sub", False): 8, ("strong", True): 4}
    assert all("never said by anyone" in r.prompt for r in s.server.seen if r.model == "strong")


async def test_without_one_the_sub_model_is_asked_again(scene: Any) -> None:
    s = scene_with(scene)
    await s.rlm().ainvoke(GIVEN)
    assert (s.server.asked("sub"), s.server.asked("strong")) == (16, 0)


@pytest.mark.parametrize("invoke", ["invoke", "ainvoke"])
async def test_the_usage_of_each_is_what_the_server_counted_at_its_price(scene: Any, invoke: str) -> None:
    s = scene_with(scene)
    rlm = rlm_of(s)
    out = await rlm.ainvoke(GIVEN) if invoke == "ainvoke" else rlm.invoke(GIVEN)
    told = {name: group["calls"] for name, group in out["usage"]["by_model"].items()}
    assert told == {name: s.server.asked(name) for name in ("root", "sub", "strong")}
    for name, (dollars_in, dollars_out) in PRICES.items():
        group = out["usage"]["by_model"][name]
        cost = (group["input_tokens"] * dollars_in + group["output_tokens"] * dollars_out) / 1e6
        assert group["cost"] == pytest.approx(cost), name
    assert out["usage"]["by_model"]["strong"]["cost"] > out["usage"]["by_model"]["sub"]["cost"] > 0
    assert out["usage"]["cost"] == pytest.approx(sum(g["cost"] for g in out["usage"]["by_model"].values()))
    assert out["usage"]["by_depth"]["1"]["calls"] == 12


async def test_what_it_gets_wrong_too_is_asked_of_it_again_and_then_marked(scene: Any) -> None:
    s = scene_with(scene, strong=answering(of_odd_chapters_invented))
    out = await rlm_of(s, limits=Limits(max_retries=2)).ainvoke(GIVEN)
    rows = json.loads(out["answer"])
    assert [verified for _, verified, _ in rows] == [True, False] * 4 and "does not stand" in rows[1][2]
    assert (s.server.asked("sub"), s.server.asked("strong")) == (8, 8)


async def test_calls_that_failed_go_to_it_as_well(scene: Any) -> None:
    s = scene_with(scene, sub=lambda _: Answer("down", status=500))
    out = await rlm_of(s).ainvoke(GIVEN)
    assert [row[0] for row in json.loads(out["answer"])] == [f"Payer{i}" for i in range(8)]
    assert (s.server.asked("sub"), s.server.asked("strong")) == (8, 8)


async def test_a_resumed_run_does_the_same_and_pays_nothing_twice(
    scene: Any, runs_left_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene_with(scene)
    checkpointer, given = InMemorySaver(), GIVEN
    for _ in range(2):  # before each of its two looks at the answers, all that lives in this process goes
        await rlm_of(s, checkpointer=checkpointer).ainvoke(given, THREAD, interrupt_before=["verify"])
        close_all()
        monkeypatch.setattr(trees, "_trees", OrderedDict())
        given = None
    out = await rlm_of(s, checkpointer=checkpointer).ainvoke(None, THREAD)
    assert [row[0] for row in json.loads(out["answer"])] == [f"Payer{i}" for i in range(8)]
    assert out["warnings"] == []
    assert (s.server.asked("sub"), s.server.asked("strong")) == (8, 4)
    assert {name: group["calls"] for name, group in out["usage"]["by_model"].items()} == {
        "root": 1,
        "sub": 8,
        "strong": 4,
    }


async def test_what_does_not_fit_its_window_is_marked_and_says_so(scene: Any) -> None:
    s = scene_with(scene)
    small = chat(s.server, "strong", profile={"max_input_tokens": 10})
    out = await rlm_of(s, retry_model=small).ainvoke(GIVEN)
    rows = json.loads(out["answer"])
    assert [verified for _, verified, _ in rows] == [True, False] * 4
    assert "does not stand" in rows[1][2] and "does not fit the model that is asked again" in rows[1][2]
    assert (s.server.asked("strong"), out["stop_reason"]) == (0, "answered")


async def test_its_window_is_measured_by_what_is_still_open(scene: Any) -> None:
    """One record of 120 is asked for again: the whole pack would not fit."""
    rows = [f"record {i}: the colour is {'red' if i % 3 else 'blue'}" for i in range(120)]

    def sub(request: Request) -> str:
        found = {id: {"id": id, "answer": text.rpartition(" ")[2]} for id, text in texts_of(request).items()}
        return results(*(row for id, row in found.items() if id != "7" or len(found) == 1))

    code = "got = sub_call(context, 'Which colour?', pack=True)\nanswer['content'] = str(all(r.verified for r in got))"
    s = scene_with(scene, sub, sub, code)
    strong = chat(s.server, "strong", profile={"max_input_tokens": 200})
    out = await rlm_of(s, retry_model=strong).ainvoke({"question": "q", "context": rows})
    assert (out["answer"], s.server.asked("sub"), s.server.asked("strong")) == ("True", 1, 1)


async def test_room_is_reserved_by_its_price(scene: Any) -> None:
    """Fifty cents are ample for the sub-model, and not for one call of a model at a dollar a token."""
    prices = {**PRICES, "strong": (1e6, 1e6)}
    s = scene_with(scene)
    out = await rlm_of(s, prices=prices, limits=Limits(max_cost=0.5)).ainvoke(GIVEN)
    rows = json.loads(out["answer"])
    assert [verified for _, verified, _ in rows] == [True, False] * 4 and "no call was left" in rows[1][2]
    assert (s.server.asked("sub"), s.server.asked("strong")) == (8, 0)
    assert 0 < out["usage"]["cost"] < 0.5


@pytest.mark.parametrize("more", [{"limits": Limits(max_cost=1.0)}, {}])
async def test_a_bound_on_cost_needs_its_price(scene: Any, more: dict[str, Any]) -> None:
    s = scene_with(scene)
    prices = {name: price for name, price in PRICES.items() if name != "strong"}
    with pytest.raises(PriceError, match="none is known for 'strong'"):
        await rlm_of(s, prices=prices, **more).ainvoke({**GIVEN, "budget": {"max_cost": 0.5}})


async def test_a_cache_knows_which_model_was_asked_again(scene: Any) -> None:
    s = scene_with(scene)
    cache: Any = InMemoryCache()
    for name in ("strong", "other", "other"):
        await rlm_of(s, cache=cache, retry_model=chat(s.server, name)).ainvoke(GIVEN)
    assert [s.server.asked(name) for name in ("sub", "strong", "other")] == [8, 4, 4]


async def test_a_second_opinion_is_the_sub_model_s_and_what_is_in_doubt_the_other_s(scene: Any) -> None:
    tries: Counter[str] = Counter()

    def sub(request: Request) -> str:
        tries[request.prompt] += 1
        answer = "Nobody" if "house 3 " in request.prompt and tries[request.prompt] == 2 else None
        return answering(lambda id, text: {**payer(id, text), **({"answer": answer} if answer else {})})(request)

    s = scene_with(scene, sub)
    out = await rlm_of(s, verify="twice").ainvoke(GIVEN)
    assert [row[:2] for row in json.loads(out["answer"])] == [[f"Payer{i}", True] for i in range(8)]
    assert (s.server.asked("sub"), s.server.asked("strong")) == (16, 1)


async def test_a_human_is_told_who_will_be_asked_again_and_at_what_cost(scene: Any, runs_left_waiting: None) -> None:
    s = scene_with(scene)
    rlm = rlm_of(s, checkpointer=InMemorySaver(), approve_above=8)
    out = await rlm.ainvoke(GIVEN, THREAD)
    [interrupt] = out["__interrupt__"]
    assert (interrupt.value["model"], interrupt.value["calls"]) == ("strong", 4)
    assert 4 * 500 * 60 / 1e6 < interrupt.value["cost"] < 4 * 600 * 60 / 1e6
    out = await rlm.ainvoke(Command(resume="approve"), THREAD)
    assert all(verified for _, verified, _ in json.loads(out["answer"])) and s.server.asked("strong") == 4


def test_it_is_part_of_what_a_structured_ask_is_known_by_and_of_nothing_else() -> None:
    sub, plain = Call(1, "sub", "p", {"texts": {}}), Call(2, "llm", "p")
    assert len({payload_of(sub, "m", retry) for retry in (None, "a", "b")}) == 3
    assert len({payload_of(plain, "m", retry) for retry in (None, "a", "b")}) == 1


async def test_a_recorded_run_says_who_was_asked_again_and_replays(scene: Any, tmp_path: Path) -> None:
    for name, retry in (("one", "strong"), ("two", None)):
        s = scene_with(scene)
        with tracing(tmp_path / f"{name}.jsonl", texts=True):
            await rlm_of(s, retry_model=retry and chat(s.server, retry)).ainvoke(GIVEN)
    one, two = (read_trace(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    models = next(row for row in compare(one, two) if row.name == "models")
    assert (models.left, models.right) == ("root, sub, strong", "root, sub")
    asked = Counter(reply["model"] for reply in one.asked.replies.values())
    assert (asked["sub"], asked["strong"]) == (8, 4)
    assert_replays(tmp_path / "one.jsonl")


async def test_a_recorded_run_is_handed_over_to_a_graph_that_has_one(scene: Any, tmp_path: Path) -> None:
    root = scripted(f"```repl chunk\n{CODE}\n```", "```repl compose\nFINAL([r.answer for r in got])\n```")
    others = {"strong": answering(payer)}
    s, heir = (scene(root, answering(of_odd_chapters_invented), others) for _ in range(2))
    with tracing(tmp_path / "run.jsonl", texts=True):
        await rlm_of(s).ainvoke(GIVEN)
    strong = chat(heir.server, "strong")
    rlm = rlm_of(heir, retry_model=strong, checkpointer=InMemorySaver())
    state = await state_at(read_trace(tmp_path / "run.jsonl"), 1, heir.sub, retry_model=strong)
    await rlm.aupdate_state(THREAD, state, as_node="plan")
    out = await rlm.ainvoke(None, THREAD)
    assert json.loads(out["answer"]) == [f"Payer{i}" for i in range(8)] and out["warnings"] == []
    assert (heir.server.asked("sub"), heir.server.asked("strong")) == (0, 0)


def test_it_is_a_model_or_its_name() -> None:
    with pytest.raises(ModelError, match="no provider in the model name 'gpt'"):
        create_rlm(OfflineRoot(), retry_model="gpt")
