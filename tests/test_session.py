"""One kernel as the host sees it: calls, output, time, death, and what is left after the end."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from rlm_graph.errors import ContextError, KernelError
from rlm_graph.kernel import local, process
from rlm_graph.kernel.inside import frames
from rlm_graph.kernel.session import KernelOptions, Session, _sessions, close_all, start_session
from rlm_graph.state import Call, Done, Reply, Waiting

FACTS = {"window": 1_000, "reset_answer": False}


def echo(call: Call) -> Reply:
    return Reply(text=f"re: {call.prompt}")


async def run(
    session: Session,
    code: str,
    *,
    index: int = 1,
    answer: Callable[[Call], Reply] = echo,
    facts: dict[str, Any] = FACTS,
) -> Done:
    """Runs a cell to its end, answering its calls."""
    out = await session.run(index, textwrap.dedent(code), facts=facts)
    while isinstance(out, Waiting):
        session.give({call.number: answer(call) for call in out.calls})
        out = await session.wait()
    return out


@pytest_asyncio.fixture
async def session() -> AsyncIterator[Session]:
    started = await start_session(KernelOptions(), name="test")
    yield started
    await started.close()


async def with_options(**options: Any) -> Session:
    return await start_session(KernelOptions(**options), name="test")


def exists(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(true: Callable[[], Any], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return bool(found)


async def gone(pid: int) -> bool:
    return await until(lambda: not exists(pid))


async def asked_together(session: Session, code: str, prompts: set[str]) -> list[Call]:
    """Runs a cell until all these calls wait for an answer at once."""
    out = await session.run(1, textwrap.dedent(code), facts=FACTS)
    assert isinstance(out, Waiting)
    calls = list(out.calls)
    async with asyncio.timeout(60):
        while {call.prompt for call in calls} != prompts:
            out = await session.wait()
            assert isinstance(out, Waiting)
            calls += out.calls
    return calls


async def test_a_cell_cannot_fill_the_disk_through_its_kernels_log(session):
    done = await run(
        session,
        """
        import os
        folder = "/proc/self/fd"
        logs = [int(fd) for fd in os.listdir(folder) if os.path.islink(f"{folder}/{fd}")
                and "memfd:log" in os.readlink(f"{folder}/{fd}")]
        written = 0
        try:
            while written < 10_000_000:
                written += os.write(logs[0], b"x" * 100_000)
        except OSError as error:
            print(len(logs) > 0, written < 1_000_000, error.strerror)
        """,
    )
    assert done.stdout.startswith("True True")


# A cell's end


async def test_what_a_cell_prints_and_its_last_value_are_its_output(session):
    done = await run(session, "print('a')\nimport sys\nprint('b', file=sys.stderr)\n40 + 2")
    assert done.stdout == "a\nb\n42\n"
    assert done.error is None


async def test_variables_outlive_a_cell(session):
    await run(session, "x = 5")
    assert (await run(session, "print(x)", index=2)).stdout == "5\n"


async def test_a_cell_that_ended_stays_ended(session):
    done = await run(session, "print(1)")
    assert await session.wait() is done
    assert await session.wait(gather=False) is done


async def test_a_failed_cell_keeps_its_output_and_its_variables(session):
    done = await run(session, "x = 1\nprint('before')\nx = 2\n1 / 0\nx = 3")
    assert done.stdout == "before\n"
    assert done.error.endswith("ZeroDivisionError: division by zero")
    assert (await run(session, "print(x)", index=2)).stdout == "2\n"


async def test_a_session_runs_one_cell_at_a_time(session):
    await session.run(1, "llm_query('q')", facts=FACTS)
    with pytest.raises(RuntimeError, match="still runs"):
        await session.run(2, "1", facts=FACTS)


async def test_waiting_before_any_cell_is_an_error(session):
    with pytest.raises(RuntimeError, match="no cell"):
        await session.wait()


# Calls


async def test_a_call_waits_for_its_answer(session):
    out = await session.run(1, "print(llm_query('q', model='m'))", facts=FACTS)
    assert isinstance(out, Waiting)
    (call,) = out.calls
    assert (call.kind, call.prompt, call.context, call.model) == ("llm", "q", None, "m")
    session.give({call.number: Reply(text="a")})
    assert (await session.wait()).stdout == "a\n"


async def test_2_000_calls_of_16_threads_each_get_their_own_answer(session):
    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda i: llm_query(f"{i}"), range(2000)))
        print(answers == [f"re: {i}" for i in range(2000)])
    """
    assert (await run(session, code)).stdout == "True\n"


