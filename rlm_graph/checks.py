"""Whether what a sub-model answered can be believed, by code: its form, its ids, its schema, its quotes.

Pure functions. One structured ask (`Ask`) takes one or more attempts; `settle` says of the replies to them which
answers stand and what is still open, so that `dispatch` and `verify` need no memory of their own: the replies on
record are enough, also in another process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import json_repair
import jsonschema_rs

from rlm_graph import asks, evidence
from rlm_graph.identity import content_hash
from rlm_graph.kernel.inside.calls import REFUSED as REFUSED
from rlm_graph.schemas import DEEPEST, extent, takes_too_long, validator
from rlm_graph.state import Reply

CONFIDENT = 0.5
"""Confidence, from 0 to 1, below which an answer is not taken on its own word."""
_KEPT_QUOTES = 20
_ILL_OPENED, _ILL_OPENED_CHARS = re.compile(r"\{\s*[^\s\w\"'“”}]|\[\s*[,:}]"), 50_000
_REASON_CHARS = 300

Verify = Literal["evidence", "twice", "off"]
Status = Literal["found", "empty", "absent", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One call of `sub_call(…)`: the texts by id, what the answer is to look like, and whether it must be quoted."""

    texts: dict[str, str]
    schema: dict[str, Any] | None
    quotes: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """One answer.

    Attributes:
        status: `found`; `empty` (an answer without content); `absent` (the text does not say); `refused`; `failed`.
        answer: JSON-like data; None where there is none.
        quotes: Spans in its text that show it; each stands there.
        confidence: From 0 to 1, None where the model gave none.
        why: Why it is not to be believed; empty where it is.
    """

    status: Status
    answer: Any = None
    quotes: tuple[tuple[int, int], ...] = ()
    confidence: float | None = None
    why: str = ""


@dataclass(slots=True)
class Round:
    """How far an ask has come: what stands by id, and what is open with the best so far and what to tell the model."""

    settled: dict[str, Checked] = field(default_factory=dict)
    open: dict[str, Checked | None] = field(default_factory=dict)


def read_ask(context: Any) -> Ask:
    """Takes what a cell sent for what it should be.

    Raises:
        ValueError: It is not of that form, or its schema is none.
    """
    ask = _formed(context)
    if ask.schema is not None:
        validator(ask.schema)
    return ask


def prompt_of(task: str, context: Any) -> str:
    """The one prompt of a structured ask; the task alone where it is not of the form that `sub_call` gives it."""
    try:
        ask = _formed(context)
    except ValueError:
        return task
    notes = context.get("notes")
    wrong = notes if isinstance(notes, dict) else {}
    return asks.checked_ask(task, ask.texts, ask.schema, quotes=ask.quotes, notes=wrong)


def _formed(context: Any) -> Ask:
    try:
        texts = {str(id): text for id, text in context["texts"].items()}
        schema, quotes = context["schema"], context["quotes"]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("not what sub_call sends") from error
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("a chunk that is no text")
    return Ask(texts, schema, quotes is True)


def attempt_id(call: str, attempt: int) -> str:
    """The durable name of an attempt at a structured ask."""
    return content_hash([call, "attempt", attempt])


def attempts_allowed(verify: Verify, max_retries: int) -> int:
    """How often an ask is made at most: `twice` needs two answers before one can be in doubt."""
    return {"off": 1, "evidence": 1 + max_retries, "twice": 2 + max_retries}[verify]


def form_of(ask: Ask) -> dict[str, Any]:
    """The JSON schema of a reply, for a provider that enforces one."""
    schema = dict(ask.schema) if ask.schema is not None else {"type": "string"}
    definitions = {key: schema.pop(key) for key in ("$defs", "definitions") if key in schema}
    one = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "enum": list(ask.texts)},
            "answer": {"anyOf": [schema, {"type": "null"}]},
            "quotes": {"type": "array", "items": {"type": "string"}},
            "confidence": {"type": "number"},
        },
        "required": ["id", "answer", "quotes", "confidence"],
    }
    results = {"type": "array", "items": one}
    whole = {"title": "results", "type": "object", "properties": {"results": results}, "required": ["results"]}
    return whole | definitions


def read_results(text: str) -> list[dict[str, Any]]:
    """The results in a reply, repaired where it is no whole JSON; none where nothing can be made of it."""
    try:
        value = json.loads(text)
    except ValueError:
        value = repaired(text)
    except RecursionError:
        return []
    if isinstance(value, dict) and "results" in value:
        value = value["results"]
    rows = value if isinstance(value, list) else [value]
    return [row for row in rows if isinstance(row, dict) and "answer" in row]


