"""Every attack ends as THREAT_MODEL.md says: stopped or not; and whatever it does, the run goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from attacks import ATTACKS
from model_server import scripted
from rlm_graph import Limits
from rlm_graph.errors import KernelError
from rlm_graph.kernel import process
from rlm_graph.kernel.carry import carried
from rlm_graph.kernel.isolation import Isolation, settled
from rlm_graph.kernel.session import KernelOptions, Session, close_all, start_session
from rlm_graph.state import Done, Reply, Waiting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cages need Linux")

MEANS = [means for means in get_args(Isolation) if means not in ("auto", "gateway")]
MODEL = (Path(__file__).parent.parent / "THREAT_MODEL.md").read_text("utf-8")
FACTS = {"window": None, "reset_answer": False}
MEMORY, SCRATCH, PROCESSES = 700_000_000, 50_000_000, 60


def table() -> dict[str, dict[str, str]]:
    """THREAT_MODEL.md's table: by attack, what each isolation does."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in MODEL.splitlines() if line[:1] == "|"]
    head = next(line for line in lines if line[0] == "attack")
    rows = lines[lines.index(head) + 2 :]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows if len(row) == len(head)}


def is_stopped(said: str) -> bool:
    """What a cell of the table says for whoever runs this."""
    return said.startswith("stopped") and not ("not for root" in said and os.geteuid() == 0)


def kernel_of(session: Session) -> int:
    """The kernel's process itself, as this machine sees it."""
    return [session.pid, *[child.pid for child in psutil.Process(session.pid).children(recursive=True)]][-1]


async def run(session: Session, code: str, index: int = 7) -> Done:
    out = await session.run(index, textwrap.dedent(code), facts=FACTS)
    while isinstance(out, Waiting):
        session.give({call.number: Reply(text=f"re: {call.prompt}") for call in out.calls})
        out = await session.wait()
    return out


class Prison:
    """A kernel to attack from, and another to attack, in one kind of isolation."""

    def __init__(self, means: Isolation, planted: dict[str, Any]) -> None:
        self.options = KernelOptions(cell_seconds=20, kernel_memory=MEMORY, isolation=means)
        self.session = asyncio.run(start_session(self.options, name="attacker"))
        self.other = asyncio.run(start_session(self.options, name="victim"))
        write = f"import os; open(os.environ['HOME'] + '/secret', 'w').write({planted['secret']!r})"
        asyncio.run(run(self.other, write))
        asyncio.run(self.other.run(8, "llm_query('the other run waits')", facts=FACTS))
        pid = kernel_of(self.other)
        folder = Path(self.other._live.process.folder)  # type: ignore[union-attr]
        files = [str(folder / "scratch" / "secret"), f"/proc/{pid}/root/tmp/secret"]
        self.planted = {**planted, "other": pid, "other_files": files, "other_channel": str(folder / "k-1")}

    async def attack(self, code: str) -> str:
        """Runs a cell; whatever becomes of the kernel, the run can go on afterwards."""
        try:
            printed = (await run(self.session, f"P = {self.planted!r}\n{textwrap.dedent(code)}")).stdout
        except KernelError as error:
            printed = str(error)
            self.session = await start_session(self.options, name="attacker")
        assert (await run(self.session, "print(llm_query('are you there?'))", 8)).stdout == "re: are you there?\n"
        return printed

    def other_is_untouched(self) -> bool:
        cell = self.other._cell
        return self.other.alive and cell is not None and cell.done is None and bool(cell._outstanding)