async def test_a_batch_of_10_000_is_one_group_and_comes_back_in_order(session):
    code = "r = llm_query_batched([f'{i}' for i in range(10_000)])\nprint(r == [f're: {i}' for i in range(10_000)])"
    groups: set[int] = set()

    def answer(call: Call) -> Reply:
        groups.add(call.group)
        return echo(call)

    assert (await run(session, code, answer=answer)).stdout == "True\n"
    assert len(groups) == 1


async def test_answers_may_come_in_any_order_and_one_by_one(session):
    out = await session.run(1, "print(llm_query_batched(['a', 'b', 'c']))", facts=FACTS)
    for call in reversed(out.calls):
        session.give({call.number: echo(call)})
    assert (await session.wait()).stdout == "['re: a', 're: b', 're: c']\n"


async def test_awaited_calls_are_in_flight_together(session):
    code = "import asyncio\nprint(await asyncio.gather(*[allm_query(str(i)) for i in range(3)]))"
    calls = await asked_together(session, code, {"0", "1", "2"})
    assert [call.prompt for call in calls] == ["0", "1", "2"]
    session.give({call.number: echo(call) for call in calls})
    assert (await session.wait()).stdout == "['re: 0', 're: 1', 're: 2']\n"


async def test_calls_work_in_the_loops_of_threads(session):
    code = """
        import asyncio, threading
        got = {}
        async def main(i):
            got[i] = await asyncio.gather(allm_query(f"{i}a"), allm_query(f"{i}b"))
        threads = [threading.Thread(target=lambda i=i: asyncio.run(main(i))) for i in range(4)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(sorted(got.items()) == [(i, [f"re: {i}a", f"re: {i}b"]) for i in range(4)])
    """
    assert (await run(session, code)).stdout == "True\n"


async def test_awaited_threaded_and_batched_calls_mix(session):
    code = """
        import asyncio
        a, b, c = await asyncio.gather(
            allm_query("a"), asyncio.to_thread(llm_query, "b"), arlm_query_batched(["c", ("d", "text")]))
        print(a, b, c, llm_query("e"))
    """
    assert (await run(session, code)).stdout == "re: a re: b ['re: c', 're: d'] re: e\n"


