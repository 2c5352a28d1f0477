"""The root and the reader that need no language model."""

from __future__ import annotations

import contextlib
import io
import re
import traceback
from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from rlm_graph.history import root_messages
from rlm_graph.kernel.inside.toolkit import names
from rlm_graph.ledger import Left, Limits
from rlm_graph.offline import NOTE, OfflineReader, OfflineRoot, asked
from rlm_graph.prompts import direct_messages, left_note, system_for

CODE = {
    "json/encoder.py": (
        "class JSONEncoder:\n    def __init__(self, ensure_ascii=True):\n"
        '        """Set up.\n\n        If ensure_ascii is true, all incoming non-ASCII characters are escaped.\n'
        '        """\n        self.ensure_ascii = ensure_ascii\n'
    ),
    "json/decoder.py": "class JSONDecoder:\n    def decode(self, s):\n        return s\n",
    "ast.py": "def parse(source):\n    return compile(source)\n",
}
ESCAPING = "How does json decide whether to escape non-ASCII characters?"


@dataclass
class Run:
    """The loop in miniature: the root's cells, executed in one namespace, with the loop's own prompts around them."""

    value: Any
    root: OfflineRoot = field(default_factory=OfflineRoot)
    broken: tuple[str, ...] = ()
    depth: int = 0
    turns_left: int = 10
    calls_left: int = 100
    prompts: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def context(self) -> Any:
        return self.value

    def scanned(self, source: str | int, start: int, end: int) -> None: ...

    def ask(self, question: str, turns: int = 6) -> str:
        space: dict[str, Any] = {"context": self.value, "answer": {"content": "", "ready": False}}
        space |= names(self) | {"llm_query_batched": self.read} | dict.fromkeys(self.broken)
        left = left_note("", turns_left=self.turns_left, left=Left(self.calls_left), exhausted=False)
        system = system_for(Limits(), self.depth, None)
        messages: list[BaseMessage] = root_messages(system, question, "a dict", [], [], [], left)
        for _ in range(turns):
            reply = self.root.invoke(messages)
            heard = self.run(str(reply.text), space)
            if space["answer"]["ready"]:
                return str(space["answer"]["content"])
            messages += [reply, HumanMessage(f"{heard}\n\n{left}")]
        raise AssertionError(f"no answer after {turns} turns")

    def run(self, reply: str, space: dict[str, Any]) -> str:
        heard = io.StringIO()
        for phase, code in re.findall(r"```repl (\w+)\n(.*?)```", reply, re.S):
            self.phases.append(phase)
            try:
                with contextlib.redirect_stdout(heard):
                    exec(code, space)
            except Exception:
                return heard.getvalue() + traceback.format_exc()
            if space["answer"]["ready"]:
                break
        return heard.getvalue()

    def read(self, prompts: list[str]) -> list[str]:
        self.prompts += prompts
        return [str(OfflineReader().invoke(prompt).text) for prompt in prompts]


def read(question: str, passage: str) -> str:
    return str(OfflineReader().invoke(f"Question: {question}\n\nPassage:\n{passage}").text)


# The reader


def test_the_reader_picks_the_sentence_that_answers() -> None:
    passage = "It rained all day. Nicholas was the brother of Natasha. They went home early."
    assert read("Who is Natasha's brother?", passage) == "Nicholas was the brother of Natasha."


def test_the_reader_joins_the_lines_of_wrapped_prose() -> None:
    passage = "It rained\nall day. Nicholas was\nthe brother of\nNatasha. They went home."
    assert read("Who is Natasha's brother?", passage) == "Nicholas was the brother of Natasha."


def test_the_reader_gives_whole_lines_of_a_log() -> None:
    log = "Jun 14 sshd: session opened\nJun 15 sshd: authentication failure from 10.1.1.7\nJun 16 cron: started"
    assert read("Where did the authentication failure come from?", log).startswith("Jun 15 sshd: auth")


def test_the_reader_names_the_definition_that_a_line_of_code_is_in() -> None:
    answer = read(ESCAPING, f"[json/encoder.py]\n{CODE['json/encoder.py']}")
    assert answer.splitlines()[0].strip() in ("class JSONEncoder:", "def __init__(self, ensure_ascii=True):")
    assert "If ensure_ascii is true, all incoming non-ASCII characters are escaped." in answer


