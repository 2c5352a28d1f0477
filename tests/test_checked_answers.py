"""`sub_call(…)`: answers in a structure, checked by code, asked again where in doubt, marked where they still are."""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from model_server import Answer, Request, scripted, spread
from rlm_graph import Limits, trees
from rlm_graph.kernel.inside.checked import packed
from rlm_graph.kernel.session import close_all

TEXT = "\n\n".join(f"Chapter {i}. The bill of house {i} was paid by Mr. Payer{i}, who said so." for i in range(8))


def one_cell(code: str) -> Any:
    return scripted(f"```repl chunk\n{code}\nanswer['ready'] = True\n```")


def texts_of(request: Request) -> dict[str, str]:
    """The texts of a structured ask, by id."""
    tagged = re.findall(r'^<text id="(\d+)">\n(.*?)\n</text>$', request.prompt, re.S | re.M)
    return dict(tagged or re.findall(r"^\[(\d+)\] (.*)$", request.prompt, re.M))


def results(*rows: dict[str, Any]) -> str:
    return json.dumps({"results": [{"confidence": 0.9, "quotes": [], **row} for row in rows]})


def answering(one: Callable[[str, str], dict[str, Any]]) -> Callable[[Request], str]:
    return lambda request: results(*({"id": id, **one(id, text)} for id, text in texts_of(request).items()))


def payer(id: str, text: str) -> dict[str, Any]:
    found = re.search(r"Payer\d+", text)
    return {"answer": found and found[0], "quotes": [f"paid by Mr. {found[0]}"] if found else []}


async def run(scene: Any, code: str, sub: Any, text: Any = TEXT, **more: Any) -> tuple[dict[str, Any], Any]:
    s = scene(one_cell(code), sub)
    out = await s.rlm(**more).ainvoke({"question": "q", "context": text})
    return out, s


ASK = "chunks = split(by='chapter')\nresults = sub_call(chunks, 'Who paid?')\n"


async def test_each_chunk_has_an_answer_with_quotes_that_know_their_place(scene: Any) -> None:
    code = ASK + (
        "answer['content'] = [[r.answer, r.verified, r.status, r.quotes[0], r.quotes[0].source, r.quotes[0].start]"
        " for r in results]"
    )
    out, s = await run(scene, code, answering(payer))
    rows = json.loads(out["answer"])
    assert [row[:3] for row in rows] == [[f"Payer{i}", True, "found"] for i in range(8)]
    assert all(source == "text" and TEXT[start : start + len(q)] == q for *_, q, source, start in rows)
    assert s.server.asked("sub") == 8


async def test_what_the_root_is_told_counts_what_was_checked(scene: Any) -> None:
    root = scripted(f"```repl chunk\n{ASK}\n```", "```repl compose\nFINAL('done')\n```")

    def sub(id: str, text: str) -> dict[str, Any]:
        if "Payer1," in text:
            return {"answer": None}
        return {"answer": "x", "quotes": ["never said"]} if "Payer2," in text else payer(id, text)

    s = scene(root, answering(sub))
    await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert "8 results of sub_call: 6 verified, 1 not in their chunk, 1 not verified" in s.root_prompts()[-1]


async def test_a_quote_that_does_not_stand_there_is_asked_again_and_the_model_is_told(scene: Any) -> None:
    def sub(request: Request) -> str:
        if "asked before" not in request.prompt:
            return answering(lambda id, text: {"answer": "A", "quotes": ["Mr. Nobody paid the whole of it"]})(request)
        return answering(payer)(request)

    code = "r = sub_call(context, 'Who paid?')[0]\nanswer['content'] = [r.answer, r.verified, r.why, len(r.quotes)]"
    out, s = await run(scene, code, sub)
    assert json.loads(out["answer"]) == ["Payer0", True, "", 1]
    assert "this quote does not stand in the text: 'Mr. Nobody paid the whole of it'" in s.server.seen[-1].prompt
    assert out["usage"]["calls"] == s.server.asked("sub") == 2


async def test_what_still_fails_is_marked_with_the_reason_and_not_dropped(scene: Any) -> None:
    sub = answering(lambda id, text: {"answer": "A", "quotes": ["Mr. Nobody paid the whole of it"]})
    code = (
        "r = sub_call(context, 'Who paid?')[0]\nanswer['content'] = [r.answer, r.verified, r.status, r.why, r.quotes]"
    )
    out, s = await run(scene, code, sub, limits=Limits(max_retries=1))
    row = json.loads(out["answer"])
    assert row[:3] == ["A", False, "found"] and "does not stand" in row[3] and row[4] == []
    assert s.server.asked("sub") == 2


