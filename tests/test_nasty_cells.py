"""Whatever a cell does, the run goes on, the root reads one clear line, and the host's memory stays as it was."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import kernels
from model_server import Answer, scripted
from rlm_graph import Limits
from rlm_graph.kernel import session
from rlm_graph.tokens import count_tokens

TEXT = "some text to work on. " * 100
BEFORE = "```repl probe\nkept = 41\n```\n"
AFTER = "```repl compose\nanswer['content'] = str(kept + 1); answer['ready'] = True\n```"
SECONDS = 4.0
"""What cells may compute that do so without end: enough for those before and behind them, on a slow machine too."""

CELLS = {
    "prints 1 GB": (
        "for _ in range(1000):\n    print('x' * 1_000_000)",
        "characters left out",
    ),
    "allocates past its memory bound": ("hog = bytearray(900_000_000)", "MemoryError"),
    "allocates bit by bit": ("hog = []\nwhile True:\n    hog.append('x' * 10_000_000 + str(len(hog)))", "MemoryError"),
    "endless loop": ("while True: pass", "Timeout"),
    "swallows KeyboardInterrupt": (
        "while True:\n    try:\n        while True: pass\n    except KeyboardInterrupt:\n        pass",
        f"computed for more than {SECONDS:g} s",
    ),
    "ignores the interrupt": (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        f"computed for more than {SECONDS:g} s and could not be stopped",
    ),
    "hangs in C": (  # PyDLL keeps the interpreter's lock, so that no interrupt is heeded
        "import ctypes\nctypes.PyDLL(None).sleep(600)",
        f"computed for more than {SECONDS:g} s and could not be stopped",
    ),
    "os._exit": ("import os\nos._exit(0)", "ended itself with exit code 0"),
    "kills itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    "crashes in C": ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "sys.exit": ("import sys\nsys.exit()", "sys.exit() does nothing here"),
    "exit": ("exit()", "exit() does nothing here"),
    "input": ("input('name? ')", "input()"),
    "top-level await": ("import asyncio\nawait asyncio.sleep(0.01)\nprint('awaited')", "awaited"),
}
WITHOUT_END = {"endless loop", "swallows KeyboardInterrupt", "ignores the interrupt", "hangs in C"}


@contextmanager
def most_memory() -> Iterator[list[int]]:
    """By how many bytes this process has grown at most, meanwhile too: what is freed before the end counts."""
    host, most, ended = psutil.Process(), [0], threading.Event()
    before = host.memory_info().rss

    def look() -> None:
        while True:
            most[0] = max(most[0], host.memory_info().rss - before)
            if ended.wait(0.01):
                return

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        ended.set()
        looking.join()


@pytest.mark.parametrize("name", CELLS)
async def test_the_run_goes_on_and_the_root_is_told(scene: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, told = CELLS[name]
    s = scene(scripted(BEFORE + f"```repl probe\n{code}\n```", AFTER))
    limits = Limits(cell_seconds=SECONDS if name in WITHOUT_END else 100, kernel_memory=800_000_000)
    if name == "endless loop":  # it heeds the interrupt, however slow the machine is
        monkeypatch.setattr(session, "_GRACE_SECONDS", 30)
    count_tokens("")  # where a vocabulary is on the disk, it is loaded once
    with most_memory() as grown:
        out = await s.rlm(limits=limits).ainvoke({"question": "q", "context": TEXT})
    assert (out["answer"], out["stop_reason"]) == ("42", "answered")
    heard = s.root_prompts()[1].split(AFTER)[0].split("[probe cell 1]")[1]
    assert told in heard
    assert len(heard) < 12_000
    assert grown[0] < 50_000_000


async def test_what_a_thread_prints_after_the_end_of_its_cell_is_told_with_the_next(scene: Any) -> None:
    tells = "import threading, time\ndef tell():\n    while True:\n        print('late')\n        time.sleep(0.01)"
    first = f"```repl probe\n{tells}\nthreading.Thread(target=tell, daemon=True).start()\n```"
    s = scene(scripted(first, *["```repl probe\npass\n```"] * 3, "FINAL(42)"), latency=0.5)
    await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert "]\n(printed by an earlier cell, after its end: 'late\\nlate" in s.root_prompts()[-1]


async def test_the_root_is_told_which_variables_it_has_again(scene: Any) -> None:
    cells = (
        "```repl probe\nfound = ['a', 'b']\nsizes = {'a': 1}\n```",
        "```repl probe\nimport os\nos._exit(0)\n```",
        "```repl compose\nanswer['content'] = len(found); answer['ready'] = True\n```",
    )
    s = scene(scripted(*cells))
    out = await s.rlm().ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "2"
    assert "so their variables are back: `found` (list), `sizes` (dict)." in s.root_prompts()[2]


async def test_a_cell_that_waits_for_slow_answers_is_not_out_of_time(scene: Any) -> None:
    root = scripted("```repl chunk\nanswer['content'] = llm_query('p'); answer['ready'] = True\n```")
    s = scene(root, lambda r: Answer("at last", latency=SECONDS + 1))
    out = await s.rlm(limits=Limits(cell_seconds=SECONDS)).ainvoke({"question": "q", "context": TEXT})
    assert out["answer"] == "at last"


def count_of_everything() -> dict[str, int]:
    return {
        "kernels": len(kernels()),
        # Those of asyncio's own executors, at most some a loop, come as they are needed.
        "threads": sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate()),
        "descriptors": len(descriptors()),
        "folders": len(list(Path(tempfile.gettempdir()).glob("rlm-*"))),
    }


def more_than(before: dict[str, int]) -> bool:
    now = count_of_everything()
    return any(now[kind] > before[kind] for kind in before)


def descriptors() -> list[int]:
    """What this process has open, TCP aside: those connections are the model client's own pool."""
    numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return [number for number in numbers if is_open(number) and not is_tcp(number)]


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def is_tcp(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as asked:
        return asked.family in (socket.AF_INET, socket.AF_INET6)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_200_runs_20_at_a_time_leave_nothing_behind(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(tempfile.mkdtemp(dir="/tmp"))  # short enough for a Unix socket below it
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    root = scripted(
        "```repl chunk\nanswer['content'] = ''.join(llm_query_batched(list('abc'))); answer['ready'] = True\n```"
    )
    s = scene(root, lambda r: r.prompt.upper())
    rlm = s.rlm()
    gate = asyncio.Semaphore(20)

    async def one(n: int) -> str:
        async with gate:
            return str((await rlm.ainvoke({"question": "q", "context": f"{n} {TEXT}"}))["answer"])

    assert await asyncio.gather(*[one(n) for n in range(20)]) == ["ABC"] * 20
    before = count_of_everything()
    assert await asyncio.gather(*[one(n) for n in range(200)]) == ["ABC"] * 200
    deadline = time.monotonic() + 60  # threads end, and sockets close, a moment later
    while more_than(before) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    assert not more_than(before), f"{before} → {count_of_everything()}"
    own.rmdir()