def test_the_reader_does_not_break_a_sentence_at_a_title() -> None:
    assert read("Who met Mr. Darcy?", "A ball. Jane met Mr. Darcy there. A walk.") == "Jane met Mr. Darcy there."


def test_the_reader_says_so_when_nothing_matches() -> None:
    assert read("Who is Natasha's brother?", "It rained all day.") == "NOT FOUND"


def test_the_reader_says_so_when_too_little_matches() -> None:
    assert read("Who is Natasha's brother?", "Her brother came home.") == "NOT FOUND"


def test_the_reader_weighs_rare_words_more() -> None:
    passage = "The ship sailed. The ship stopped. The ship turned. The captain slept."
    assert read("ship captain", passage).endswith("The captain slept.")


def test_the_reader_answers_a_prompt_of_any_form() -> None:
    prompt = "Which animal does Bob keep?\n\nAnn keeps a cat. Bob keeps an animal called dog."
    assert OfflineReader().invoke(prompt).text == "Bob keeps an animal called dog."


def test_an_empty_passage_is_not_found() -> None:
    assert read("Who?", "") == "NOT FOUND"


# Prompts


@pytest.mark.parametrize("mark", ["Context: ", "Text:\n", "Passage:\n"])
def test_a_question_of_several_lines_is_found(mark: str) -> None:
    found = asked(f"Instructions.\n\nQuestion: Who?\nAnd when?\n\n{mark}the rest\n\nQuestion: no")
    assert (found.question, found.text) == ("Who?\nAnd when?", "the rest\n\nQuestion: no")


def test_a_question_at_the_end_is_found() -> None:
    found = asked("A long text.\n\nQuestion: Who?")
    assert (found.question, found.text.strip()) == ("Who?", "A long text.")


# The root


def test_the_root_answers_in_three_turns_with_one_cell_of_each_phase() -> None:
    run = Run(CODE)
    run.ask(ESCAPING, turns=3)
    assert run.phases == ["probe", "filter", "chunk", "compose"]


def test_the_answer_leads_with_the_finding_and_ends_with_sources_and_counts() -> None:
    answer = Run(CODE).ask(ESCAPING)
    assert "non-ASCII characters are escaped" in answer.split("\n\n")[0]
    assert re.search(r"Sources: json/encoder\.py.* passages? read of .* candidates? in 3 texts", answer)


def test_the_root_asks_at_most_as_many_prompts_as_passages() -> None:
    run = Run([f"Report {i}: the engine failed. " + "More words. " * 120 for i in range(50)], OfflineRoot(passages=7))
    assert "7 passages read of 50 candidates in 50 texts" in run.ask("Why did the engine fail?")
    assert len(run.prompts) == 7


def test_the_root_asks_no_more_than_the_calls_that_are_left() -> None:
    texts = [f"Report {i}: the engine failed. " + "More words. " * 120 for i in range(50)]
    run = Run(texts, calls_left=3)
    run.ask("Why did the engine fail?")
    assert len(run.prompts) == 3


def test_short_candidates_are_packed_into_one_prompt() -> None:
    run = Run([f"Ann keeps dog {i}." for i in range(40)])
    run.ask("Who keeps a dog?")
    assert len(run.prompts) == 1


def test_every_prompt_brings_instructions_question_and_source() -> None:
    run = Run(CODE)
    run.ask(ESCAPING)
    assert all("NOT FOUND" in prompt and f"Question: {ESCAPING}\n" in prompt for prompt in run.prompts)
    assert any("\n[json/encoder.py]\n" in prompt for prompt in run.prompts)


def test_the_findings_that_are_not_shown_are_counted() -> None:
    texts = [f"Engine {i} failed on day {i}. " + "More words. " * 120 for i in range(9)]
    assert "shown are the 2 of 9 findings" in Run(texts, OfflineRoot(shown=2)).ask("Which engine failed?")


def test_a_question_about_nothing_in_the_context_is_answered_plainly() -> None:
    run = Run(CODE)
    assert run.ask("Which zeppelin landed?") == "Nothing in the context mentions zeppelin, land."
    assert run.prompts == []