def repaired(text: str) -> Any:
    """What JSON a text that is none comes down to, an empty text where to nothing.

    Brackets after brackets are not tried: `json_repair` takes minutes for some thousands of them.
    """
    depths = accumulate(((c in "{[") - (c in "}]") for c in text), lambda depth, step: max(0, depth + step))
    try:
        hopeless = len(_ILL_OPENED.findall(text)) * len(text) > _ILL_OPENED_CHARS or max(depths, default=0) > DEEPEST
        return "" if hopeless else json_repair.loads(text)
    except (ValueError, RecursionError):
        return ""


def settle(ask: Ask, replies: Sequence[Reply], verify: Verify) -> Round:
    """Which answers stand after these attempts, in their order, and which are open."""
    state = Round(open=dict.fromkeys(ask.texts))
    opinions: dict[str, list[Checked]] = {id: [] for id in ask.texts}
    check = validator(ask.schema) if ask.schema is not None else None
    for reply in replies:
        for id, checked in check_reply(ask, list(state.open), reply, check, verify).items():
            if checked.why:
                state.open[id] = _better(state.open[id], checked)
                continue
            opinions[id].append(checked)
            if verify != "twice" or sum(_alike(checked, other) for other in opinions[id]) > 1:
                state.settled[id] = checked
                del state.open[id]
            elif len(opinions[id]) > 1:
                state.open[id] = _with_why(opinions[id][0], asks.DISAGREE)
            else:
                state.open[id] = _with_why(checked, asks.ONE_OPINION)
    return state


def check_reply(
    ask: Ask, ids: Sequence[str], reply: Reply, check: jsonschema_rs.Validator | None, verify: Verify
) -> dict[str, Checked]:
    """Each id's answer in one reply, checked."""
    if reply.text is None:
        status: Status = "refused" if reply.error == REFUSED else "failed"
        return dict.fromkeys(ids, Checked(status, why=reply.message[:_REASON_CHARS]))
    rows = read_results(reply.text)
    if len(ids) == 1 and len(rows) == 1:
        rows = [{**rows[0], "id": ids[0]}]
    named: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        named.setdefault(str(row.get("id")), []).append(row)
    return {id: _check(ask, id, named.get(id, []), bool(rows), check, verify) for id in ids}


def _check(
    ask: Ask,
    id: str,
    rows: Sequence[dict[str, Any]],
    readable: bool,
    check: jsonschema_rs.Validator | None,
    verify: Verify,
) -> Checked:
    if not rows:
        return Checked("failed", why=asks.NO_RESULT if readable else asks.NO_JSON)
    if any(row["answer"] != rows[0]["answer"] for row in rows[1:]):
        return Checked("failed", why=asks.TWO_RESULTS)
    answer, confidence = rows[0]["answer"], _confidence(rows[0].get("confidence"))
    if answer is None:
        return Checked("absent", confidence=confidence, why=_doubt(confidence, verify))
    if fault := _fault(answer, ask.schema, check):
        deep = extent(answer)[0] > DEEPEST  # to send it would break what reads it
        return Checked("failed", None if deep else answer, confidence=confidence, why=fault)
    given = rows[0].get("quotes")
    quotes = [q for q in given if isinstance(q, str)] if isinstance(given, list) else []
    spans, short, invented = _spans(quotes[:_KEPT_QUOTES], ask.texts[id], answer)
    status: Status = "empty" if answer in ("", [], {}) else "found"
    why = _doubt(confidence, verify)
    if verify == "off":
        why = ""
    elif invented:
        why = asks.NOT_IN_TEXT.format(quote=invented[0][:200])
    elif ask.quotes and status == "found" and not spans:
        why = asks.TOO_SHORT.format(quote=short[0]) if short else asks.NO_QUOTE
    return Checked(status, answer, spans, confidence, why)


def _fault(answer: Any, schema: Any, check: jsonschema_rs.Validator | None) -> str:
    """What is wrong with an answer's form."""
    if check is None:
        return "" if isinstance(answer, str) else asks.NOT_A_STRING
    if extent(answer)[0] > DEEPEST:
        return asks.TOO_DEEP.format(most=DEEPEST)
    if takes_too_long(schema, answer):
        return asks.TOO_LONG_TO_CHECK
    error = next(iter(check.iter_errors(answer)), None)
    if error is None:
        return ""
    place = "".join(f"[{part!r}]" for part in error.instance_path)
    return asks.NOT_THE_SCHEMA.format(place=place, error=error.message[:_REASON_CHARS])