@pytest.fixture(scope="module")
def planted() -> Iterator[dict[str, Any]]:
    """What the attacks are after."""
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="a")))
        home = folder / "home"
        home.mkdir()
        (home / "token").write_text(secret)
        (home / "context").write_text("some text")
        victim = subprocess.Popen(
            [sys.executable, "-c", "input()"], env={"KEY": secret}, stdin=subprocess.PIPE, start_new_session=True
        )
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        dns = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        dns.bind(("127.0.0.1", 0))
        threading.Thread(target=answer_all, args=(dns,), daemon=True).start()
        abstract = f"rlm-{secret}"
        for address, kind in (
            (str(folder / "s"), socket.SOCK_STREAM),
            (str(folder / "d"), socket.SOCK_DGRAM),
            ("\0" + abstract, socket.SOCK_STREAM),
        ):
            listening = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            listening.bind(address)
            if kind == socket.SOCK_STREAM:
                listening.listen(100)
        yield {
            "secret": secret,
            "home_file": str(home / "token"),
            "context": str(home / "context"),
            "victim": victim.pid,
            "port": port.getsockname(),
            "dns": dns.getsockname(),
            "unix": str(folder / "s"),
            "unix_datagram": str(folder / "d"),
            "abstract": abstract,
            "outside": str(folder),
            "inside": str(Path(process.__file__).parent / "inside" / "launch.py"),
            "scratch": SCRATCH,
            "memory": MEMORY,
            "processes": PROCESSES,
        }


def answer_all(dns: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            _, address = dns.recvfrom(9)
            dns.sendto(b"!", address)


@pytest.fixture(scope="module", params=MEANS)
def prison(request: pytest.FixtureRequest, planted: dict[str, Any]) -> Iterator[Prison]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "SCRATCH", SCRATCH)
        patch.setattr(process, "PROCESSES", PROCESSES)
        patch.setenv("OPENAI_API_KEY", planted["secret"])
        yield Prison(request.param, planted)
        close_all()


@pytest.fixture(autouse=True)
def no_kernel_left() -> None:
    """Here the kernels are shared; each prison closes its own."""


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_ends_as_the_threat_model_says(prison: Prison, name: str) -> None:
    said = table()[name][prison.options.isolation]
    if prison.options.isolation == "process" and (reason := impossible_here(name)):
        pytest.skip(reason)
    printed = await prison.attack(ATTACKS[name])
    won = "WON" in printed or len(printed) > 2 * prison.options.cell_output
    won |= Path(prison.planted["outside"], "pickled").exists()
    assert won == (not is_stopped(said)), f"{said}, but: {printed[-500:]}"
    assert prison.other_is_untouched()
    psutil.Process(prison.planted["victim"])


def impossible_here(name: str) -> str | None:
    """Why even an uncaged process cannot do this on this machine."""
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if name == "find a way to the internet":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            if probe.connect_ex(("192.0.2.1", 53)):
                return "this machine has no way to the internet"
    if name.startswith(("trace", "read another kernel's memory")) and yama.exists() and yama.read_text() != "0\n":
        return "this Linux lets nobody trace what is not its child"
    if name == "raise its own limits" and os.geteuid() == 0 and not capabilities() & 1 << 24:
        return "this root has no right to raise limits"
    return None


def capabilities() -> int:
    return int(re.findall(r"CapEff:\s+(\S+)", Path("/proc/self/status").read_text())[0], 16)


def test_the_threat_model_speaks_of_every_attack_and_of_no_other() -> None:
    assert list(table()) == list(ATTACKS)


def test_bubblewrap_stops_them_all() -> None:
    assert {row["bubblewrap"] for row in table().values()} == {"stopped"}


def test_auto_is_the_one_that_stops_them_all() -> None:
    assert settled("auto") == "bubblewrap"


def test_every_test_that_the_threat_model_names_exists() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"\btest_\w+\b(?!\.py)", MODEL)
    assert named and all(f"def {name}(" in tests for name in named)


EDITS = """
import gc, itertools
found = {type(o).__name__: o for o in gc.get_objects() if str(type(o).__module__).startswith('inside.')}
calls, facts = found['Calls'], found['Desk']._facts
assert calls._open and 'window' in facts and next(calls._numbers) and callable(calls.shut)
calls._numbers = itertools.count(1)
calls.shut = lambda: None
facts['window'] = facts['max_calls'] = 10**9
"""
"""What a cell can do to the objects beside it that know of calls; it fails where there are none such."""


def test_each_limit_that_the_threat_model_admits_has_a_test_or_says_that_none_can() -> None:
    limits = MODEL.partition("## What does not")[2].split("\n- ")[1:]
    assert len(limits) > 5
    assert [line for line in limits if "`test_" not in line and "No test can hold this" not in line] == []


