"""What a kernel's processes and files hold of memory together: it is bounded, and its end is told by its cause."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import time
from typing import Any

import psutil
import pytest

from attacks import ATTACKS
from model_server import scripted
from rlm_graph import Limits
from rlm_graph.errors import KernelError
from rlm_graph.kernel import memory, process
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.kernel.memory import Watched, held
from rlm_graph.kernel.session import KernelOptions, start_session
from test_session import run

pytestmark = [pytest.mark.processes, pytest.mark.skipif(sys.platform != "linux", reason="told by Linux' /proc")]

MEMORY = 600_000_000
CAGES: list[Isolation] = ["bubblewrap", "landlock"]
TOGETHER = f"P = {{'memory': {MEMORY}}}\n{textwrap.dedent(ATTACKS['fill the memory by many processes'])}"
SHARING = """
    import os, time
    text = b"!" * 300_000_000
    children = []
    for n in range(6):
        children.append(os.fork())
        if children[-1] == 0:
            time.sleep(1)
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    print("done")
"""
IN_FILES = """
    import os, time
    with open(os.environ["HOME"] + "/hog", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 400_000_000)
    hog = b"!" * 350_000_000
    time.sleep(3)
"""

LEFT_BEHIND = """
import os, signal, time
told, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(tell, b"!")
        time.sleep(60)
    os._exit(0)
os.read(told, 1)
{end}
"""


async def death(code: str, means: Isolation) -> KernelError:
    session = await start_session(KernelOptions(kernel_memory=MEMORY, isolation=means, cell_seconds=20), name="m")
    mine = str(session._live.process.folder)  # type: ignore[union-attr]
    try:
        with pytest.raises(KernelError) as raised:
            await run(session, code)
    finally:
        await session.close()
    deadline = time.monotonic() + 5  # Linux ends a namespace a moment after its first process
    while commands_with(mine) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert not commands_with(mine)
    return raised.value


def commands_with(part: str) -> list[str]:
    """The command lines of this machine's processes in which something stands; a kernel's have its folder in them."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(each.cmdline()))
    return [line for line in found if part in line]


@pytest.mark.parametrize("means", CAGES)
async def test_processes_that_hold_too_much_together_end_with_their_kernel(means: Isolation) -> None:
    error = await death(TOGETHER, means)
    assert error.cause == "memory"
    assert "out of memory: its processes held" in str(error) and "may hold 0.60 GB" in str(error)


@pytest.mark.parametrize("means", CAGES)
@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "while True: signal.pause()"])
async def test_nothing_that_a_kernel_has_started_outlives_it(means: Isolation, end: str) -> None:
    ignored = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    await death(LEFT_BEHIND.format(end=end if end.startswith("os") else f"{ignored}; os.close(told)\n{end}"), means)


async def test_the_root_is_told_and_the_run_goes_on(scene: Any) -> None:
    after = "```repl compose\nanswer['content'] = 'still here'; answer['ready'] = True\n```"
    s = scene(scripted(f"```repl probe\n{TOGETHER}\n```", after))
    out = await s.rlm(limits=Limits(kernel_memory=MEMORY)).ainvoke({"question": "q", "context": "text " * 500})
    assert out["answer"] == "still here"
    assert "out of memory: its processes held" in s.root_prompts()[1]


@pytest.mark.parametrize("means", [*CAGES, "process"])
async def test_what_processes_share_counts_once(means: Isolation) -> None:
    session = await start_session(KernelOptions(kernel_memory=MEMORY, isolation=means), name="m")
    assert (await run(session, SHARING)).stdout == "done\n"
    await session.close()


async def test_files_in_memory_count_as_well() -> None:
    assert (await death(IN_FILES, "bubblewrap")).cause == "memory"


async def test_a_single_process_still_gets_an_error_that_it_can_catch() -> None:
    session = await start_session(KernelOptions(kernel_memory=MEMORY, isolation="bubblewrap"), name="m")
    done = await run(session, "hogs = []\nwhile True: hogs.append(b'!' * 1_000_000)")
    assert done.error is not None and "MemoryError" in done.error
    await asyncio.sleep(2 * memory._PAUSE_SECONDS)
    assert (await run(session, "print(len(hogs) > 300)", index=2)).stdout == "True\n"
    await session.close()


async def test_a_kernel_that_linux_ends_for_want_of_memory_died_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter(range(9))
    monkeypatch.setattr(process, "oom_kills", lambda: next(kills))  # one more with each look: a control group's count
    error = await death("import os\nos.kill(os.getpid(), 9)", "process")
    assert (error.cause, str(error)) == ("memory", "the kernel died: out of memory")


async def test_a_kernel_whose_last_words_are_of_memory_died_of_it() -> None:
    words = "os.write(sys.stderr._original_stdstream_copy, b'libhungry: out of memory, aborting')"
    error = await death(f"import os, sys\n{words}\nos.abort()", "bubblewrap")
    assert (error.cause, str(error)) == ("memory", "the kernel died: out of memory")


def test_a_text_that_is_being_loaded_is_the_hosts() -> None:
    code = "import mmap, os, time\nf = os.memfd_create('text'); os.write(f, b'!' * 100_000_000)\n"
    code += "m = mmap.mmap(f, 0); len(bytes(m[::4096])); print('there', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin and child.stdout and child.stdout.readline()
    with child:
        found = [
            held(Watched(child.pid, 0, False, print, texts=size, members={child.pid})) for size in (0, 100_000_000)
        ]
        child.stdin.close()
    assert 95_000_000 < found[0] - found[1] < 105_000_000


async def test_kernels_that_are_no_more_are_not_looked_at() -> None:
    sessions = [await start_session(KernelOptions(), name="m") for _ in range(2)]
    watch = sessions[0]._background.memory
    assert len(watch._kernels) == 2
    for session in sessions:
        await session.close()
    assert not watch._kernels
    deadline = time.monotonic() + 10
    while watch._looking and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert not watch._looking


async def test_a_look_that_fails_is_told_and_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    session = await start_session(KernelOptions(), name="m")
    loop, looks = session._loop, iter([OSError("no more descriptors")])

    def failing(kernel: Watched) -> int:
        if error := next(looks, None):
            raise error
        return 10**12

    loop.set_exception_handler(lambda _, said: told.append(str(said["exception"])))
    monkeypatch.setattr(memory, "held", failing)
    with pytest.raises(KernelError, match="out of memory"):
        await run(session, "import time; time.sleep(20)")
    loop.set_exception_handler(None)
    await session.close()
    assert told == ["no more descriptors"]
