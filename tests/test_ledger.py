"""The ledger by itself: never above a limit, never negative, always settled; shares; rebuilt from the record."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.stores import InMemoryByteStore

from rlm_graph import Limits
from rlm_graph.ledger import Amount, Ledger, Left, Spent, Wanted
from rlm_graph.state import Reply
from rlm_graph.tree import Tree

MAX = Limits(max_calls=12, max_tokens=1_000, max_cost=1.0)


def spent(tokens: int, cost: float | None = 0.0, depth: int = 1, model: str = "m") -> Spent:
    return Spent(model, depth, tokens, 0, cost)


def within(left: Left) -> bool:
    return left.calls >= 0 and left.tokens is not None and left.tokens >= 0 and left.cost is not None and left.cost >= 0


ONE_CALL = st.tuples(
    st.integers(1, 400),  # tokens that it may come to
    st.integers(0, 100),  # what it does come to, in hundredths of that
    st.sampled_from(["settle", "settle twice", "fail", "cancel"]),
)


@settings(max_examples=200)
@given(st.lists(ONE_CALL, max_size=30), st.integers(0, 3), st.randoms(use_true_random=False))
def test_in_any_order_of_events_nothing_exceeds_a_limit_and_all_is_settled(
    calls: list[tuple[int, int, str]], at_once: int, rng: random.Random
) -> None:
    """A call that waits asks again only when it is woken: so none is forgotten, and nobody has to look."""
    ledger = Ledger(MAX)
    coming, asleep, in_flight = [(str(n), *call) for n, call in enumerate(calls)], dict[str, Any](), list[Any]()

    def wake(id: str) -> None:
        if id in asleep:
            coming.append(asleep.pop(id))

    while coming or in_flight:
        if asleep and rng.random() < 0.1:  # it is cancelled while it waits
            del asleep[id := rng.choice(list(asleep))]
            ledger.release(id)
        elif coming and (not in_flight or rng.random() < 0.5):
            id, most, *_ = step = coming.pop(rng.randrange(len(coming)))
            if ledger.reserve([id]) == "reserved":
                asleep[id] = step  # before it is told to wait it may be woken
                less = [Amount(part, part / 1_000) for part in (most // 2, most // 4, most // 8)]
                verdict = ledger.hold(
                    id, Amount(most, most / 1_000), less=less, at_once=at_once, wake=partial(wake, id)
                )
                if verdict != "later":
                    del asleep[id]
                if verdict == "held":
                    in_flight.append((id, ledger.held(id).tokens, *step[2:]))
                elif verdict != "later":
                    ledger.refuse([id])
            else:
                ledger.refuse([id])
        else:
            id, most, share, ends = in_flight.pop(rng.randrange(len(in_flight)))
            ended(ledger, id, most * share // 100, ends)
        assert within(ledger.left())
    assert not asleep
    usage = ledger.usage()
    assert ledger.left().calls == 12 - usage["calls"]
    assert ledger.left().tokens == 1_000 - usage["input_tokens"]  # nothing is held any more
    assert usage["calls"] + usage["refused"] >= len(calls)


def ended(ledger: Ledger, id: str, tokens: int, ends: str) -> None:
    if ends == "cancel":
        ledger.release(id)
        return
    for _ in range(1 + (ends == "settle twice")):
        failed = ends == "fail"
        ledger.settle(id, None if failed else spent(tokens, tokens / 1_000), failed=failed)


@settings(max_examples=20)
@given(st.lists(ONE_CALL, min_size=8, max_size=40))
def test_in_any_number_of_threads_nothing_exceeds_a_limit(calls: list[tuple[int, int, str]]) -> None:
    ledger = Ledger(MAX)
    seen: list[Left] = []

    def one(numbered: tuple[int, tuple[int, int, str]]) -> None:
        number, (most, share, ends) = numbered
        id = str(number)
        if ledger.reserve([id]) != "reserved":
            return
        while (verdict := ledger.hold(id, Amount(most, most / 1_000))) == "later":
            seen.append(ledger.left())
        if verdict == "held":
            seen.append(ledger.left())
            ended(ledger, id, most * share // 100, ends)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, enumerate(calls)))
    assert all(map(within, seen))
    assert ledger.left().tokens == 1_000 - ledger.usage()["input_tokens"]


def test_a_call_that_fits_only_when_others_come_to_less_waits_for_them() -> None:
    ledger = Ledger(Limits(max_tokens=100))
    assert ledger.hold("a", Amount(80)) == "held"
    assert ledger.hold("b", Amount(80)) == "later"
    ledger.settle("a", spent(10))
    assert ledger.hold("b", Amount(80)) == "held"
    ledger.settle("b", spent(80))
    assert ledger.hold("c", Amount(80)) == "max_tokens"
    assert ledger.limit_reached() == "max_tokens"


def test_the_call_that_has_waited_longest_is_woken_and_its_answer_wakes_the_next() -> None:
    ledger, woken = Ledger(Limits(max_tokens=100)), list[str]()

    def ask(id: str, most: int) -> str:
        return ledger.hold(id, Amount(most), wake=lambda: woken.append(id))

    assert [ask(*call) for call in [("a", 60), ("b", 60), ("c", 30), ("d", 60), ("e", 5)]] == ["held", *["later"] * 4]
    assert woken == []
    ledger.release("b")  # it was cancelled
    assert woken == ["c"]
    assert (ask("c", 30), woken) == ("held", ["c", "d"])
    assert (ask("d", 60), woken) == ("later", ["c", "d"])
    ledger.settle("a", spent(60))
    assert woken == ["c", "d", "d"]
    assert (ask("d", 60), woken[3:]) == ("max_tokens", ["e"])
    assert ask("e", 5) == "held"


@pytest.mark.parametrize(
    "gives_back",
    [
        lambda ledger: ledger.settle("a", spent(10)),
        lambda ledger: ledger.turn("a", spent(10)),
        lambda ledger: ledger.settle_remote("a", remote_usage()),
        lambda ledger: ledger.release("a"),
        lambda ledger: ledger.refuse(["a"]),
    ],
)
def test_whatever_gives_room_back_wakes_who_waits_for_it(gives_back: Any) -> None:
    ledger, woken = Ledger(Limits(max_tokens=100)), list[bool]()
    assert ledger.hold("a", Amount(80)) == "held"
    assert ledger.hold("b", Amount(80), wake=lambda: woken.append(True)) == "later"
    gives_back(ledger)
    assert woken and ledger.hold("b", Amount(80)) == "held"


def test_a_call_whose_loop_is_closed_holds_up_nobody_behind_it() -> None:
    ledger, woken = Ledger(Limits(max_tokens=100)), list[bool]()
    loop = asyncio.new_event_loop()
    loop.close()
    ledger.hold("a", Amount(80))
    assert ledger.hold("b", Amount(80), wake=lambda: loop.call_soon_threadsafe(print)) == "later"
    assert ledger.hold("c", Amount(80), wake=lambda: woken.append(True)) == "later"
    ledger.settle("a", spent(10))
    assert woken and ledger.hold("c", Amount(80)) == "held"


def test_calls_that_would_wait_share_the_room_that_there_is() -> None:
    ledger = Ledger(Limits(max_tokens=1_000))
    sizes: Any = {"most": Amount(600), "less": [Amount(300), Amount(100), Amount(50)], "at_once": 2}
    assert [ledger.hold(id, **sizes) for id in "abcde"] == ["held", "held", "held", "later", "later"]
    assert [ledger.held(id).tokens for id in "abc"] == [600, 300, 100]
    ledger.settle("a", spent(200))  # 400 are free, and two wait
    assert [ledger.hold(id, **sizes) for id in "de"] == ["held", "held"]
    assert [ledger.held(id).tokens for id in "de"] == [100, 300]
    ledger.settle("b", spent(200))
    ledger.settle("c", spent(100))
    ledger.settle("d", spent(100))
    ledger.settle("e", spent(300))
    assert ledger.hold("f", **sizes) == "held"
    assert ledger.held("f") == Amount(100)


def test_what_came_counts_also_where_it_is_more_than_was_held() -> None:
    ledger = Ledger(Limits(max_tokens=100))
    ledger.hold("a", Amount(50))
    ledger.settle("a", spent(400))
    assert (ledger.usage()["input_tokens"], ledger.limit_reached()) == (400, "max_tokens")
    assert ledger.hold("b", Amount(1)) == "max_tokens"


def test_calls_leave_room_for_the_top_s_next_turn() -> None:
    ledger = Ledger(Limits(max_tokens=1_000))
    assert ledger.hold("turn", Amount(200), Amount(200)) == "held"
    ledger.turn("turn", spent(100, depth=0))
    assert ledger.left().tokens == 700
    assert ledger.hold("call", Amount(701)) == "max_tokens"
    assert ledger.hold("next turn", Amount(900), Amount(0)) == "held"


def test_they_leave_no_more_than_a_quarter_of_the_limit() -> None:
    ledger = Ledger(Limits(max_tokens=1_000, max_cost=1.0))
    ledger.hold("turn", Amount(100, 0.1), Amount(9_000, 9.0))
    ledger.release("turn")
    assert (ledger.left().tokens, ledger.left().cost) == (750, 0.75)


def test_a_call_makes_do_with_less_where_the_most_that_it_can_come_to_no_longer_fits() -> None:
    ledger = Ledger(Limits(max_tokens=100))
    sizes: Any = {"most": Amount(80), "less": [Amount(60), Amount(40)]}
    assert ledger.hold("a", **sizes) == "held"
    ledger.settle("a", spent(50))
    assert ledger.hold("b", **sizes) == "held"
    assert ledger.held("b") == Amount(40)
    ledger.settle("b", spent(40))
    assert ledger.hold("c", **sizes) == "max_tokens"


def test_prompts_that_do_not_fit_are_refused_before_any_of_them_is_sent() -> None:
    ledger = Ledger(Limits(max_tokens=1_000, max_cost=1.0))
    assert ledger.reserve(["a", "b"], need=Amount(1_001)) == "max_tokens"
    assert ledger.reserve(["a", "b"], need=Amount(10, 1.01)) == "max_cost"
    assert ledger.usage()["refused"] == 0  # who asks refuses them, by the ids under which they are on record
    assert ledger.reserve(["c"], need=Amount(10, 0.5)) == "reserved"
    assert ledger.limit_reached() is None  # it made do with fewer


def test_a_share_is_held_until_the_run_elsewhere_is_settled() -> None:
    ledger = Ledger(Limits(max_calls=11, max_tokens=1_000, max_cost=2.0))
    ledger.reserve(["remote"])
    assert ledger.lend("remote", parts=2) == {"max_calls": 5, "max_tokens": 500, "max_cost": 1.0}
    assert (ledger.left().calls, ledger.left().tokens, ledger.left().cost) == (5, 500, 1.0)
    group = {"calls": 3, "input_tokens": 40, "output_tokens": 2, "cost": 0.25}
    usage = {
        "turns": 2,
        "calls": 3,
        "failed": 1,
        "refused": 0,
        "input_tokens": 40,
        "output_tokens": 2,
        "cost": 0.25,
        "by_model": {"m": group},
        "by_depth": {"0": group},
    }
    for _ in range(2):
        ledger.settle_remote("remote", usage, depth=1)
    assert (ledger.left().calls, ledger.left().tokens, ledger.left().cost) == (7, 958, 1.75)
    told = ledger.usage()
    assert (told["turns"], told["calls"], told["cost"], told["by_depth"]) == (2, 4, 0.25, {"1": group})


def test_an_unknown_price_is_said_and_not_taken_for_zero() -> None:
    ledger = Ledger(Limits())
    ledger.settle("a", spent(1, 0.5, model="priced"))
    assert ledger.usage()["cost"] == 0.5
    ledger.settle("b", spent(1, None, model="other"))
    usage = ledger.usage()
    assert (usage["cost"], usage["by_model"]["priced"]["cost"], usage["by_model"]["other"]["cost"]) == (None, 0.5, None)


def test_the_clock_stands_while_a_human_is_asked() -> None:
    ledger = Ledger(Limits(max_seconds=100))
    ledger.go_on(seconds=60.0)
    ledger.pause()
    paused = ledger.seconds()
    assert 60 <= paused == ledger.seconds()
    ledger.go_on()
    assert (ledger.left().seconds or 0) <= 40


def test_a_refused_call_holds_nothing_of_what_was_lent_for_it() -> None:
    ledger = Ledger(Limits(max_calls=99, max_tokens=1_000))
    ledger.reserve(["remote"])
    ledger.lend("remote", parts=2)
    ledger.refuse(["remote"], "max_tokens")
    assert (ledger.left().calls, ledger.left().tokens) == (99, 1_000)


async def test_another_process_makes_the_same_ledger_from_the_record() -> None:
    store = InMemoryByteStore()
    limits = Limits(max_tokens=1_000, max_cost=1.0, max_seconds=60.0)
    tree = Tree("run.0", limits, store, 4, lasting=True)
    tree.ledger.go_on(7.0)
    await tree.record("a", Reply(text="ok"), spent(10, 0.1))
    await tree.record("b", Reply(error="SubCallError", message="…"), None)
    await tree.record("c", Reply(error="BudgetExceeded", message="…"))
    await tree.refuse({"d": Reply(error="BudgetExceeded", message="…")}, "max_tokens")
    await tree.record_turn("t", message(), spent(30, 0.3, depth=0))
    await tree.record_remote("r", Reply(text="far"), remote_usage(), 1)
    again = Tree("run.0", limits, store, 4, lasting=True)
    for _ in range(2):
        await again.rebuild()
    before, after = tree.ledger.usage(), again.ledger.usage()
    assert {**before, "seconds": 0} == {**after, "seconds": 0}
    assert (after["calls"], after["failed"], after["refused"], after["input_tokens"]) == (8, 1, 2, 45)
    assert after["seconds"] >= 7.0
    assert again.ledger.limit_reached() == "max_tokens"


def message() -> Any:
    from langchain_core.messages import AIMessage

    return AIMessage("turn")


def remote_usage() -> dict[str, Any]:
    group = {"calls": 5, "input_tokens": 5, "output_tokens": 0, "cost": 0.0}
    totals = {"turns": 1, "calls": 5, "failed": 0, "refused": 0, "input_tokens": 5, "output_tokens": 0, "cost": 0.0}
    return {**totals, "by_model": {"m": group}, "by_depth": {"0": group}}


async def test_what_outlives_the_time_is_cut_off_and_a_time_out_of_its_own_is_not_taken_for_that() -> None:
    from rlm_graph.tree import NoRoom

    tree = Tree("run.0", Limits(max_seconds=0.05), InMemoryByteStore(), 4, lasting=False)
    tree.ledger.go_on()
    with pytest.raises(NoRoom) as cut:
        await tree.in_time(asyncio.sleep(30))
    assert (cut.value.limit, cut.value.cut_off, tree.ledger.limit_reached()) == ("max_seconds", True, "max_seconds")

    async def slow_server() -> None:
        raise TimeoutError("the server's own")

    with pytest.raises(TimeoutError, match="the server's own"):
        await Tree("run.1", Limits(max_seconds=60), InMemoryByteStore(), 4, lasting=False).in_time(slow_server())


def test_what_waits_for_room_is_woken_by_what_gives_it_back_on_another_loop() -> None:
    tree = Tree("run.0", Limits(max_tokens=100), InMemoryByteStore(), 4, lasting=False)
    waits, came, tries = threading.Event(), list[int](), list[str]()
    hold = tree.ledger.hold

    def counted(*args: Any) -> Any:
        tries.append(verdict := hold(*args))
        if verdict == "later":
            waits.set()
        return verdict

    tree.ledger.hold = counted  # type: ignore[method-assign]

    async def call(id: str, waited_for: bool) -> None:
        async with tree.room(id, lambda: Wanted(Amount(80))):
            if waited_for:
                await asyncio.to_thread(waits.wait, 30)
            came.append(len(tries))
            tree.ledger.settle(id, spent(10))

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(asyncio.run, call("a", True))
        while not tries:
            time.sleep(0.001)
        threads.submit(asyncio.run, call("b", False)).result(30)
        first.result(30)
    assert (tries, came) == (["held", "later", "held"], [2, 3])


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"max_cost": 0}, {"max_seconds": -1.0}, {"max_cost": float("nan")}])
def test_a_budget_of_nothing_is_an_error_that_names_it(bad: dict[str, Any]) -> None:
    [name] = bad
    with pytest.raises(ValueError, match=rf"Limits\({name}=.*\): it must be"):
        Limits(**bad)