@pytest.mark.parametrize(
    ("reply", "status", "why"),
    [
        (results({"id": "1", "answer": None}), "absent", ""),
        (results({"id": "1", "answer": ""}), "empty", ""),
        (Answer(refusal="I will not"), "refused", "refused: I will not"),
        (Answer("down", status=500), "failed", "failed"),
        ("I cannot say", "failed", "no result that can be read"),
        (results({"id": "1", "answer": "A", "quotes": ["paid by"], "confidence": 0.1}), "found", "confidence of 0.1"),
        (results({"id": "1", "answer": "A"}), "found", "no quote"),
        (results({"id": "1", "answer": "nobody paid", "quotes": ["was", "a"]}), "found", "does not stand"),
        (results({"id": "1", "answer": "nobody paid", "quotes": ["was"]}), "found", "too short to show"),
        (results({"id": "1", "answer": "paid.", "quotes": ["Paid"]}), "found", ""),
        (results({"id": "1", "answer": 5, "quotes": ["paid by"]}), "failed", "no string"),
    ],
)
async def test_refused_empty_absent_and_failed_are_different_things(
    scene: Any, reply: Any, status: str, why: str
) -> None:
    """The other chunk is answered: a run whose every call failed has no answer (`test_nothing_from_nothing`)."""
    code = (
        "r, other = sub_call(split(by='chapter')[:2], 'Who?')\n"
        "answer['content'] = [r.status, r.verified, r.why, other.answer]"
    )

    def sub(request: Request) -> Any:
        return reply if "house 0" in request.prompt else answering(payer)(request)

    out, _ = await run(scene, code, sub, limits=Limits(max_retries=0))
    told = json.loads(out["answer"])
    assert told[:2] == [status, not why] and why in told[2] and told[3] == "Payer1"


async def test_refused_empty_and_not_found_are_told_apart_for_the_whole_run(scene: Any) -> None:
    deliver = "answer['content'] = 'nothing'"
    half = "sub_call([c for c in split(by='chapter') if c.start < len(context) / 2], 'Who?')\n" + deliver
    absent, empty = (answering(lambda id, text, said=said: {"answer": said}) for said in (None, ""))

    def of_chunk(*numbers: int) -> Callable[[Request], bool]:
        return lambda request: any(f"house {i} " in request.prompt for i in numbers)

    async def warned(code: str, sub: Any) -> list[str]:
        out, _ = await run(scene, code, sub, limits=Limits(max_retries=0))
        assert out["stop_reason"] == "answered"
        return list(out["warnings"])

    refused = await warned(ASK + deliver, lambda r: Answer(refusal="no") if of_chunk(0, 1, 2)(r) else absent(r))
    assert refused[0] == "a sub-model refused 3 of the 8 chunks that it was asked about"
    told = "no answer was found in the {} chunks that a sub-model was asked about: {} do not say, {} were answered "
    told += "with nothing; {} of the text was read"
    assert await warned(ASK + deliver, absent) == [told.format(8, 8, 0, "all")]
    assert await warned(ASK + deliver, lambda r: empty(r) if of_chunk(5)(r) else absent(r)) == [
        told.format(8, 7, 1, "all")
    ]
    assert await warned(half, absent) == [told.format(4, 4, 0, "at least 50 %")]
    assert await warned(ASK + deliver, lambda r: answering(payer)(r) if of_chunk(5)(r) else absent(r)) == []


async def test_a_pydantic_class_of_the_cells_own_comes_back_as_that_class(scene: Any) -> None:
    code = (
        "from pydantic import BaseModel\n"
        "class Bill(BaseModel):\n    payer: str\n    house: int\n"
        "got = [r.answer for r in sub_call(split(by='chapter'), 'Which bill?', schema=Bill)]\n"
        "answer['content'] = str(sum(type(b) is Bill and b.payer == f'Payer{b.house}' for b in got))"
    )

    def sub(id: str, text: str) -> dict[str, Any]:
        number = re.findall(r"Payer(\d+)", text)[0]
        return {"answer": {"payer": f"Payer{number}", "house": int(number)}, "quotes": [f"house {number}"]}

    out, _ = await run(scene, code, answering(sub))
    assert out["answer"] == "8"


