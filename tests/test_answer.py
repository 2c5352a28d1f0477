"""What comes with an answer: citations that stand in the source, coverage, and the form that was asked for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from typing_extensions import TypedDict

from model_server import Answer, Request, scripted
from rlm_graph import Limits, hold
from rlm_graph.citations import standing
from rlm_graph.context import take_in
from rlm_graph.kernel.inside.calls import Calls
from rlm_graph.kernel.inside.calls import Request as PlainRequest
from rlm_graph.kernel.inside.reading import Reading, agreement, covered, found, gaps
from rlm_graph.kernel.session import close_all
from rlm_graph.store import default_store
from test_checked_answers import answering, payer, results, texts_of

LINE = "Chapter {0}. 🦊 The bill of house {0} was paid by Mr. Payer{0}, who said so.\r\nNothing more is known.\r\n\r\n"
TEXT = "".join(LINE.format(i) for i in range(8))
ASK = "```repl chunk\nresults = sub_call(split(by='chapter', tokens=500), 'Who paid?')\n"
DELIVER = "answer['ready'] = True\n```"


async def ask(scene: Any, code: str, sub: Any = None, text: Any = TEXT, **more: Any) -> dict[str, Any]:
    s = scene(scripted(code + DELIVER), sub or answering(payer))
    out: dict[str, Any] = await s.rlm(**more).ainvoke({"question": "q", "context": text})
    return out


async def test_the_quotes_of_results_that_are_used_are_the_citations(scene: Any) -> None:
    code = ASK + "answer['content'] = 'Some were paid by ' + ' and '.join(r.answer for r in results[2:4]) + '\\n'\n"
    out = await ask(scene, code)
    assert [c["quote"] for c in out["citations"]] == ["paid by Mr. Payer2", "paid by Mr. Payer3"]
    assert all(TEXT[c["start"] : c["end"]] == c["quote"] and c["source"] == "text" for c in out["citations"])
    assert out["verified"] == 8


async def test_what_the_cell_names_is_cited_instead(scene: Any) -> None:
    code = ASK + "answer['content'] = results\nanswer['citations'] = [grep('Payer7')[0][2:9], results[5]]\n"
    out = await ask(scene, code)
    assert [c["quote"] for c in out["citations"]] == ["apter 7", "paid by Mr. Payer5"]
    assert json.loads(out["answer"])[5]["answer"] == "Payer5"


async def test_invented_passages_are_never_cited(scene: Any) -> None:
    def sub(request: Request) -> str:
        rows = [
            {"id": id, "answer": "Payer", "quotes": ["paid by nobody at all, I am sure of it"]}
            for id in texts_of(request)
        ]
        return results(*rows)

    code = ASK + (
        "answer['content'] = 'Payer'\n"
        "answer['citations'] = [results, Piece('never said', 'text', 5), Piece('house 3', 'text', 0)]\n"
    )
    out = await ask(scene, code, sub, limits=Limits(max_retries=0))
    assert [(c["quote"], TEXT[c["start"] : c["end"]]) for c in out["citations"]] == [("house 3", "house 3")]
    assert "1 passages do not stand in the source, so they are not cited" in out["warnings"]
    assert out["verified"] == 0


async def test_coverage_says_what_was_scanned_what_was_read_and_what_was_not(scene: Any) -> None:
    code = (
        "```repl chunk\ngrep('Payer', limit=4)\nhalf = [p for p in split(by='chapter') if p.start < len(context) / 2]\n"
        "sub_call(half, 'Who paid?')\nanswer['content'] = 'x'\n"
    )
    out = await ask(scene, code)
    size = len(TEXT) // 8
    assert out["coverage"]["chars"] == len(TEXT)
    assert out["coverage"]["read"] == 0.5
    assert 0.4 < out["coverage"]["scanned"] < 0.6
    assert out["coverage"]["unread"] == [{"source": "text", "start": 4 * size, "end": 8 * size}]
    assert out["coverage"]["map"]["read"] == "9" * 100 + "0" * 100
    assert set(out["coverage"]["map"]["scanned"][:40]) == {"9"}


ASKING_ALL = [
    "sub_call(parts, 'Who paid?')",
    "sub_call(parts, 'Who paid?', pack=70)",
    "llm_query_batched([f'Who paid?\\n\\n{p}' for p in parts])",
    "rlm_query_batched(['Who paid?'] * len(parts), parts)",
]


def all_parts(call: str) -> str:
    return (
        "```repl chunk\nparts = split(by='chapter', tokens=500)\ntry:\n"
        f"    {call}\nexcept SubCallError as e:\n    pass\nanswer['content'] = 'x'\n"
    )


@pytest.mark.parametrize("call", ASKING_ALL)
async def test_what_was_refused_is_not_read(scene: Any, call: str) -> None:
    s = scene(scripted(all_parts(call) + DELIVER), answering(payer))
    out = await s.rlm(limits=Limits(max_calls=1, max_depth=3)).ainvoke({"question": "q", "context": TEXT})
    assert (s.server.asked("sub"), out["stop_reason"]) == (0, "max_calls")
    assert out["coverage"]["read"] == 0.0
    assert out["coverage"]["unread"] == [{"source": "text", "start": 0, "end": len(TEXT)}]


def of_the_first_half(prompt: str) -> bool:
    return any(f"house {i} " in prompt for i in range(4))


@pytest.mark.parametrize("call", ASKING_ALL[:3])
async def test_what_failed_is_not_read(scene: Any, call: str) -> None:
    """A pack of 70 tokens has two chapters, so that none is of both halves."""

    def sub(request: Request) -> str | Answer:
        if of_the_first_half(request.prompt):
            return answering(payer)(request) if "sub_call" in call else "ok"
        return Answer("down", status=500)

    out = await ask(scene, all_parts(call), sub, limits=Limits(max_retries=0))
    size = len(TEXT) // 8
    assert 0.49 < out["coverage"]["read"] <= 0.5
    [unread] = out["coverage"]["unread"]
    assert 4 * size <= unread["start"] <= 4 * size + 30 and unread["end"] == 8 * size


@pytest.mark.parametrize(
    ("reply", "read"), [(Answer(refusal="I will not"), 1.0), ("I cannot say", 0.5), (results(), 0.5)]
)
async def test_what_was_refused_by_the_model_is_read_and_what_it_did_not_answer_is_not(
    scene: Any, reply: Any, read: float
) -> None:
    def sub(request: Request) -> Any:
        return answering(payer)(request) if of_the_first_half(request.prompt) else reply

    out = await ask(scene, all_parts(ASKING_ALL[0]), sub, limits=Limits(max_retries=0))
    assert out["coverage"]["read"] == read


async def test_a_plain_prompt_that_the_model_refused_is_read_and_fails_as_any_other(scene: Any) -> None:
    def sub(request: Request) -> Any:
        return "ok" if of_the_first_half(request.prompt) else Answer(refusal="I will not")

    code = all_parts(ASKING_ALL[2]).replace("pass", "print(type(e).__name__, e.errors[0][1])")
    s = scene(scripted(code + "```", "```repl compose\nFINAL('x')\n```"), sub)
    out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert "SubCallError the model 'sub' refused: I will not" in s.root_prompts()[1]
    assert out["coverage"]["read"] > 0.99


async def test_an_id_that_a_packed_reply_left_out_is_not_read(scene: Any) -> None:
    rows = [f"record {i}: it is {i % 7} o'clock" for i in range(20)]

    def sub(request: Request) -> str:
        return results(*({"id": id, "answer": "x"} for id in texts_of(request) if int(id) <= 15))

    code = "```repl chunk\nsub_call(context, 'Which?', pack=True)\nanswer['content'] = 'x'\n"
    out = await ask(scene, code, sub, rows, limits=Limits(max_retries=0))
    assert [part["source"] for part in out["coverage"]["unread"]] == [15, 16, 17, 18, 19]


async def test_a_kernel_that_is_rebuilt_tells_the_same_coverage(scene: Any, runs_left_waiting: None) -> None:
    def sub(request: Request) -> Any:
        if of_the_first_half(request.prompt):
            return answering(payer)(request) if "Reply with JSON" in request.prompt else "ok"
        return Answer(refusal="no") if "house 7 " in request.prompt else Answer("down", status=500)

    some = ["parts[1:7]", "parts[3:5]", "[parts[0], parts[5], parts[7]]"]
    asking = [all_parts(call.replace("parts", part)) for call, part in zip(ASKING_ALL[:3], some, strict=True)]
    root = scripted(*(f"{cell}```" for cell in asking), "```repl compose\nFINAL('x')\n```")
    told = []
    for broken in (False, True):
        rlm = scene(root, sub).rlm(checkpointer=InMemorySaver(), limits=Limits(max_retries=0))
        thread: Any = {"configurable": {"thread_id": "1"}}
        given: Any = {"question": "q", "context": TEXT}
        out: dict[str, Any] = {}
        while not out.get("stop_reason"):
            out = await rlm.ainvoke(given, thread, interrupt_before=["plan"])
            given = None
            if broken and len(rlm.get_state(thread).values.get("journal") or []) == 3:
                close_all()
        told.append(out["coverage"])
    assert told[0] == told[1]
    assert 0.75 <= told[0]["read"] < 0.76


def test_what_ten_thousand_calls_brought_is_looked_up_once_and_at_the_cell_s_end() -> None:
    text = "\n".join(f"line {i} of the text that is asked about" for i in range(10_000))
    looks: list[str] = []

    def context() -> str:
        looks.append("look")
        return text

    reading = Reading(context)
    calls = Calls()
    calls.heard = reading.heard
    calls.wire = Sent()  # type: ignore[assignment]
    calls.open()
    lines = text.split("\n")
    batch = calls._send([PlainRequest("llm", f"Who?\n{line}", None, None) for line in lines], lambda: None)
    calls.settle([(n, "ok", None, "") if n % 2 else (n, None, "SubCallError", "down") for n in range(1, 10_001)])
    assert looks == []
    assert (len(batch.failures), sum(r == "ok" for r in batch.results)) == (5_000, 5_000)
    report = reading.report()
    assert report is not None and 0.48 < report["read"] / len(text) < 0.52


class Sent:
    """A wire whose other end nobody reads."""

    usable = True

    def send_calls(self, rows: Any) -> None: ...


async def test_texts_in_plain_prompts_are_found_again(scene: Any) -> None:
    code = (
        "```repl chunk\nparts = split(by='chapter', tokens=500)\n"
        "llm_query_batched([f'Who paid? Say it.\\n\\n{p}\\n\\nAnd now?' for p in parts[:4]])\nanswer['content'] = 'x'\n"
    )
    out = await ask(scene, code, lambda _: "ok")
    assert 0.45 < out["coverage"]["read"] <= 0.5


async def test_a_text_read_in_one_prompt_is_covered(scene: Any) -> None:
    s = scene(lambda _: "so it is")
    out = await s.rlm(direct_below=16_000).ainvoke({"question": "q", "context": TEXT})
    assert (out["coverage"]["read"], out["citations"], out["verified"]) == (1.0, [], 0)
    assert out["coverage"]["map"] == {"scanned": "0" * 200, "read": "9" * 200}


def contexts(folder: Path) -> dict[str, Any]:
    """One passage in every kind of context: astral characters, CRLF, other encodings."""
    passage = "été 🦊 «so»\r\nit is"
    (folder / "sub").mkdir(parents=True)
    (folder / "utf8.txt").write_bytes(f"x\r\n{passage}".encode())
    (folder / "sub" / "utf16.txt").write_bytes(f"yy {passage}".encode("utf-16"))
    (folder / "bom.txt").write_bytes(f"zzz {passage}".encode("utf-8-sig"))
    latin = folder.parent / "latin.txt"
    latin.write_bytes("x été so\r\nit is".encode("latin-1"))
    return {
        "text": f"a {passage}",
        "list": ["hay", f"b {passage}"],
        "documents": [Document("hay", metadata={"source": "a"}), Document(f"c {passage}", metadata={"source": "b"})],
        "mapping": {"one": "hay", "two": f"d {passage}"},
        "json": [{"id": 1}, {"id": 2, "text": "été 🦊 so it is"}],
        "file": folder / "utf8.txt",
        "files": [folder / "utf8.txt", folder / "sub" / "utf16.txt"],
        "directory": folder,
        "latin-1": hold(latin, encoding="latin-1"),
    }


KINDS = ["text", "list", "documents", "mapping", "json", "file", "files", "directory", "latin-1"]


def test_citations_are_verbatim_in_every_kind_of_context(scene: Any, tmp_path: Path) -> None:
    """One question a kind; the passages are checked against what the caller gave, read by the test itself."""
    code = "```repl compose\nFINAL('x')\nanswer['citations'] = [p[p.find('t'):][:7] for p in grep('t. ')] + ["
    code += "p.strip()[-9:] for p in split(by='item')]\n```"
    given = contexts(tmp_path / "folder")
    s = scene(scripted(code))
    for kind in KINDS:
        out = s.rlm().invoke({"question": "q", "context": given[kind]})
        assert out["citations"] and not out["warnings"], kind
        for cited in out["citations"]:
            whole = text_of(given[kind], kind, cited["source"], tmp_path)
            assert whole[cited["start"] : cited["end"]] == cited["quote"], kind


def text_of(given: Any, kind: str, source: Any, folder: Path) -> str:
    if kind in ("text", "list", "mapping"):
        return str(given if kind == "text" else given[source])
    if kind == "documents":
        return next(d.page_content for d in given if d.metadata["source"] == source)
    if kind == "json":
        return json.dumps(given[source], ensure_ascii=False, indent=1)
    path = {"file": folder / "folder" / "utf8.txt", "latin-1": folder / "latin.txt"}.get(kind)
    path = path or folder / "folder" / source
    encoding = {"utf16.txt": "utf-16", "bom.txt": "utf-8-sig", "latin.txt": "latin-1"}.get(path.name, "utf-8")
    return path.read_bytes().decode(encoding)


def test_a_source_that_has_changed_since_cites_nothing(tmp_path: Path, scene: Any) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT)
    source = take_in(file, default_store())
    assert standing([["text", 0, 7, "Chapter"]], source, default_store())
    file.write_text(TEXT + "more")
    with pytest.raises(Exception, match="changed"):
        standing([["text", 0, 7, "Chapter"]], source, default_store())


def test_half_of_a_surrogate_pair_is_not_cited() -> None:
    source = take_in("a \ud83e b", default_store())
    assert standing([["text", 0, 3, "a \ud83e"]], source, default_store()) == []


def test_spans_are_joined_and_the_gaps_told() -> None:
    assert gaps([(5, 9), (0, 2), (8, 12)], 20) == [(2, 5), (12, 20)]
    assert covered([(5, 9), (0, 2), (8, 30)], 20) == 17


def test_a_prompt_s_parts_are_found_as_far_as_they_agree() -> None:
    text = "The first line of it all.\nThe second line of it all.\nThe third line of it all."
    lines = {hash(m[0]): ("s", m.start()) for m in re.finditer("[^\n]{16,}", text)}
    spans = list(found(f"Read this:\n{text[10:60]}\nNow answer.", lines, {"s": text}))
    assert [text[start:end] for _, start, end in spans] == [text[10:60]]
    assert agreement("abc" * 100, 0, "abc" * 70 + "x", 0) == 210


# The form of the answer


class Bill(BaseModel):
    payer: str
    house: int


@dataclass
class Row:
    payer: str
    house: int


class Entry(TypedDict):
    payer: str
    house: int


SCHEMA = {"type": "object", "properties": {"house": {"type": "integer"}}, "required": ["payer", "house"]}
GOOD = "```repl compose\nanswer['content'] = {'payer': 'A', 'house': 3}\n" + DELIVER


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Bill, Bill(payer="A", house=3)),
        (Row, Row("A", 3)),
        (Entry, {"payer": "A", "house": 3}),
        (SCHEMA, {"payer": "A", "house": 3}),
    ],
)
async def test_an_answer_of_another_form_goes_back_to_the_root(scene: Any, form: Any, expected: Any) -> None:
    s = scene(scripted("```repl compose\nanswer['content'] = {'payer': 'A', 'house': 'three'}\n" + DELIVER, GOOD))
    out = await s.rlm(response_format=form).ainvoke({"question": "q", "context": TEXT})
    assert out["structured_response"] == expected and type(out["structured_response"]) is type(expected)
    assert (json.loads(out["answer"]), out["stop_reason"]) == ({"payer": "A", "house": 3}, "answered")
    first, second = s.root_prompts()
    assert '"house"' in first and "The answer was not accepted" in second and "'house'" in second


async def test_a_form_that_is_never_met_ends_in_errors_with_what_there_is(scene: Any) -> None:
    s = scene(lambda _: "```repl compose\nanswer['content'] = 'no form'\n" + DELIVER)
    out = await s.rlm(response_format=Bill, limits=Limits(max_errors=2)).ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["structured_response"], out["stop_reason"]) == ("no form", None, "errors")
    assert s.server.asked("root") == 2


async def test_a_form_is_wanted_of_a_direct_answer_too(scene: Any) -> None:
    s = scene(scripted("It was A.", '{"payer": "A", "house": 3}'))
    out = await s.rlm(response_format=Bill, direct_below=16_000).ainvoke({"question": "q", "context": TEXT})
    assert (out["structured_response"], out["stop_reason"]) == (Bill(payer="A", house=3), "direct")


async def test_a_pydantic_object_may_be_delivered(scene: Any) -> None:
    code = (
        "```repl compose\nfrom pydantic import BaseModel\nclass B(BaseModel):\n    payer: str\n    house: int\n"
        "answer['content'] = B(payer='A', house=3)\n"
    )
    out = await ask(scene, code, response_format=Bill)
    assert out["structured_response"] == Bill(payer="A", house=3)


def test_a_form_that_is_none_is_refused_when_the_rlm_is_made(scene: Any) -> None:
    with pytest.raises(TypeError, match="response_format"):
        scene(scripted("")).rlm(response_format={"type": "nonsense"})


async def test_wrong_deliveries_are_counted_though_the_cells_before_them_go_well(scene: Any) -> None:
    turn = "```repl probe\nprint(1)\n```\n```repl compose\nanswer['content'] = {'payer': 'A'}\n" + DELIVER
    s = scene(lambda _: turn)
    out = await s.rlm(response_format=Bill).ainvoke({"question": "q", "context": TEXT})
    assert (out["structured_response"], out["stop_reason"], s.server.asked("root")) == (None, "errors", 3)
    (told,) = [line for line in out["warnings"] if "delivered 3 times in another form" in line]
    assert "['house']: Field required" in told
