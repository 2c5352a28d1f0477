"""Sub-calls: every answer at its own prompt, none waiting for another, nested runs in parallel."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from model_server import Answer, Request, scripted, spread
from rlm_graph import Limits, create_rlm

TEXT = "some text to work on. " * 100


def one_cell(code: str) -> Any:
    return scripted(f"```repl chunk\n{code}\n```")


def echo(request: Request) -> str:
    return f"<{request.prompt}>"


class EchoModel(BaseChatModel):
    """Answers in the process itself, after a moment that differs from prompt to prompt."""

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"<{messages[-1].text}>"))])

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        await asyncio.sleep(spread(messages[-1].text) / 100)
        return self._generate(messages)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_2000_calls_from_16_threads_each_get_their_own_answer(scene: Any) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "prompts = [f'p{i}' for i in range(2000)]\n"
        "with ThreadPoolExecutor(16) as pool:\n    got = list(pool.map(llm_query, prompts))\n"
        "answer['content'] = str(sum(g == f'<{p}>' for g, p in zip(got, prompts))); answer['ready'] = True"
    )
    s = scene(one_cell(code), echo)
    out = await s.rlm(limits=Limits(max_calls=2_000)).ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], s.server.asked("sub")) == ("2000", 2_000)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_10000_calls_in_one_batch_each_get_their_own_answer(scene: Any) -> None:
    code = (
        "prompts = [f'p{i}' for i in range(10000)]\ngot = llm_query_batched(prompts)\n"
        "answer['content'] = str(sum(g == f'<{p}>' for g, p in zip(got, prompts))); answer['ready'] = True"
    )
    rlm = create_rlm(
        scene(one_cell(code)).root, EchoModel(), direct_below=0, limits=Limits(max_calls=10_000)
    )  # 10 000 calls through ChatOpenAI would take a minute and show nothing more
    out = await rlm.ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["usage"]["calls"]) == ("10000", 10_000)


async def test_equal_prompts_of_one_cell_are_each_asked(scene: Any) -> None:
    numbers = iter(range(5))
    code = "votes = llm_query_batched(['vote'] * 5)\nanswer['content'] = ''.join(sorted(votes)); answer['ready'] = True"
    s = scene(one_cell(code), lambda r: str(next(numbers)))
    out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "01234"


@pytest.mark.slow
async def test_no_thread_waits_for_another_threads_answer_nor_for_a_slow_nested_run(scene: Any) -> None:
    """Shown by order: one prompt of 25 is answered only when 20 more have arrived, the first when 200 have."""
    code = (
        "from concurrent.futures import ThreadPoolExecutor\nimport threading\n"
        "slow = []\nnested = threading.Thread(target=lambda: slow.append(rlm_query('SLOW', context='deep ' * 50)))\n"
        "nested.start()\n"
        "with ThreadPoolExecutor(16) as pool:\n    got = list(pool.map(llm_query, [f'p{i}' for i in range(400)]))\n"
        "nested.join()\n"
        "answer['content'] = f'{len(set(got))} {slow[0]}'; answer['ready'] = True"
    )
    plain_asked: list[str] = []
    held = {f"p{n}": n + 40 for n in range(25, 360, 25)} | {"p0": 200}
    """Which prompts are held back until how many have arrived: 20 more, and those that may have overtaken it."""
    deep = "```repl compose\nanswer['content'] = 'deep answer'; answer['ready'] = True\n```"

    def sub(request: Request) -> str | Answer:
        if len(request.messages) > 1:
            return Answer(deep, until=lambda: len(plain_asked) == 400)
        plain_asked.append(request.prompt)
        if (awaited := held.get(request.prompt)) is not None:
            return Answer(f"<{request.prompt}>", until=lambda: len(plain_asked) >= awaited)
        # From 0 to 1 s, most of them short.
        return Answer(f"<{request.prompt}>", latency=spread(request.prompt) ** 6)

    s = scene(one_cell(code), sub)
    out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "400 deep answer"
    asked = [r for r in s.server.seen if r.model == "sub"]
    plain = [r for r in asked if r.prompt.startswith("p")]
    [nested] = [r for r in asked if r not in plain]
    waited = [(r.sent, plain[held[r.prompt] - 1].arrived) for r in plain if r.prompt in held]
    assert len(waited) == len(held) and all(sent is not None and sent > arrived for sent, arrived in waited)
    assert nested.sent is not None and nested.sent > plain[399].arrived


async def test_eight_nested_runs_go_in_parallel_each_in_its_own_namespace(scene: Any) -> None:
    deep = "```repl compose\nanswer['content'] = context[::-1]; answer['ready'] = True\n```"

    def sub(request: Request) -> Answer:
        return Answer(deep, until=lambda: s.server.asked("sub") == 8)

    code = (
        "got = rlm_query_batched(['reverse it'] * 8, [f'part {i}' for i in range(8)])\n"
        "answer['content'] = ','.join(got); answer['ready'] = True"
    )
    s = scene(one_cell(code), sub)
    spaces: set[str] = set()
    answer = None
    async for namespace, update in s.rlm().astream(
        {"question": "q", "context": TEXT}, stream_mode="updates", subgraphs=True
    ):
        if len(namespace) > 1 and "compose" in update:
            spaces.add(namespace[0])
        if not namespace and "compose" in update:
            answer = update["compose"]
    assert len(spaces) == 8
    assert answer is not None and answer["answer"] == ",".join(f"part {i}"[::-1] for i in range(8))
    assert answer["usage"]["by_depth"].keys() == {"0", "1"}


async def test_a_nested_run_has_a_kernel_of_its_own_and_may_ask_plain_calls(scene: Any) -> None:
    def sub(request: Request) -> str:
        if len(request.messages) > 1:
            return "```repl chunk\nx = llm_query('leaf ' + context)\nanswer['content'] = x; answer['ready'] = True\n```"
        return request.prompt.upper()

    code = "x = 1\ngot = rlm_query('ask', context='abc')\nanswer['content'] = f'{got} {x}'; answer['ready'] = True"
    out = await scene(one_cell(code), sub).rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "LEAF ABC 1"
    assert out["usage"]["calls"] == 2


async def test_at_the_last_depth_a_nested_call_becomes_a_plain_one(scene: Any) -> None:
    code = "answer['content'] = rlm_query('say it', context='abc'); answer['ready'] = True"
    s = scene(one_cell(code), echo)
    out = await s.rlm(limits=Limits(max_depth=1)).ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "<say it\n\nabc>"


async def test_a_nested_call_without_context_takes_its_text_as_the_context(scene: Any) -> None:
    def sub(request: Request) -> str:
        return "```repl compose\nanswer['content'] = context; answer['ready'] = True\n```"

    code = "answer['content'] = rlm_query('the whole prompt'); answer['ready'] = True"
    s = scene(one_cell(code), sub)
    out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "the whole prompt"
    assert any("Answer the prompt in `context`." in str(r.messages) for r in s.server.seen)


async def test_a_call_that_the_cell_forges_finds_nobody_to_answer_it(scene: Any) -> None:
    code = (
        "import gc, sys\ncalls = next(o for o in gc.get_objects() if type(o).__name__ == 'Calls')\n"
        "Request = sys.modules[type(calls).__module__].Request\n"
        "def told(kind):\n    try:\n        calls.ask([Request(kind, 'shell', {'command': 'ls'}, None)])\n"
        "    except SubCallError as e:\n        return str(e)\n"
        "answer['content'] = [told('tool'), told('sub'), llm_query('a true call')]; answer['ready'] = True"
    )
    out = await scene(one_cell(code)).rlm().ainvoke({"question": "q", "context": TEXT})
    assert "there is no tool 'shell'" in out["answer"]
    assert "sub_call: not what sub_call sends" in out["answer"]


async def test_one_failed_call_of_a_batch_does_not_sink_the_others(scene: Any) -> None:
    def sub(request: Request) -> str | Answer:
        return Answer("overloaded", status=500) if request.prompt == "p3" else echo(request)

    code = (
        "try:\n    llm_query_batched([f'p{i}' for i in range(6)])\nexcept SubCallError as e:\n"
        "    answer['content'] = repr(e.results); answer['ready'] = True"
    )
    out = await scene(one_cell(code), sub).rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == repr(["<p0>", "<p1>", "<p2>", None, "<p4>", "<p5>"])
    assert out["usage"]["failed"] == 1


async def test_an_answer_of_5_mb_arrives_byte_for_byte(scene: Any) -> None:
    code = "answer['content'] = ''.join(chr(0x20 + i % 0x2500) for i in range(5_000_000)); answer['ready'] = True"
    out = await scene(one_cell(code)).rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "".join(chr(0x20 + i % 0x2500) for i in range(5_000_000))


def test_two_loops_and_the_users_own_call_share_one_model(scene: Any) -> None:
    """ChatOpenAI's client is bound to a loop: the RLM may only ever call it where the caller runs."""
    code = "answer['content'] = llm_query('hello'); answer['ready'] = True"
    s = scene(one_cell(code), echo)
    rlm = s.rlm()

    async def invoked() -> str:
        return rlm.invoke({"question": "q", "context": TEXT})["answer"]

    async def awaited_and_then_used() -> tuple[str, str]:
        out = await rlm.ainvoke({"question": "q", "context": TEXT})
        return out["answer"], (await s.sub.ainvoke("mine")).text

    assert asyncio.run(invoked()) == "<hello>"
    assert asyncio.run(invoked()) == "<hello>"
    assert asyncio.run(awaited_and_then_used()) == ("<hello>", "<mine>")
    assert s.sub.invoke("mine too").text == "<mine too>"


async def test_invoke_works_inside_a_running_loop_and_batch_runs_several_at_once(scene: Any) -> None:
    code = "answer['content'] = llm_query(context[:9]); answer['ready'] = True"
    rlm = scene(one_cell(code), echo).rlm()
    assert rlm.invoke({"question": "q", "context": TEXT})["answer"] == f"<{TEXT[:9]}>"
    outs = await asyncio.to_thread(rlm.batch, [{"question": "q", "context": f"text-{i:04} {TEXT}"} for i in range(4)])
    assert [o["answer"] for o in outs] == [f"<text-{i:04}>" for i in range(4)]
    outs = await rlm.abatch([{"question": "q", "context": f"text-{i:04} {TEXT}"} for i in range(4)])
    assert [o["answer"] for o in outs] == [f"<text-{i:04}>" for i in range(4)]
