"""What a cell finds in the kernel: the dialect's names, its variables, its errors."""

import json
import os
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rlm_graph.errors import ContextError
from rlm_graph.kernel.session import KernelOptions, Session, start_session
from rlm_graph.state import Call, Done, Reply, Waiting

FACTS = {"window": 100, "reset_answer": False}


def echo(call: Call) -> Reply:
    return Reply(text=f"re: {call.prompt}")


Run = Callable[..., Any]


@pytest_asyncio.fixture
async def session() -> AsyncIterator[Session]:
    started = await start_session(KernelOptions(), name="test")
    yield started
    await started.close()


@pytest.fixture
def run(session: Session) -> Run:
    """Runs cells to their end, one after another, answering their calls."""
    count = 0

    async def run(code: str, answer: Callable[[Call], Reply] = echo, **facts: Any) -> Done:
        nonlocal count
        count += 1
        out = await session.run(count, textwrap.dedent(code), facts=FACTS | facts)
        while isinstance(out, Waiting):
            session.give({call.number: answer(call) for call in out.calls})
            out = await session.wait()
        return out

    return run


# The answer


def delivered(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as the kernel reports it, with nothing cited."""
    return answer | {"citations": {"passages": [], "more": 0}}


async def test_the_answer_is_reported_by_the_cell_that_touches_it_only(run):
    assert (await run("1")).answer is None
    assert (await run("answer['content'] = 'a'")).answer == delivered({"content": "a", "ready": False})
    assert (await run("2")).answer is None
    assert (await run("answer['ready'] = True")).answer == delivered({"content": "a", "ready": True})


async def test_the_same_answer_given_again_is_reported_again(run):
    await run("answer['content'] = 'a'; answer['ready'] = True")
    assert (await run("answer['ready'] = True")).answer == delivered({"content": "a", "ready": True})


async def test_an_answer_that_grows_in_place_was_touched(run):
    await run("answer['content'] = [1]")
    assert (await run("answer['content'].append(2)")).answer == delivered({"content": [1, 2], "ready": False})


async def test_an_answer_bound_anew_as_a_dict_is_honoured(run):
    done = await run("answer = {'content': 'x', 'ready': True}")
    assert done.answer == delivered({"content": "x", "ready": True})
    assert (await run("print(answer['content'])")).stdout == "x\n"


async def test_an_answer_bound_to_something_else_is_made_anew(run):
    assert (await run("answer = 'oops'")).answer is None
    assert (await run("print(answer)")).stdout == "{'content': '', 'ready': False}\n"


async def test_the_answer_is_reset_on_request(run):
    await run("answer['content'] = 'old'; answer['ready'] = True")
    assert (await run("print(answer)", reset_answer=True)).stdout == "{'content': '', 'ready': False}\n"


async def test_a_5_mb_answer_arrives_byte_for_byte(run):
    code = r"""
        import random
        text = "".join(random.choices("abc\n\x00é漢😀\ud800\"\\", k=4_000_000))
        answer["content"], answer["ready"] = text, True
        import hashlib
        print(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())
    """
    import hashlib

    done = await run(code)
    content = done.answer["content"].encode("utf-8", "surrogatepass")
    assert len(content) > 5_000_000
    assert hashlib.sha256(content).hexdigest() == done.stdout.strip()


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("{'a': [1, 2.5, None, True, 'x']}", {"a": [1, 2.5, None, True, "x"]}),
        ("(1, 2)", [1, 2]),
        ("{1: 2}", {"1": 2}),
        ("{1}", "{1}"),
        ("7", 7),
    ],
)
async def test_json_like_answers_stay_what_they_are_and_others_become_text(run, value, content):
    assert (await run(f"FINAL({value})")).answer == delivered({"content": content, "ready": True})


async def test_final_var_takes_a_name_or_a_value(run):
    await run("report = 'the text'; word = 'yes'")
    assert (await run("FINAL_VAR('report')")).answer["content"] == "the text"
    assert (await run("FINAL_VAR(report)")).answer["content"] == "the text"
    assert (await run("FINAL_VAR(word)")).answer["content"] == "yes"


async def test_final_var_of_no_variable_lists_those_there_are(run):
    done = await run("total = 3\nFINAL_VAR('totl')")
    assert "NameError: FINAL_VAR: there is no variable 'totl'. Your variables: total" in done.error
    assert done.answer is None


# Calls that fail


def failing(errors: dict[str, tuple[str, str]]) -> Callable[[Call], Reply]:
    def answer(call: Call) -> Reply:
        if call.prompt in errors:
            return Reply(error=errors[call.prompt][0], message=errors[call.prompt][1])
        return echo(call)

    return answer


async def test_a_failed_call_raises_its_type(run):
    code = "try: llm_query('a')\nexcept PromptTooLong as e: print(type(e).__name__, e, e.results, e.errors)"
    done = await run(code, failing({"a": ("PromptTooLong", "9 > 8")}))
    assert done.stdout == "PromptTooLong 9 > 8 [None] [(0, '9 > 8')]\n"


async def test_a_batch_raises_once_all_is_settled_and_keeps_what_arrived(run):
    code = """
        try: llm_query_batched(["a", "b", "c"])
        except SubCallError as err: print(err, err.results, err.errors)
    """
    done = await run(code, failing({"b": ("SubCallError", "no luck")}))
    assert done.stdout == (
        "1 of 3 calls failed; the first: no luck; err.results holds the 2 answers (None where failed) "
        "['re: a', None, 're: c'] [(1, 'no luck')]\n"
    )


async def test_a_batch_raises_the_gravest_type(run):
    code = "try: llm_query_batched(['a', 'b'])\nexcept SubCallError as e: print(type(e).__name__)"
    both = {"a": ("PromptTooLong", "x"), "b": ("BudgetExceeded", "y")}
    assert (await run(code, failing(both))).stdout == "BudgetExceeded\n"
    alike = {"a": ("PromptTooLong", "x"), "b": ("PromptTooLong", "y")}
    assert (await run(code, failing(alike))).stdout == "PromptTooLong\n"
    unlike = {"a": ("PromptTooLong", "x"), "b": ("SubCallError", "y")}
    assert (await run(code, failing(unlike))).stdout == "SubCallError\n"


async def test_an_uncaught_failure_is_one_clear_traceback(run):
    done = await run("x = 1\nllm_query('a')", failing({"a": ("BudgetExceeded", "no calls are left")}))
    assert done.error == (
        "Traceback (most recent call last):\n  cell 1, line 2, in <module>\n    llm_query('a')\n"
        "BudgetExceeded: no calls are left"
    )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("llm_query('')", "ValueError: llm_query: prompt is blank"),
        ("llm_query('  \\n')", "ValueError: llm_query: prompt is blank"),
        ("llm_query(3)", "TypeError: llm_query: prompt must be a str, got int"),
        ("llm_query_batched('abc')", "TypeError: llm_query_batched takes a list as prompts, got str"),
        ("llm_query_batched(['a', ''])", "ValueError: llm_query_batched: prompts[1] is blank"),
        ("llm_query('a', model=3)", "TypeError: llm_query: model must be a str or None, got int"),
        ("rlm_query('q', {1, 2})", "TypeError: rlm_query takes a str, a list, a dict or documents as context"),
        ("rlm_query_batched(['q'], ['a', 'b'])", "ValueError: rlm_query_batched: 1 questions but 2 contexts"),
        ("await allm_query('')", "ValueError: allm_query: prompt is blank"),
    ],
)
async def test_a_senseless_call_is_refused_before_it_is_sent(run, code, error):
    def never(call: Call) -> Reply:
        raise AssertionError(call)

    assert error in (await run(code, never)).error


async def test_an_empty_batch_needs_no_call(run):
    assert (await run("print(llm_query_batched([]), await arlm_query_batched([]))")).stdout == "[] []\n"


async def test_contexts_are_sent_as_json_like_data(run):
    code = """
        class Doc:
            page_content, metadata = "text", {"page": 3, "when": object}
        rlm_query_batched([("a", [Doc()]), ("b", {"k": (1, 2)}), "c"])
    """
    contexts = []

    def answer(call: Call) -> Reply:
        contexts.append((call.kind, call.prompt, call.context))
        return echo(call)

    await run(code, answer)
    assert contexts == [
        ("rlm", "a", [{"page_content": "text", "metadata": {"page": 3, "when": "<class 'object'>"}}]),
        ("rlm", "b", {"k": [1, 2]}),
        ("rlm", "c", None),
    ]


# A cell hurts itself alone


async def test_names_that_a_cell_redefines_are_back_in_the_next(run, session, tmp_path):
    (tmp_path / "t").write_text("the text")
    await session.bind("context", {"kind": "text", "path": str(tmp_path / "t")})
    await run("llm_query = rlm_query = SHOW_VARS = FINAL = context = None\ndel llm_query_batched")
    assert (await run("print(llm_query('q'), context, len(llm_query_batched(['a'])))")).stdout == "re: q the text 1\n"


async def test_shadows_of_print_and_len_are_lifted_before_the_next_cell(run):
    await run("print = len = None")
    assert (await run("print(len('abc'))")).stdout == "3\n"


async def test_overwritten_builtins_are_back_in_the_next_cell(run):
    await run("import builtins\nbuiltins.len = builtins.print = builtins.sorted = builtins.isinstance = None")
    assert (await run("print(len('abc'), isinstance(1, int))")).stdout == "3 True\n"


async def test_a_replaced_sys_stdout_is_back_in_the_next_cell(run):
    await run("import io, sys\nsys.stdout = io.StringIO()\nprint('lost')")
    assert (await run("print('seen')")).stdout == "seen\n"


@pytest.mark.parametrize("code", ["exit()", "quit()", "import sys; sys.exit(3)", "raise SystemExit"])
async def test_leaving_ends_the_cell_and_not_the_kernel(run, code):
    done = await run(f"x = 1\n{code}\nx = 2")
    assert done.error == "SystemExit: sys.exit() does nothing here: the cell ended, the kernel goes on"
    assert (await run("print(x)")).stdout == "1\n"


async def test_leaving_in_a_task_ends_the_cell_and_not_the_kernel(run):
    code = "import asyncio, sys\nasync def f(): sys.exit(1)\nawait asyncio.gather(f(), asyncio.sleep(0))"
    assert "sys.exit() does nothing here" in (await run(code)).error
    assert (await run("import asyncio\nprint(await asyncio.sleep(0, 'on'))")).stdout == "on\n"


async def test_input_says_that_nobody_is_there(run):
    assert "input() does nothing here" in (await run("input('name? ')")).error
    assert "input() does nothing here" in (await run("import getpass; getpass.getpass()")).error


# Errors, as the model reads them


async def test_a_traceback_names_cells_and_lines_and_no_machinery(run):
    await run("def f(x):\n    return x['a']")
    done = await run("import json\nf({})")
    assert done.error == (
        "Traceback (most recent call last):\n  cell 2, line 2, in <module>\n    f({})\n"
        "  cell 1, line 2, in f\n    return x['a']\nKeyError: 'a'"
    )


async def test_library_frames_are_dropped(run):
    done = await run("import json\njson.loads('{')")
    assert "json/" not in done.error
    assert "cell 1, line 2" in done.error
    assert "JSONDecodeError" in done.error


async def test_a_syntax_error_shows_its_line(run):
    done = await run("x = 1\ny = = 2")
    assert "cell 1, line 2" in done.error
    assert "y = = 2" in done.error
    assert done.error.endswith("SyntaxError: invalid syntax")


async def test_a_chain_of_errors_is_kept(run):
    done = await run("try: 1 / 0\nexcept Exception as e: raise ValueError('bad') from e")
    assert "ZeroDivisionError" in done.error
    assert "direct cause" in done.error
    assert done.error.endswith("ValueError: bad")


async def test_an_error_that_cannot_be_shown_is_named(run):
    done = await run("class E(Exception):\n  def __str__(self): raise RuntimeError\nraise E")
    assert "E: <exception str() failed>" in done.error


# What the cell says of its variables


async def test_show_vars_lists_the_models_own(run):
    done = await run("import os\ntext, n, rows = 'abc', 5, [1, 2]\n_hidden = 1\nprint(SHOW_VARS())")
    assert done.stdout == "text: str, 3\nn: int\nrows: list, 2\n"
    assert done.report["vars"] == [["text", "str", 3], ["n", "int", 0], ["rows", "list", 2]]


async def test_at_most_40_variables_are_reported(run):
    assert len((await run("for i in range(100): globals()[f'v{i}'] = i")).report["vars"]) == 40


async def test_candidates_and_chunks_are_measured(run):
    done = await run("candidates = ['ab', 'cdef']\nchunks = ['x' * 400, 'x' * 40, 'x' * 404]")
    assert {k: done.report["candidates"][k] for k in ("items", "chars")} == {"items": 2, "chars": 6}
    assert done.report["chunks"] == {"items": 3, "chars": 844, "tokens": [10, 100, 101], "over": 1}


async def test_what_cannot_be_measured_is_not_reported(run):
    code = """
        class Bad:
            def __len__(self): raise ValueError
        chunks = Bad()
        candidates = 5
    """
    done = await run(code)
    assert (done.error, done.report["chunks"], done.report["candidates"]) == (None, None, None)


async def test_random_numbers_are_the_same_in_every_kernel(run):
    first = (await run("import random\nprint(random.random(), hash('a'))")).stdout
    other = await start_session(KernelOptions(), name="other")
    done = await other.run(1, "import random\nprint(random.random(), hash('a'))", facts=FACTS)
    await other.close()
    assert done.stdout == first


# Loading


async def load(session: Session, binding: dict[str, Any]) -> None:
    await session.bind("context", binding)


async def test_a_text_keeps_its_newlines_and_offsets(run, session, tmp_path):
    text = "a\r\nb\rc\n\x00é漢😀\ud800"
    (tmp_path / "t").write_bytes(text.encode("utf-8", "surrogatepass"))
    await load(session, {"kind": "text", "path": str(tmp_path / "t"), "encoding": "utf-8"})
    assert (await run("print(ascii(context), type(context))")).stdout == f"{text!a} <class 'str'>\n"


async def test_a_text_may_have_another_encoding_or_be_empty(run, session, tmp_path):
    (tmp_path / "t").write_bytes("é".encode("latin-1"))
    await load(session, {"kind": "text", "path": str(tmp_path / "t"), "encoding": "latin-1"})
    assert (await run("print(context)")).stdout == "é\n"
    (tmp_path / "t").write_bytes(b"")
    await load(session, {"kind": "text", "path": str(tmp_path / "t"), "encoding": "utf-8"})
    assert (await run("print(repr(context))")).stdout == "''\n"


@pytest.mark.parametrize("value", [["a", "b"], {"k": [1, None]}, "text", 5])
async def test_json_is_loaded_as_its_value(run, session, tmp_path, value):
    (tmp_path / "j").write_text(json.dumps(value))
    await load(session, {"kind": "json", "path": str(tmp_path / "j")})
    assert (await run("print(context)")).stdout == f"{value}\n"


async def test_documents_have_content_and_metadata(run, session, tmp_path):
    (tmp_path / "d").write_text(json.dumps([{"page_content": "x" * 500, "metadata": {"source": "a.pdf"}}]))
    await load(session, {"kind": "documents", "path": str(tmp_path / "d")})
    done = await run(
        "print(len(context), len(context[0].page_content), context[0].metadata)\nprint(len(repr(context)))"
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "1 500 {'source': 'a.pdf'}"
    assert int(lines[1]) < 200


@pytest.mark.parametrize("form", ["dict", "list"])
async def test_files_are_texts_by_name(run, session, tmp_path, form):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "sub" / "b.txt").write_bytes(b"\xe9")
    manifest = {"root": str(tmp_path), "as": form, "files": [["a.txt", "utf-8"], ["sub/b.txt", "latin-1"]]}
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    await load(session, {"kind": "files", "path": str(tmp_path / "m.json")})
    expected = {"a.txt": "one\r\n", "sub/b.txt": "é"}
    assert (await run("print(context)")).stdout == f"{expected if form == 'dict' else list(expected.values())}\n"


@pytest.mark.parametrize(
    ("content", "binding", "reason"),
    [
        (b"\xff", {"kind": "text", "encoding": "utf-8"}, "UnicodeDecodeError"),
        (b"{", {"kind": "json"}, "JSONDecodeError"),
        (b"x", {"kind": "text", "encoding": "no-such"}, "unknown encoding"),
        (b"x", {"kind": "music"}, "unknown kind"),
        (b"[{}]", {"kind": "documents"}, "page_content"),
    ],
)
async def test_what_cannot_be_loaded_says_why_and_harms_nothing(run, session, tmp_path, content, binding, reason):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ContextError, match=reason):
        await load(session, binding | {"path": str(tmp_path / "f")})
    assert (await run("print('on')")).stdout == "on\n"


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


@pytest.mark.timeout(300)
async def test_a_text_that_exceeds_the_memory_says_so(tmp_path):
    path = sparse(tmp_path / "big", 2_000_000_000)
    session = await start_session(KernelOptions(kernel_memory=1_000_000_000), name="small")
    with pytest.raises(ContextError, match="does not fit"):
        await load(session, {"kind": "text", "path": str(path), "encoding": "utf-8"})
    await session.close()


async def test_a_second_context_stands_beside_the_first(run, session, tmp_path):
    for name in ("context", "context_0"):
        (tmp_path / name).write_text(f"text of {name}")
        await session.bind(name, {"kind": "text", "path": str(tmp_path / name), "encoding": "utf-8"})
    assert (await run("print(context, '/', context_0)")).stdout == "text of context / text of context_0\n"