async def test_an_answer_against_the_schema_is_asked_again(scene: Any) -> None:
    def sub(request: Request) -> str:
        value: Any = "three" if "asked before" not in request.prompt else 3
        return results({"id": "1", "answer": value, "quotes": ["paid by"]})

    code = "answer['content'] = sub_call(context, 'How many?', schema=int)[0].answer"
    out, s = await run(scene, code, sub)
    assert out["answer"] == "3" and "is not as the schema says" in s.server.seen[-1].prompt


async def test_the_form_goes_to_the_provider_and_a_server_that_refuses_it_is_asked_in_words(scene: Any) -> None:
    forms: list[bool] = []

    def sub(request: Request) -> str | Answer:
        forms.append("response_format" in request.body)
        if forms[-1]:
            return Answer("This response_format type is unavailable", status=400)
        return answering(payer)(request)

    code = "answer['content'] = str([r.answer for r in sub_call(split(by='chapter')[:2], 'Who paid?')])"
    s = scene(one_cell(code), sub)
    s.sub = s.sub.model_copy(update={"temperature": 0.25})
    out = await s.rlm(limits=Limits(max_concurrency=1)).ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], forms) == ("['Payer0', 'Payer1']", [True, False, False])


RECORDS = [f"record {i}: the colour is {'red' if i % 3 else 'blue'}" for i in range(120)]


def colour(id: str, text: str) -> dict[str, Any]:
    return {"answer": text.rpartition(" ")[2], "quotes": []}


async def test_packed_records_take_few_calls_and_each_has_its_own_answer(scene: Any) -> None:
    code = (
        "from typing import Literal\n"
        "got = sub_call(context, 'Which colour?', schema=Literal['red', 'blue'], pack=True)\n"
        "answer['content'] = [[r.answer, r.chunk.source, r.verified] for r in got]"
    )
    out, s = await run(scene, code, answering(colour), RECORDS)
    assert json.loads(out["answer"]) == [["red" if i % 3 else "blue", i, True] for i in range(120)]
    assert s.server.asked("sub") == 1


@pytest.mark.parametrize(
    ("pack", "window", "sizes"),
    [
        (True, None, [300, 300, 114, 6]),
        (True, 16_000, [300, 300, 106, 7, 7]),
        (5_000, None, [277, 277, 148, 4, 4, 4, 4, 2]),
        (False, None, [1] * 720),
    ],
)
def test_a_packed_call_has_three_hundred_chunks_and_sixteen_thousand_tokens_at_most(
    pack: bool | int, window: int | None, sizes: list[int]
) -> None:
    """Seven hundred chunks of 10 tokens, then twenty of 1,000, each with 8 for what stands around it."""
    texts = ["x" * 40] * 700 + ["y" * 4_000] * 20
    assert [len(group) for group in packed(texts, pack, window)] == sizes


async def test_missing_doubled_and_invented_ids_are_found_and_asked_again(scene: Any) -> None:
    asked: list[list[str]] = []

    def sub(request: Request) -> str:
        rows = {id: {"id": id, **colour(id, text)} for id, text in texts_of(request).items()}
        asked.append(list(rows))
        if len(asked) > 1:
            return results(*rows.values())
        del rows["7"]
        return results(*rows.values(), {"id": "9", "answer": "green"}, {"id": "999", "answer": "red"})

    code = "got = sub_call(context, 'Which?', pack=True)\nanswer['content'] = [r.answer for r in got if r.verified]"
    out, _ = await run(scene, code, sub, RECORDS)
    assert json.loads(out["answer"]) == ["red" if i % 3 else "blue" for i in range(120)]
    assert len(asked[0]) == 120 and asked[1:] == [["7", "9"]]


async def test_twice_wants_two_answers_that_agree(scene: Any) -> None:
    answers = iter(["red", "blue", "red"])

    def sub(request: Request) -> str:
        return results({"id": "1", "answer": next(answers), "quotes": ["paid by"]})

    code = "r = sub_call(context, 'Which?')[0]\nanswer['content'] = [r.answer, r.verified]"
    out, s = await run(scene, code, sub, verify="twice")
    assert json.loads(out["answer"]) == ["red", True]
    prompts = [r.prompt for r in s.server.seen if r.model == "sub"]
    assert len(prompts) == 3 and len(set(prompts)) == 1