async def test_calls_that_come_close_together_are_reported_together(session, monkeypatch):
    # What is close is a matter of the machine: here, what comes within two seconds.
    monkeypatch.setattr("rlm_graph.kernel.inbox._QUIET_SECONDS", 2.0)
    monkeypatch.setattr("rlm_graph.kernel.inbox._GATHER_SECONDS", 60.0)
    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(50) as pool: list(pool.map(llm_query, map(str, range(50))))
    """
    out = await session.run(1, textwrap.dedent(code), facts=FACTS)
    assert isinstance(out, Waiting)
    assert len(out.calls) == 50


async def test_without_gather_the_first_call_is_reported_alone(session):
    out = await session.run(1, "llm_query('a')\nllm_query('b')", facts=FACTS)
    session.give({call.number: echo(call) for call in out.calls})
    out = await session.wait(gather=False)
    assert [call.prompt for call in out.calls] == ["b"]


async def test_answers_to_unknown_numbers_are_ignored(session):
    out = await session.run(1, "print(llm_query('a'))", facts=FACTS)
    session.give({10**9: Reply(text="no"), -1: Reply(text="no")})
    session.give({call.number: echo(call) for call in out.calls})
    assert (await session.wait()).stdout == "re: a\n"


async def test_prompts_contexts_and_answers_beyond_a_frame_arrive_whole(session):
    code = """
        big = "é\\ud800x\\x00" * 2_000_000
        r = rlm_query(big, [big])
        print(r == big)
    """

    def answer(call: Call) -> Reply:
        assert call.context == [call.prompt]
        return Reply(text=call.prompt)

    assert (await run(session, code, answer=answer)).stdout == "True\n"


async def test_calls_that_a_cell_leaves_behind_fail_when_it_ends(session):
    code = """
        import threading
        def ask():
            global error
            try: llm_query("late")
            except SubCallError as e: error = e
        thread = threading.Thread(target=ask); thread.start()
        llm_query("q")
    """
    calls = await asked_together(session, code, {"late", "q"})
    session.give({call.number: echo(call) for call in calls if call.prompt == "q"})
    assert isinstance(await session.wait(), Done)
    done = await run(session, "thread.join(); print(error)", index=2)
    assert "cell ended" in done.stdout


async def test_a_call_that_the_last_cell_sent_as_it_ended_is_none_of_the_next_one_s(session):
    await run(session, "1")
    running = asyncio.ensure_future(session.run(2, "print(llm_query('own'))", facts=FACTS))
    await asyncio.sleep(0)
    session._loop.call_soon_threadsafe(session._receive, "calls", 0, [[99, "llm", "late", None, None, 1]])
    out = await running
    assert [call.prompt for call in out.calls] == ["own"]
    session.give({call.number: echo(call) for call in out.calls})
    assert (await session.wait()).stdout == "re: own\n"


async def test_a_child_process_is_told_that_it_cannot_call(session):
    code = """
        import os, sys
        if os.fork() == 0:
            try: llm_query("q")
            except RuntimeError as e: print("child:", e)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    done = await run(session, code)
    assert "child: calls work in threads" in done.stdout
    assert done.error is None


# Waiters