def _spans(quotes: Sequence[str], text: str, answer: Any) -> tuple[tuple[tuple[int, int], ...], list[str], list[str]]:
    """Where the quotes stand, each place once; those too short to show the answer; and those that do not stand."""
    found: dict[tuple[int, int], None] = {}
    short: list[str] = []
    invented: list[str] = []
    said = [text, *_said(answer)]
    for quote in quotes:
        places = evidence.places(quote, text)
        if not places and quote.strip():
            invented.append(quote)
        elif evidence.is_short(quote) and not any(_same_words(quote, each) for each in said):
            short.append(quote)
        else:
            found.update(dict.fromkeys((place.start, place.end) for place in places))
    return tuple(found), short, invented


def _said(answer: Any) -> list[str]:
    """The words and numbers of an answer, as text."""
    if isinstance(answer, dict | list):
        return [said for value in (answer.values() if isinstance(answer, dict) else answer) for said in _said(value)]
    return [answer if isinstance(answer, str) else json.dumps(answer)]


def _same_words(short: str, other: str) -> bool:
    return len(other) < 4 * len(short) + 16 and _words(other) == _words(short)


def _words(text: str) -> str:
    return evidence.folded(text.strip(" .")).text


def _confidence(value: Any) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if ok else None


def _doubt(confidence: float | None, verify: Verify) -> str:
    doubtful = verify != "off" and confidence is not None and confidence < CONFIDENT
    return asks.NOT_SURE.format(confidence=confidence, least=CONFIDENT) if doubtful else ""


def _with_why(checked: Checked, why: str) -> Checked:
    return Checked(checked.status, checked.answer, checked.quotes, checked.confidence, why)


def _better(old: Checked | None, new: Checked) -> Checked:
    """Of two that do not stand, the one that says more: what answers goes before what failed."""
    silent = ("failed", "refused")
    return old if old is not None and new.status in silent and old.status not in silent else new


def _alike(one: Checked, other: Checked) -> bool:
    """Whether two answers say the same, but for case, white space and the order of an object's keys."""
    return one.status == other.status and _canonical(one.answer) == _canonical(other.answer)


def _canonical(answer: Any) -> str:
    return evidence.folded(json.dumps(answer, ensure_ascii=False, sort_keys=True)).text


def delivered(ask: Ask, state: Round, verify: Verify) -> str:
    """What the waiting cell gets: a result for each text, in order; what does not stand is marked, not dropped."""
    results = [{"id": id, **_row(state.settled.get(id) or state.open[id], verify)} for id in ask.texts]
    return json.dumps(results, ensure_ascii=False)


def _row(checked: Checked | None, verify: Verify) -> dict[str, Any]:
    checked = checked or Checked("failed", why=asks.NO_RESULT)
    verified = not checked.why and verify != "off"
    return {
        "status": checked.status,
        "answer": checked.answer,
        "quotes": [list(span) for span in checked.quotes],
        "confidence": checked.confidence,
        "verified": verified,
        "why": checked.why or ("" if verified else asks.NOT_CHECKED),
    }


def marked(text: str, form: str) -> str:
    """A delivery in which the reasons of what does not stand are put into `form`."""
    rows = json.loads(text)
    told = [row if row["verified"] else {**row, "why": form.format(why=row["why"])} for row in rows]
    return json.dumps(told, ensure_ascii=False)


def counts(text: str) -> Mapping[str, int]:
    """How many of the delivered results are verified, absent, and in doubt; and of the status that each has."""
    rows = json.loads(text)
    told = {"results": len(rows), "verified": 0, "absent": 0, "doubtful": 0}
    told |= {"found": 0, "empty": 0, "refused": 0, "failed": 0}
    for row in rows:
        kind = "doubtful" if not row["verified"] else "absent" if row["status"] == "absent" else "verified"
        told[kind] += 1
        if row["status"] != "absent":
            told[row["status"]] += 1
    return told


def has_none(counted: Mapping[str, int]) -> bool:
    """Whether none of the results so counted is an answer: the ask has failed, though it was delivered."""
    return counted["refused"] + counted["failed"] == counted["results"]


def why_none(text: str) -> str:
    """Why a delivery holds no answer: the reason of its last result."""
    return str(json.loads(text)[-1]["why"])