async def test_off_asks_once_and_verifies_nothing(scene: Any) -> None:
    sub = answering(lambda id, text: {"answer": "A", "quotes": ["never said by anyone"]})
    code = "r = sub_call(context, 'Who?')[0]\nanswer['content'] = [r.answer, r.verified, r.quotes]"
    out, s = await run(scene, code, sub, verify="off")
    assert json.loads(out["answer"]) == ["A", False, []] and s.server.asked("sub") == 1


async def test_a_wave_ends_while_a_thread_goes_on_making_plain_calls(scene: Any) -> None:
    """The pump answers plain calls as long as they come, and the cell waits for what only `verify` gives it."""
    code = (
        "import threading\nstop = threading.Event()\nplain = []\n"
        "def chat():\n    while not stop.is_set():\n        plain.append(llm_query(f'p{len(plain)}'))\n"
        "other = threading.Thread(target=chat); other.start()\n"
        "got = [r.answer for r in sub_call(split(by='chapter'), 'Who paid?')]\n"
        "stop.set(); other.join()\n"
        "answer['content'] = str(len(got)) + str(bool(plain))"
    )
    out, _ = await run(
        scene, code, lambda r: answering(payer)(r) if texts_of(r) else "yes", limits=Limits(max_calls=9_000)
    )
    assert out["answer"] == "8True"


async def test_no_calls_left_for_another_try_marks_what_is_in_doubt(scene: Any) -> None:
    sub = answering(lambda id, text: {"answer": "A", "quotes": ["never said by anyone"]})
    code = "got = sub_call(split(by='chapter'), 'Who?')\nanswer['content'] = [got[0].verified, got[0].why]"
    out, s = await run(scene, code, sub, limits=Limits(max_calls=8))
    verified, why = json.loads(out["answer"])
    assert not verified and "no call was left" in why and s.server.asked("sub") == 8


async def test_asking_again_stands_or_falls_call_by_call(scene: Any) -> None:
    """Eight are asked in one group, twelve calls are allowed: four are asked again, and four are not."""
    sub = answering(lambda id, text: {"answer": "A", "quotes": ["never said by anyone"]})
    code = (
        "got = sub_call(split(by='chapter'), 'Who?')\nanswer['content'] = str(sum('no call was' in r.why for r in got))"
    )
    out, s = await run(scene, code, sub, limits=Limits(max_calls=12))
    assert (out["answer"], s.server.asked("sub")) == ("8", 12)


async def test_an_answer_nested_beyond_reason_fails_and_leaves_the_cell_whole(scene: Any) -> None:
    reply = '{"results": [{"id": "1", "answer": %s, "quotes": ["paid by"]}]}' % ("[" * 900 + "]" * 900)
    code = (
        "r, other = sub_call(split(by='chapter')[:2], 'Who?', schema={})\n"
        "answer['content'] = [r.status, r.why, other.answer]"
    )
    out, _ = await run(
        scene,
        code,
        lambda r: reply if "house 0" in r.prompt else answering(payer)(r),
        limits=Limits(max_retries=0),
    )
    assert json.loads(out["answer"]) == ["failed", "the answer is nested more than 50 levels deep", "Payer1"]


async def test_a_schema_that_unfolds_without_end_is_an_error_of_the_cell(scene: Any) -> None:
    code = (
        "parts = {'l0': {'type': 'string'}}\n"
        "for n in range(1, 32):\n    parts[f'l{n}'] = {'allOf': [{'$ref': f'#/$defs/l{n - 1}'}] * 2}\n"
        "try:\n    sub_call(context, 'Who?', schema={'$ref': '#/$defs/l31', '$defs': parts})\n"
        "except SubCallError as e:\n    answer['content'] = str(e)"
    )
    out, s = await run(scene, code, answering(payer))
    assert "takes more than 10,000 checks" in out["answer"] and s.server.asked("sub") == 0


async def test_calls_beyond_the_budget_raise_as_plain_ones_do(scene: Any) -> None:
    code = (
        "try:\n    sub_call(split(by='chapter'), 'Who?')\nexcept BudgetExceeded as e:\n"
        "    answer['content'] = [len(e.results), e.results[0].status]"
    )
    out, s = await run(scene, code, answering(payer), limits=Limits(max_calls=3))
    assert json.loads(out["answer"]) == [8, "failed"] and s.server.asked("sub") == 0