async def test_a_cancelled_waiter_loses_no_call(session):
    await session.run(1, "r = llm_query_batched(['a'])", facts=FACTS)
    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool: r = list(pool.map(lambda i: llm_query(str(i)), range(400)))
        print(len(r))
    """
    session.give({1: Reply(text="a")})
    await session.wait()
    seen = []
    out: Waiting | Done = await session.run(2, textwrap.dedent(code), facts=FACTS)
    while isinstance(out, Waiting):
        seen += [call.prompt for call in out.calls]
        session.give({call.number: echo(call) for call in out.calls})
        while True:
            waiter = asyncio.ensure_future(session.wait())
            done, _ = await asyncio.wait({waiter}, timeout=0.006)
            if done:
                out = waiter.result()
                break
            waiter.cancel()
            try:
                out = await waiter
            except asyncio.CancelledError:
                continue
            break
    assert out.stdout == "400\n"
    assert sorted(seen, key=int) == [str(i) for i in range(400)]


async def test_a_cancelled_waiter_loses_no_end(session):
    out = await session.run(1, "llm_query('q'); print('end')", facts=FACTS)
    waiter = asyncio.ensure_future(session.wait())
    await asyncio.sleep(0)  # now it waits
    waiter.cancel()
    session.give({call.number: echo(call) for call in out.calls})
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert (await session.wait()).stdout == "end\n"


def test_a_session_serves_several_event_loops_and_threads():
    session = asyncio.run(with_options())
    out = asyncio.run(session.run(1, "print(llm_query('q'))", facts=FACTS))
    giver = threading.Thread(target=lambda: session.give({call.number: echo(call) for call in out.calls}))
    giver.start()
    giver.join()
    assert asyncio.run(session.wait()).stdout == "re: q\n"
    asyncio.run(session.close())


def test_two_loops_at_once_have_their_own_sessions():
    results = {}

    async def work(name: str) -> None:
        session = await with_options()
        results[name] = (await run(session, f"print(llm_query('{name}'))")).stdout
        await session.close()

    threads = [threading.Thread(target=lambda n=name: asyncio.run(work(n))) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": "re: a\n", "b": "re: b\n"}


# Output


async def test_50_mb_of_prints_are_head_count_and_tail(session):
    done = await run(session, "for i in range(500_000): print(f'{i:099d}')")
    assert len(done.stdout) < 10_200
    assert done.stdout.startswith("0" * 99 + "\n")
    assert done.stdout.endswith("499999\n")
    assert "\n… [49,990,000 characters left out] …\n" in done.stdout


async def test_one_huge_print_is_cut_the_same_way(session):
    done = await run(session, "print('a' + 'b' * 50_000_000 + 'c', end='')")
    assert done.stdout[0] == "a"
    assert done.stdout[-1] == "c"
    assert "[49,990,002 characters left out]" in done.stdout


async def test_a_huge_last_value_is_cut_too(session):
    done = await run(session, "'x' * 20_000_000")
    assert len(done.stdout) < 10_200
    assert "characters left out" in done.stdout


async def test_output_within_the_bound_is_whole(session):
    assert (await run(session, "print('x' * 9_999)")).stdout == "x" * 9_999 + "\n"


async def test_the_bound_is_anew_for_each_cell(session):
    await run(session, "print('x' * 100_000)")
    assert (await run(session, "print('y')", index=2)).stdout == "y\n"


async def test_the_bound_is_an_option():
    session = await with_options(cell_output=30)
    done = await run(session, "print('a' * 100, end='')")
    await session.close()
    assert done.stdout == "a" * 20 + "\n… [70 characters left out] …\n" + "a" * 10


async def test_flushed_prints_are_never_lost(session):
    done = await run(session, "for i in range(3_000): print('.', end='', flush=True)")
    assert done.stdout == "." * 3_000


async def test_lone_surrogates_are_printed_escaped_and_nul_is_kept(session):
    assert (await run(session, r"print('a\ud800b\x00c')")).stdout == "a\\ud800b\x00c\n"


async def test_a_lone_surrogate_in_the_code_means_itself(session):
    assert (await run(session, "print(ord('\ud800'))")).stdout == f"{0xD800}\n"


async def test_what_subprocesses_print_is_output(session):
    done = await run(session, "import os\nprint('a')\nos.system('echo b')\nprint('c')\n!echo d")
    assert sorted(done.stdout.split()) == ["a", "b", "c", "d"]


async def test_what_children_print_stands_in_the_order_in_which_it_was_printed(session):
    code = """
        import os, threading
        def spin():
            while True: pass
        for _ in range(3): threading.Thread(target=spin, daemon=True).start()
        for n in range(30):
            if os.fork() == 0:
                for word in ("child", " ", str(n), "\\n"): os.write(1, word.encode())
                os._exit(0)
            os.wait()
            print("parent", n)
    """
    lines = (await run(session, code)).stdout.splitlines()
    assert lines == [f"{who} {n}" for n in range(30) for who in ("child", "parent")]


async def test_what_is_written_to_the_descriptor_at_the_very_end_of_a_busy_cell_is_shown(session):
    code = """
        import os, threading
        if "spin" not in globals():
            def spin():
                while True: pass
            for _ in range(3): threading.Thread(target=spin, daemon=True).start()
        n = os.write(1, b"last words")
    """
    shown = [(await run(session, code, index=index)).stdout for index in range(1, 31)]
    assert shown == ["last words"] * 30


async def test_an_endless_traceback_is_bounded(session):
    done = await run(session, "def f(n): return f(n + 1)\nf(0)")
    assert "RecursionError" in done.error
    assert len(done.error) < 5_000
    done = await run(session, "raise ValueError('x' * 1_000_000)", index=2)
    assert len(done.error) < 5_000


# Time and memory


async def test_a_cell_that_computes_too_long_is_stopped_and_the_kernel_goes_on():
    session = await with_options(cell_seconds=3)
    done = await run(session, "x = 1\nprint('a')\nwhile True: pass")
    assert done.stdout == "a\n"
    assert done.error.startswith("Timeout: the cell computed for more than 3 s")
    assert "line 3" in done.error
    assert (await run(session, "print(x)", index=2)).stdout == "1\n"
    await session.close()


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nawait asyncio.sleep(60)",
        "import asyncio, time\nawait asyncio.sleep(0)\ntime.sleep(60)",
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool: pool.map(time.sleep, [9] * 4)",
        "!sleep 60",
        "import threading\nthreading.Event().wait()",
    ],
    ids=["await", "blocked loop", "threads", "subprocess", "lock"],
)
async def test_every_kind_of_sleep_is_stopped(code):
    session = await with_options(cell_seconds=0.5)
    done = await run(session, code)
    assert done.error.startswith("Timeout")
    assert (await run(session, "print('on')", index=2)).stdout == "on\n"
    await session.close()


async def test_a_cell_that_heeds_no_interrupt_is_killed():
    session = await with_options(cell_seconds=2)
    with pytest.raises(KernelError) as raised:
        await run(session, "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass")
    assert raised.value.cause == "hang"
    assert await gone(session.pid)
    await session.close()


async def test_the_clock_stops_while_a_cell_waits_for_answers():
    session = await with_options(cell_seconds=2)
    out = await session.run(1, "print(llm_query('q'))", facts=FACTS)
    assert isinstance(out, Waiting)
    await asyncio.sleep(2.5)
    session.give({call.number: echo(call) for call in out.calls})
    assert (await session.wait()).error is None
    await session.close()


async def test_too_much_memory_is_an_error_of_the_cell():
    session = await with_options(kernel_memory=1_000_000_000)
    done = await run(session, "x = 'a' * 2_000_000_000")
    assert "MemoryError" in done.error
    assert "1,000,000,000 bytes" in done.error
    assert (await run(session, "print('on')", index=2)).stdout == "on\n"
    await session.close()


# Death


async def test_a_kernel_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr("rlm_graph.kernel.process.command", lambda *_: [sys.executable, "-c", "raise OSError('no')"])
    with pytest.raises(KernelError, match="did not start: OSError: no") as raised:
        await with_options()
    assert raised.value.cause == "start"


async def test_a_program_that_is_not_there_says_so(monkeypatch):
    monkeypatch.setattr("rlm_graph.kernel.process.command", lambda *_: ["/nowhere/python"])
    with pytest.raises(KernelError, match="/nowhere/python") as raised:
        await with_options()
    assert raised.value.cause == "start"


async def test_an_idle_kernel_that_dies_is_not_alive_and_runs_nothing(session):
    await run(session, "1")
    os.kill(session.pid, signal.SIGKILL)
    assert await gone(session.pid)
    assert await until(lambda: not session.alive)
    with pytest.raises(KernelError, match="SIGKILL") as raised:
        await session.run(2, "1", facts=FACTS)
    assert raised.value.cause == "signal"


async def test_a_running_cell_that_ends_the_kernel_fails_its_waiter(session):
    with pytest.raises(KernelError, match="exit code 7") as raised:
        await run(session, "import os; os._exit(7)")
    assert raised.value.cause == "exit"


async def test_a_kernel_that_crashes_says_by_which_signal(session):
    with pytest.raises(KernelError, match="SIGSEGV") as raised:
        await run(session, "import ctypes; ctypes.string_at(0)")
    assert raised.value.cause == "signal"


@pytest.mark.parametrize("late", ["that it ended", "how it ended"])
async def test_why_a_kernel_ended_is_waited_for_where_the_machine_is_slow_to_tell(session, monkeypatch, late):
    if late == "how it ended":
        obituary = process.obituary

        def slowly(*args: Any, **more: Any) -> KernelError:
            time.sleep(1)
            return obituary(*args, **more)

        monkeypatch.setattr(local, "obituary", slowly)
    else:
        loop, live = session._loop, session._live
        loop.call_soon_threadsafe(live._stop_watching)
        loop.call_soon_threadsafe(process.watch_exit, live.process, lambda: loop.call_later(1, session._exited))
    with pytest.raises(KernelError, match="exit code 7") as raised:
        await run(session, "import os; os._exit(7)")
    assert raised.value.cause == "exit"


async def test_a_cell_that_closes_the_bridge_and_lives_on_is_ended(session, monkeypatch):
    monkeypatch.setattr("rlm_graph.kernel.session._EXIT_SECONDS", 0.5)
    code = """
        import socket, sys, time
        sys.modules["inside.wire"].end_process_group = lambda: time.sleep(60)
        wire._sock.shutdown(socket.SHUT_RDWR)
        time.sleep(60)
    """
    with pytest.raises(KernelError, match="the kernel closed its bridge") as raised:
        await run(session, HOSTILE + textwrap.dedent(code))
    assert raised.value.cause == "closed"
    assert await gone(session.pid)


async def test_a_kernel_that_dies_while_its_cell_waits_fails_the_waiter(session):
    await session.run(1, "llm_query('q')", facts=FACTS)
    waiter = asyncio.ensure_future(session.wait())
    await asyncio.sleep(0)  # now it waits
    os.kill(session.pid, signal.SIGTERM)
    with pytest.raises(KernelError) as raised:
        await waiter
    assert raised.value.cause in ("signal", "exit")


async def test_a_child_of_the_kernel_does_not_hide_its_death(session):
    code = "import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(5); os._exit(0)\nos._exit(3)"
    with pytest.raises(KernelError, match="exit code 3"):
        await run(session, code)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def descendants(pid: int) -> list[int]:
    """A process and those below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


