"""The official dialect runs as it is: unlabelled blocks, `answer`, `FINAL` and `FINAL_VAR`, in prose and in code."""

from __future__ import annotations

from typing import Any

from model_server import scripted

TEXT = "The magic number is 417. " * 2_000
OFFICIAL = scripted(
    "I will look at the context first.\n\n```repl\nprint(type(context), len(context))\nprint(context[:100])\n```",
    "Now I chunk it and ask the sub-LLM about every chunk.\n\n"
    "```repl\nsize = len(context) // 4\nparts = [context[i * size:(i + 1) * size] for i in range(4)]\n"
    "prompts = [f'What is the magic number? Here is the document:\\n{p}' for p in parts]\n"
    "answers = llm_query_batched(prompts)\nfor i, a in enumerate(answers):\n    print(f'chunk {i}: {a}')\n```",
    "All agree.\n\n```repl\nfinal = max(set(answers), key=answers.count)\nprint(SHOW_VARS())\n"
    'answer["content"] = final\nanswer["ready"] = True\n```',
)


async def test_an_official_transcript_runs_unlabelled(scene: Any) -> None:
    s = scene(OFFICIAL, lambda request: "417")
    out = await s.rlm().ainvoke({"question": "What is the magic number?", "context": TEXT})
    assert (out["answer"], out["stop_reason"], out["usage"]["calls"]) == ("417", "answered", 4)


async def test_final_var_in_prose_ends_the_run(scene: Any) -> None:
    root = scripted("```repl\nfound = llm_query('x' + context[:50])\nprint(found)\n```", "Done.\n\nFINAL_VAR(found)")
    out = await scene(root, lambda request: "417").rlm().ainvoke({"question": "Which?", "context": TEXT})
    assert (out["answer"], out["stop_reason"]) == ("417", "answered")


async def test_final_in_prose_ends_the_run(scene: Any) -> None:
    root = scripted("```repl\nprint(context[:9])\n```", "FINAL(it is 417)")
    out = await scene(root).rlm().ainvoke({"question": "Which?", "context": TEXT})
    assert (out["answer"], out["stop_reason"]) == ("it is 417", "answered")


async def test_final_var_in_code_ends_the_run(scene: Any) -> None:
    root = scripted("```python\nn = context.count('417')\nFINAL_VAR('n')\n```")
    out = await scene(root).rlm().ainvoke({"question": "How often?", "context": TEXT})
    assert out["answer"] == "2000"


async def test_an_answer_made_ready_in_a_probe_ends_the_run(scene: Any) -> None:
    root = scripted("```repl probe\nanswer['content'], answer['ready'] = 417, True\n```\n```repl filter\n1/0\n```")
    out = await scene(root).rlm().ainvoke({"question": "Which?", "context": TEXT})
    assert (out["answer"], out["stop_reason"], out["usage"]["turns"]) == ("417", "answered", 1)


async def test_several_labelled_cells_run_in_order_without_another_turn(scene: Any) -> None:
    root = scripted(
        "```repl probe\nlog = ['probe']\n```\n```repl filter\ncandidates = ['a']; log.append('filter')\n```\n"
        "```repl chunk\nchunks = ['b']; log.append('chunk')\n```\n"
        "```repl compose\nanswer['content'] = ' '.join(log); answer['ready'] = True\n```"
    )
    out = await scene(root).rlm().ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["usage"]["turns"]) == ("probe filter chunk", 1)


async def test_a_failed_cell_drops_the_ones_behind_it_and_shows_the_root_its_traceback(scene: Any) -> None:
    root = scripted(
        "```repl probe\nprint('so far')\nundefined_name\n```\n```repl filter\nprint('never')\n```",
        "```repl compose\nanswer['content'] = 'recovered'; answer['ready'] = True\n```",
    )
    s = scene(root)
    out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "recovered"
    second = s.root_prompts()[1]
    assert "so far" in second and "NameError: name 'undefined_name' is not defined" in second
    assert "The cells behind it were not run (filter)." in second
    assert "never" not in second.split("undefined_name' is not defined")[1]


async def test_variables_live_from_cell_to_cell_and_threads_and_awaits_may_ask(scene: Any) -> None:
    root = scripted(
        "```repl probe\nfrom concurrent.futures import ThreadPoolExecutor\nimport asyncio\n```\n"
        "```repl chunk\nwith ThreadPoolExecutor(4) as pool:\n    threads = list(pool.map(llm_query, 'abcd'))\n"
        "awaited = await asyncio.gather(*[allm_query(c) for c in 'efgh'])\n"
        "answer['content'] = ''.join(threads + awaited); answer['ready'] = True\n```"
    )
    out = await scene(root, lambda r: r.prompt.upper()).rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "ABCDEFGH"