async def test_no_attempt_is_paid_twice_when_kernel_and_process_are_gone(
    scene: Any, runs_left_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sub(request: Request) -> str:
        if "asked before" not in request.prompt:
            return answering(lambda id, text: {"answer": "A", "quotes": ["never said by anyone"]})(request)
        return answering(payer)(request)

    s = scene(one_cell(ASK + "answer['content'] = [r.answer for r in results]"), sub)
    rlm = s.rlm(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    given: Any = {"question": "q", "context": TEXT}
    for _ in range(2):  # before each of its two looks at the answers, all that lives in this process goes
        await rlm.ainvoke(given, thread, interrupt_before=["verify"])
        close_all()
        monkeypatch.setattr(trees, "_trees", OrderedDict())
        given = None
    out = await rlm.ainvoke(None, thread)
    assert json.loads(out["answer"]) == [f"Payer{i}" for i in range(8)]
    assert out["usage"]["calls"] == s.server.asked("sub") == 16


FACTS = [f"Record {i}: the item of number {i * 37 % 1000} was made in the year {1000 + i}." for i in range(600)]
IN_PACKS_OF_SIX = (
    "got = sub_call(context, 'In which year?', pack=150, quotes=True)\n"
    "bad = [r for r in got if not r.verified]\n"
    "wrong = [r for r in got if r.verified and (r.answer not in r.quotes[0] or r.quotes[0] not in r.chunk)]\n"
    "answer['content'] = [len(got), len(bad), len(wrong), all(r.why for r in bad)]\n"
    "answer['citations'] = got"
)


def year(id: str, text: str) -> dict[str, Any]:
    return {"answer": text.rpartition(" ")[2].rstrip("."), "quotes": [text[text.find("the") :]]}


def faulty(did: Counter[str]) -> Callable[[Request], str | Answer]:
    """A sub-model that invents 20 % of its quotes, drops 5 % of its ids, breaks 5 % of its JSON, fails 5 % of calls."""
    tries: Counter[str] = Counter()

    def sub(request: Request) -> str | Answer:
        texts = texts_of(request)
        tries[request.prompt] += 1
        nth = tries[request.prompt]
        luck = spread(request.prompt, nth)
        did["calls"] += 1
        if luck < 0.05:
            did["failed calls"] += 1
            return Answer("overloaded", status=500)
        rows = []
        for id, text in texts.items():
            row = {"id": id, **year(id, text)}
            one = spread(text, nth * 1000 + len(texts))
            did["rows"] += 1
            if one < 0.2:
                did["invented quotes"] += 1
                row["quotes"] = [f"the item was invented by nobody, and never in {row['answer']}"]
            if one >= 0.95:
                did["dropped ids"] += 1
                continue
            rows.append(row)
        did["broken replies"] += luck < 0.1
        reply = results(*rows)
        return reply[: len(reply) // 2] if luck < 0.1 else reply

    return sub


@pytest.mark.parametrize("invoke", ["invoke", "ainvoke"])
async def test_a_bad_sub_model_is_held_in_check_at_a_bounded_cost(scene: Any, invoke: str) -> None:
    did: Counter[str] = Counter()
    s = scene(one_cell(IN_PACKS_OF_SIX), faulty(did))
    rlm = s.rlm(limits=Limits(max_retries=3))
    given = {"question": "q", "context": FACTS}
    out = await rlm.ainvoke(given) if invoke == "ainvoke" else rlm.invoke(given)
    for fault, of, share in [
        ("invented quotes", "rows", 0.2),
        ("dropped ids", "rows", 0.05),
        ("broken replies", "calls", 0.05),
        ("failed calls", "calls", 0.05),
    ]:
        assert 0.7 * share < did[fault] / did[of] < 1.6 * share, (fault, did)
        assert did[fault] > 5, (fault, did)
    total, bad, wrong, told = json.loads(out["answer"])
    assert (total, wrong, told) == (600, 0, True)
    assert 0 < bad < 12
    assert len(out["citations"]) == 600 - bad
    assert all(FACTS[c["source"]][c["start"] : c["end"]] == c["quote"] for c in out["citations"])
    assert s.server.asked("sub") == did["calls"] == out["usage"]["calls"]
    assert out["usage"]["failed"] == did["failed calls"]
    flawless = await scene(one_cell(IN_PACKS_OF_SIX), answering(year)).rlm().ainvoke(given)
    assert flawless["verified"] == 600
    cost, least = (tokens_of(each["usage"]) for each in (out, flawless))
    assert cost < 2 * least
    assert did["calls"] < 2.5 * flawless["usage"]["calls"]


def tokens_of(usage: dict[str, Any]) -> int:
    return sum(usage["by_model"]["sub"][name] for name in ("input_tokens", "output_tokens"))