async def test_a_run_that_is_attacked_answers(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROCESSES", PROCESSES)
    cells = [ATTACKS[name] for name in ("fork without end", "fill the memory", "forge messages of another run")]
    cells += ["import os\nwhile True: os.kill(os.getpid(), 9)", "import sys\nsys.stdout.write('\\x1b[2J' * 10_000)"]
    planted = f"P = {{'memory': {MEMORY}, 'processes': {PROCESSES}}}"
    probes = [f"```repl probe\n{planted}\n{textwrap.dedent(cell)}\n```" for cell in cells]
    asks = "got = []\nfor n in range(9):\n    try: got.append(llm_query(str(n)))\n    except BudgetExceeded: pass"
    last = f"```repl compose\n{EDITS}\n{asks}\nanswer['content'] = len(got); answer['ready'] = True\n```"
    limits = Limits(kernel_memory=MEMORY, max_calls=2, max_errors=9)
    out = await scene(scripted(*probes, last)).rlm(limits=limits).ainvoke({"question": "q", "context": "text " * 500})
    assert (out["answer"], out["usage"]["calls"]) == ("2", 2)


def test_a_text_cannot_be_changed_through_its_descriptor(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("as it was")
    descriptor, _ = carried({"kind": "text", "path": str(tmp_path / "text"), "encoding": "utf-8"})
    with Path(f"/proc/self/fd/{descriptor}").open("r+b", buffering=0) as file, pytest.raises(PermissionError):
        file.write(b"changed!")
    os.close(descriptor)
    assert (tmp_path / "text").read_text() == "as it was"


@pytest.mark.parametrize("means", ["bubblewrap", "landlock"])
async def test_of_a_project_that_python_lives_in_the_rest_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, means: Isolation
) -> None:
    """As with `python -m venv .` in it."""
    tmp_path.chmod(0o755)
    (tmp_path / "lib").mkdir()
    for name in (".env", "lib/package.py"):
        (tmp_path / name).write_text("text")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    session = await start_session(KernelOptions(isolation=means), name="project")
    code = "for name in ('lib/package.py', '.env'):\n    print(open(f'{PLACE}/{name}').read())"
    done = await run(session, code.replace("{PLACE}", str(tmp_path)))
    await session.close()
    assert done.stdout == "text\n"
    assert done.error and re.search("FileNotFoundError|PermissionError", done.error)


async def test_what_a_cell_leaves_running_goes_on() -> None:
    """A limit that THREAT_MODEL.md admits."""
    session = await start_session(KernelOptions(), name="goes on")
    counting = "import itertools, threading\nn = 0\ndef count():\n    global n\n    for n in itertools.count(): pass"
    await run(session, f"{counting}\nthreading.Thread(target=count, daemon=True).start()")
    done = await run(session, "import time\nbefore = n\nwhile n == before: time.sleep(0.01)\nprint('counts')")
    await session.close()
    assert done.stdout == "counts\n"


async def test_the_code_may_send_the_whole_text_to_a_sub_model(scene: Any) -> None:
    """A limit that THREAT_MODEL.md admits."""
    s = scene(scripted("```repl compose\nFINAL(llm_query(context))\n```"), lambda request: "had it")
    text = "a secret of the text's " * 100
    assert (await s.rlm().ainvoke({"question": "q", "context": text}))["answer"] == "had it"
    assert [text in str(request.messages) for request in s.server.seen if request.model == "sub"] == [True]


async def test_what_clears_up_follows_no_link_out_of_the_scratch(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("still here")
    session = await start_session(KernelOptions(isolation="process"), name="links")
    await run(session, f"import os\nos.symlink({str(tmp_path)!r}, 'link')")
    await session.close()
    assert (tmp_path / "kept").read_text() == "still here"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
async def test_a_kernel_that_root_starts_is_nobody_and_can_do_nothing() -> None:
    for means in ("bubblewrap", "landlock"):
        session = await start_session(KernelOptions(isolation=means), name="root's")  # type: ignore[arg-type]
        status = Path(f"/proc/{kernel_of(session)}/status").read_text()
        await session.close()
        fields = dict(re.findall(r"^(\w+):\s+(\S+)", status, re.M))
        assert int(fields["Uid"]) >= 61_000
        assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"
        assert int(fields["CapEff"], 16) in ((0,) if means == "bubblewrap" else (4,))