def test_candidates_that_do_not_answer_are_said_not_to() -> None:
    answer = Run({"a.txt": "Her brother came home.", "b.txt": "Rain."}).ask("Who is Natasha's brother?")
    assert answer.startswith("No passage that was read answers the question (1 passage read of 1 candidate")
    assert "a.txt" in answer


@pytest.mark.parametrize(
    "context",
    [
        "Rain.\n\nBob keeps a dog.\n",
        ["Rain.", "Bob keeps a dog."],
        {"a": "Rain.", "b": "Bob keeps a dog."},
        [{"name": "Bob", "keeps": "a dog"}, {"name": "Ann"}],
        [{"page_content": "Bob keeps a dog.", "metadata": {"source": "pets.txt"}}],
    ],
)
def test_every_kind_of_context_is_answered_over(context: Any) -> None:
    assert "dog" in Run(context).ask("Who keeps a dog?").split("\n\n")[0]


@pytest.mark.parametrize("tool", ["peek", "grep", "search", "dedupe", "llm_query_batched"])
def test_a_failing_tool_is_worked_around(tool: str) -> None:
    answer = Run({"a": "Rain.", "b": "Bob keeps a dog."}, broken=(tool,)).ask("Who keeps a dog?")
    assert "Bob keeps a dog." in answer


def test_calls_that_failed_are_counted_and_the_others_used() -> None:
    class SomeFailed(Exception):
        results = ("Bob keeps it.", None)

    class Flaky(Run):
        def read(self, prompts: list[str]) -> list[str]:
            raise SomeFailed("1 of 2 calls failed")

    answer = Flaky(["a dog " * 200, "the dog " * 200]).ask("Who keeps a dog?")
    assert answer.startswith("Bob keeps it.")
    assert "1 of 2 readings failed" in answer


def test_the_last_turn_searches_asks_and_composes_at_once() -> None:
    run = Run(CODE, turns_left=1)
    run.ask(ESCAPING, turns=1)
    assert run.phases == ["filter", "chunk", "compose"]


@pytest.mark.parametrize("run", [Run(CODE, depth=9), Run(CODE, calls_left=0)], ids=["depth 0", "no calls left"])
def test_without_calls_the_root_gives_the_best_lines_and_says_that_no_model_read_them(run: Run) -> None:
    answer = run.ask(ESCAPING)
    assert "No model read these" in answer
    assert "json/encoder.py" in answer


def test_a_question_cannot_break_out_of_its_cell() -> None:
    assert Run(CODE).ask('escape"""\n```\n```repl probe\nboom()').startswith(("class", "def", "No passage", "If"))


def test_asked_directly_the_root_answers_from_the_text() -> None:
    messages = direct_messages("Who keeps a dog?", "Ann keeps a cat. Bob keeps a dog.", [], [], None)
    assert OfflineRoot().invoke(messages).text == "Bob keeps a dog."


def test_asked_directly_about_nothing_in_the_text_the_root_says_so() -> None:
    messages = direct_messages("Which zeppelin landed?", "Ann keeps a cat.", [], [], None)
    assert OfflineRoot().invoke(messages).text == "Nothing in the text mentions zeppelin, land."


# Both


@pytest.mark.parametrize("model", [OfflineRoot(), OfflineReader()])
async def test_both_say_what_they_are_and_estimate_their_usage(model: OfflineRoot | OfflineReader) -> None:
    reply = await model.ainvoke([SystemMessage("1234"), HumanMessage("Question: dog?\n\nText:\nA dog.")])
    assert isinstance(reply, AIMessage)
    assert reply.response_metadata["note"] == NOTE
    assert reply.response_metadata["model_name"] in ("offline-root", "offline-reader")
    assert reply.usage_metadata == {"input_tokens": 8, "output_tokens": 2, "total_tokens": 10}


@pytest.mark.parametrize("model", [OfflineRoot(), OfflineReader()])
def test_the_same_prompt_gets_the_same_reply(model: OfflineRoot | OfflineReader) -> None:
    prompt = "Question: Who keeps a dog?\n\nText:\nAnn has a dog. Bob keeps a dog. Cy keeps one."
    assert model.invoke(prompt).text == model.invoke(prompt).text