async def test_a_kernel_that_dies_while_loading_fails_the_loader(session, tmp_path):
    pids = descendants(session.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that it cannot have loaded before it dies
    assert await until(lambda: all(state(pid) == "T" for pid in pids))
    (tmp_path / "text").write_text("text")
    loading = asyncio.ensure_future(session.bind("context", {"kind": "text", "path": str(tmp_path / "text")}))
    assert await until(lambda: session._bridge._asked)
    os.kill(session.pid, signal.SIGKILL)
    with pytest.raises(KernelError, match="SIGKILL"):
        await loading


async def test_what_is_no_file_is_not_waited_for(session, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContextError, match="pipe is not a regular file"):
        await session.bind("context", {"kind": "text", "path": str(tmp_path / "pipe")})


async def test_a_cell_that_breaks_its_own_report_is_a_hang(session):
    code = "import gc\nfor o in gc.get_objects():\n  if type(o).__name__ == 'Desk': o.finish = lambda *a: None"
    with pytest.raises(KernelError) as raised:
        await run(session, code)
    assert raised.value.cause == "hang"


HOSTILE = """
import gc, json
wire = next(o for o in gc.get_objects() if type(o).__name__ == "Wire")
def send(body): wire._sock.sendall(len(body).to_bytes(4, "big") + body)
"""


@pytest.mark.parametrize(
    "attack",
    [
        "wire._sock.sendall(b'\\xff' * 1000)",
        "wire._sock.sendall(b'\\0' * 1000)",
        "send(b'no json')",
        "send(b'[' * 100_000)",
        "send(b'[]')",
        'send(b\'{"id": 0, "op": "calls", "arg": [[1]]}\')',
        'send(b\'{"id": 0, "op": "calls", "arg": {}}\')',
        'send(b\'{"id": 0, "op": "calls", "arg": [[1, "shell", "q", null, null, 1]]}\')',
        'send(b\'{"id": 0, "op": "part", "arg": 5}\')',
        "part = json.dumps({'id': 0, 'op': 'part', 'arg': ['x' * 3_000_000, False]}).encode()\nwhile True: send(part)",
        "rows = json.dumps({'id': 0, 'op': 'calls', 'arg': [[i, 'llm', 'q', None, None, 1] for i in range(50_000)]})\n"
        "for n in range(9): send(rows.replace('[', f'[{n}', 50_000 + 1).replace(f'[{n}[', '[[').encode())",
        'send(b\'{"id": 0, "op": "report", "arg": {"index": 1, "output": 5}}\')',
    ],
)
async def test_what_is_no_frame_ends_the_session_and_nothing_else(session, attack):
    with pytest.raises(KernelError) as raised:
        await run(session, HOSTILE + attack + "\nllm_query('q')")
    assert raised.value.cause == "closed"
    assert "bridge" in str(raised.value)
    assert await gone(session.pid)


@pytest.mark.parametrize(
    "forged",
    [
        "'coverage': {'unread': [['a', 0, BIG], [BIG, 0, 1], [-1, 0, 1]], 'chars': BIG, 'scanned': -5}",
        "'chunks': {'items': BIG, 'chars': BIG, 'over': BIG, 'tokens': [BIG]}",
        "'candidates': {'items': -1, 'chars': BIG, 'tokens': []}, 'vars': [['a', 'int', BIG]]",
        "'answer': {'content': 'x', 'citations': {'passages': [['a', 0, BIG, ''], [BIG, 0, 1, '']], 'more': BIG}}",
    ],
)
async def test_what_a_forged_report_counts_can_be_kept_and_shown(session, forged):
    code = f"BIG = 10**400\nwire.send('report', {{'index': 1, 'output': 'forged', 'error': None, {forged}}})"
    done = await run(session, HOSTILE + code)
    assert done.stdout == "forged"
    report = {**done.report, "answer": done.answer}
    assert orjson.loads(orjson.dumps(report)) == report
    chunks = report["chunks"] or report["candidates"] or {"tokens": [0, 0, 0]}
    assert len(chunks["tokens"]) == 3 and f"{max(chunks['tokens']):,}"


@pytest.mark.parametrize("value", ["1,", "[],", '"",'])
def test_what_unfolds_to_too_many_values_is_refused_before_it_does(monkeypatch, value):
    monkeypatch.setattr(frames, "_MOST_VALUES", 1_000)
    long = '{"id": 0, "op": "report", "arg": [' + value * 1_100 + "1]}"
    part = {"id": 0, "op": "part", "arg": [long, True]}
    with pytest.raises(frames.Malformed, match="more than 1,000 values"):
        frames.Joiner().feed(json.dumps(part).encode())


def test_the_commas_of_a_text_are_no_values(monkeypatch):
    monkeypatch.setattr(frames, "_MOST_VALUES", 1_000)
    message = {"id": 0, "op": "report", "arg": ["a, b, " * 2_000, 'c, \\"d", ' * 9, "e\\"]}
    part = {"id": 0, "op": "part", "arg": [json.dumps(message), True]}
    assert frames.Joiner().feed(json.dumps(part).encode()) == message


async def test_frames_that_mean_nothing_are_ignored(session):
    code = HOSTILE + textwrap.dedent("""
        send(b'{"id": 77, "op": "done", "arg": null}')
        send(b'{"id": 0, "op": "unheard of", "arg": null}')
        send(b'{"id": 0, "op": "hello", "arg": null}')
        send(b'{"id": 0, "op": "report", "arg": {"index": 99}}')
        print("on")
    """)
    assert (await run(session, code)).stdout == "on\n"


# What is left


async def test_the_kernel_sees_nothing_of_the_hosts_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    session = await with_options()
    done = await run(session, "import os\nprint(dict(os.environ), open(f'/proc/{os.getpid()}/environ').read())")
    await session.close()
    assert "sk-secret" not in done.stdout
    assert "OPENAI" not in done.stdout


async def test_the_kernel_imports_nothing_of_the_hosts(session):
    done = await run(session, "import sys\nprint([n for n in sys.modules if n.startswith(('rlm_graph', 'lang'))])")
    assert done.stdout == "[]\n"


@pytest.fixture
def everything(monkeypatch) -> Iterator[Callable[[], set[str]]]:
    """Names descriptors, threads, and folders in a temporary folder of the test's own (short, for its sockets)."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)

        def found() -> set[str]:
            gc.collect()
            descriptors = {
                f"{each.name} {target}"
                for each in Path("/proc/self/fd").iterdir()
                if (target := link(each)) not in (None, "/proc")  # a look at what kernels hold of memory is no leftover
            }
            return descriptors | set(map(str, threading.enumerate())) | set(map(str, Path(folder).iterdir()))

        yield found


def link(descriptor: Path) -> str | None:
    """What is open there; None where it was closed meanwhile, as the one is that lists them."""
    try:
        return str(descriptor.readlink())
    except OSError:
        return None


async def test_close_leaves_no_process_descriptor_thread_or_folder(everything):
    await (await with_options()).close()
    before = everything()
    sessions = [await with_options() for _ in range(3)]
    await run(sessions[0], "import subprocess; child = subprocess.Popen(['sleep', '60'])")
    await sessions[1].run(1, "llm_query('q')", facts=FACTS)
    await asyncio.gather(*[session.close() for session in sessions])
    assert not any(exists(session.pid) for session in sessions)
    await until(lambda: everything() <= before)
    assert everything() - before == set()


async def test_close_may_be_called_again_and_fails_the_waiters(session):
    await session.run(1, "llm_query('q')", facts=FACTS)
    waiter = asyncio.ensure_future(session.wait())
    await asyncio.sleep(0)  # now it waits
    await session.close()
    await session.close()
    session.close_soon()
    for failing in (waiter, session.wait(), session.run(2, "1", facts=FACTS), session.bind("x", {})):
        with pytest.raises(KernelError) as raised:
            await failing
        assert raised.value.cause == "closed"
    session.give({1: Reply(text="late")})
    assert not session.alive


async def test_a_start_that_is_cancelled_leaves_no_kernel(everything):
    await (await with_options()).close()
    before = everything()
    for pause in (0, 0.01, 0.05, 0.2):
        starting = asyncio.ensure_future(with_options())
        await asyncio.sleep(pause)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    await until(lambda: everything() <= before)
    assert everything() - before == set()


async def test_of_a_start_that_is_cancelled_nothing_is_printed():
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    starting = asyncio.ensure_future(with_options())
    await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    del starting
    assert await until(lambda: not any(session.name == "test" for session in list(_sessions)))
    await asyncio.sleep(0.02)
    gc.collect()
    assert told == []


def test_all_sessions_are_ended_while_others_end_by_themselves():
    def begin_and_end() -> None:
        for _ in range(1_000):
            Session(KernelOptions(), name="short").close_soon()

    thread, interval = threading.Thread(target=begin_and_end), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        while thread.is_alive():
            close_all()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    close_all()
    assert not any(session.name == "short" for session in list(_sessions))


HOST = """
import asyncio, os, sys, time
from rlm_graph.kernel.session import KernelOptions, start_session
async def main():
    session = await start_session(KernelOptions(), name="x")
    facts = {"window": None, "reset_answer": False}
    await session.run(1, CODE, facts=facts)
    print(session.pid, session._live.process.folder, flush=True)
    END
asyncio.run(main())
"""


@pytest.fixture
def own_tmp() -> Iterator[dict[str, str]]:
    """The environment of hosts whose folders no other host clears up."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield {**os.environ, "TMPDIR": folder}


async def host(code: str, end: str, env: dict[str, str]) -> tuple[subprocess.Popen[str], int, Path]:
    script = HOST.replace("CODE", repr(code)).replace("END", end)
    process = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    pid, folder = (await asyncio.to_thread(process.stdout.readline)).split()
    process.stdout.close()
    return process, int(pid), Path(folder)


@pytest.mark.parametrize(
    "code",
    ["1", "llm_query('q')", "import threading, re\nthreading.Timer(0.2, lambda: re.match('(a+)+b', 'a' * 60)).start()"],
    ids=["idle", "waiting", "holding the GIL"],
)
async def test_a_host_that_is_killed_leaves_no_kernel(code, own_tmp):
    process, pid, folder = await host(code, "time.sleep(600)", own_tmp)
    assert exists(pid)
    await asyncio.sleep(0.5)
    process.kill()
    process.wait()
    assert await gone(pid)
    os.utime(folder / "lock", (0, 0))
    another, _, its_own = await host("1", "sys.exit(0)", own_tmp)
    assert await asyncio.to_thread(another.wait, 60) == 0
    assert not folder.exists() and not its_own.exists()


async def test_a_host_that_exits_without_closing_leaves_nothing(own_tmp):
    process, pid, folder = await host("llm_query('q')", "sys.exit(0)", own_tmp)
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert await gone(pid)
    assert not folder.exists()


async def test_a_forked_host_leaves_its_parents_session_alone(session):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            session.give({1: Reply(text="x")})
            session.close_soon()
            code = 0 if not session.alive else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]) == 0
    assert (await run(session, "print('on')")).stdout == "on\n"


async def test_loading_says_why_it_cannot(session, tmp_path):
    with pytest.raises(ContextError, match=r"context.*No such file"):
        await session.bind("context", {"kind": "text", "path": str(tmp_path / "none")})
