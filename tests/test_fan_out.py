"""A budget of each kind is hit in the middle of a fan-out of 500 with nested runs; the model server's count decides."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from model_server import Answer, ModelServer, Request, usage
from rlm_graph import Limits, ledger

FAN_OUT = """\
```repl chunk
import json, threading
from concurrent.futures import ThreadPoolExecutor

line = "a line that is to be read. " * 8
one_is_answered = threading.Event()

def one(n):
    try:
        if n < 10:
            return rlm_query("How many lines are read?", context=f"text {n}: {line * 9}")
        if n >= 250:
            one_is_answered.wait()  # so that the limit comes while there are calls of both kinds
        return llm_query(f"plain {n:03}: {line}")
    except Exception as error:
        return type(error).__name__
    finally:
        if n < 10:
            one_is_answered.set()

with ThreadPoolExecutor(500) as threads:
    got = list(threads.map(one, range(500)))
got.append(one(500))
answer["content"] = json.dumps(got)
answer["ready"] = True
```"""
NESTED = """\
```repl chunk
got = []
for n in range(4):
    try:
        got.append(llm_query(f"leaf {n} of {context[:6]}: {context[8:224]}"))
    except BudgetExceeded:
        break
answer["content"] = f"{len(got)} lines"
answer["ready"] = True
```"""
GIVEN: Any = {"question": "q", "context": "some text to work on. " * 100}
PRICES = {"root": (1.0, 2.0), "sub": (1.0, 2.0)}
AT_ONCE = 64


class Counted:
    """The script of both models, and what their replies have come to."""

    def __init__(self) -> None:
        self.by_model: dict[str, Counter[str]] = {"root": Counter(), "sub": Counter()}

    def __call__(self, request: Request) -> Answer:
        code = {"root": FAN_OUT, "sub": NESTED}[request.model] if len(request.messages) > 1 else ""
        answer = Answer(code or f"read {request.prompt[:9]}", latency=0.01)
        said = usage(request, answer)
        read, written = said["prompt_tokens"], said["completion_tokens"]
        self.by_model[request.model].update(calls=1, input_tokens=read, output_tokens=written)
        return answer

    def cost(self) -> float:
        priced = [(counted, *PRICES[model]) for model, counted in self.by_model.items()]
        return sum(c["input_tokens"] * read + c["output_tokens"] * written for c, read, written in priced) / 1_000_000

    def tokens(self) -> int:
        return sum(counted["input_tokens"] + counted["output_tokens"] for counted in self.by_model.values())

    def is_usage(self, told: dict[str, Any]) -> None:
        by_model = {name: {k: v for k, v in group.items() if k != "cost"} for name, group in told["by_model"].items()}
        assert by_model == self.by_model
        assert told["input_tokens"] + told["output_tokens"] == self.tokens()
        assert told["cost"] == pytest.approx(self.cost())


def ends_of_plain_calls(out: dict[str, Any], server: ModelServer) -> Counter[str]:
    """How many of the cell's plain calls ended how: those not refused reached the server, once, and none besides.

    The last one was asked when all others had been told how they ended.
    """
    ends = json.loads(out["answer"])
    assert len(ends) == 501 and ends[500] == "BudgetExceeded"
    plain = dict(enumerate(ends[10:], 10))
    asked = Counter(int(record.prompt[6:9]) for record in server.seen if record.prompt.startswith("plain"))
    assert asked == Counter(n for n, end in plain.items() if end != "BudgetExceeded")
    assert {end for n, end in plain.items() if end != f"read plain {n:03}"} <= {"BudgetExceeded", "SubCallError"}
    leaves = sum(record.prompt.startswith("leaf") for record in server.seen)
    assert leaves > 0
    assert out["usage"]["calls"] == asked.total() + leaves + sum(end != "BudgetExceeded" for end in ends[:10])
    return Counter(end.partition(" ")[0] for end in plain.values())


@pytest.mark.parametrize(
    ("how", "limit", "most"),
    [
        ("ainvoke", "max_calls", 400),
        ("ainvoke", "max_tokens", 38_000),
        ("ainvoke", "max_cost", 0.04),
        ("invoke", "max_tokens", 38_000),
    ],
)
def test_no_call_starts_beyond_a_budget_and_usage_is_what_the_server_counted(
    scene: Callable[..., Any], how: str, limit: str, most: float
) -> None:
    counted = Counted()
    s = scene(counted, counted)
    rlm = s.rlm(limits=Limits(**{limit: most}), prices=PRICES)
    out = asyncio.run(rlm.ainvoke(GIVEN)) if how == "ainvoke" else rlm.invoke(GIVEN)
    counted.is_usage(out["usage"])
    ends = ends_of_plain_calls(out, s.server)
    assert ends["read"] >= 240 and ends["BudgetExceeded"] > 1 and ends["SubCallError"] == 0
    used = {"max_calls": out["usage"]["calls"], "max_tokens": counted.tokens(), "max_cost": counted.cost()}[limit]
    assert used == most if limit == "max_calls" else most * 0.7 < used <= most  # a quarter was left to the next turn
    assert out["stop_reason"] == limit
    [told] = out["warnings"]
    assert told.startswith(f"{limit}: ") and f"; {out['usage']['refused']} calls were refused" in told
    assert told.endswith("so the answer may miss what they were to read")


def test_no_call_starts_when_the_time_is_over_and_what_was_cut_off_is_told(
    scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over at a moment when the server holds back all calls that are in flight."""

    class Clock(asyncio.SelectorEventLoop):
        ahead = 0.0

        def time(self) -> float:
            return super().time() + self.ahead

        def end_time(self) -> None:
            self.ahead = began + 600 - super().time()

    clock, counted = Clock(), Counted()
    began, held, seen = clock.time(), [], list[int]()
    monkeypatch.setattr(ledger, "time", SimpleNamespace(monotonic=clock.time))

    def sub(request: Request) -> Answer:
        if not held and request.prompt < "plain 320":
            return counted(request)
        held.append(request.number)
        if len(held) == AT_ONCE:
            seen.append(request.number + 1)
            clock.call_soon_threadsafe(clock.end_time)
        return Answer(latency=60)

    s = scene(counted, sub)
    rlm = s.rlm(limits=Limits(max_seconds=600, max_concurrency=AT_ONCE), prices=PRICES)
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        out = runner.run(rlm.ainvoke(GIVEN))
    counted.is_usage(out["usage"])
    ends = ends_of_plain_calls(out, s.server)
    assert ends["read"] >= 240 and ends["BudgetExceeded"] > 1
    assert [s.server.asked()] == seen
    assert s.server.asked("sub") == out["usage"]["by_model"]["sub"]["calls"] + AT_ONCE
    assert out["stop_reason"] == "max_seconds"
    cut_off, told = out["warnings"]
    assert cut_off.startswith(f"{AT_ONCE} model calls were cut off in flight")
    assert told.startswith("max_seconds: 600.") and f"; {out['usage']['refused']} calls were refused" in told
    assert f", {out['usage']['failed']} calls failed, so the answer may miss what they were to read" in told
