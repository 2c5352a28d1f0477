"""Where host and cells meet in the kernel: what is bound before each cell, what is reported after it."""

from __future__ import annotations

import builtins
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import output
from .bound import LATE_CHARACTERS
from .calls import Calls
from .checked import Result, sub_call_names
from .cited import citations
from .dialect import Answer, answer_names, call_names, exit_names
from .failures import describe
from .load import Document, load
from .pieces import Places
from .reading import Reading
from .user_tools import tool_names
from .values import lenient, summary, variables
from .wire import Wire

_NEEDED = ("print", "len")
"""Builtins that hardly a cell does without, and that nobody means to keep a variable by: shadows of them are lifted."""


@dataclass(frozen=True, slots=True)
class Env:
    """What the toolkit builds upon."""

    context: Callable[[], Any]
    scanned: Callable[[str | int, int, int], None]


class Desk:
    """One per kernel. `handle` runs on the bridge's reader thread, `finish` on the main thread."""

    def __init__(self, namespace: dict[str, Any], streams: tuple[Any, Any], gate: socket.socket, memory: int) -> None:
        self._namespace = namespace
        self._streams = streams
        self._gate = gate
        self._memory = memory
        self._builtins = dict(vars(builtins))
        self._repair = vars(builtins).update
        self._calls = Calls()
        self._wire: Wire | None = None
        self._facts: dict[str, Any] = {}
        self._bound: dict[str, Any] = {}
        self._answer = Answer()
        self._before = self._answer_value()
        self.index = -1
        self._late = ""
        """What was printed after the end of the cell before."""
        self.running = False
        calls = call_names(self._calls)
        errors = {name: each for name, each in calls.items() if isinstance(each, type)}
        self._plain = errors | exit_names() | {"Document": Document}
        """What is there also where no RLM is: for a tool that runs Python."""
        self._names = calls | self._plain | answer_names(namespace, self._own_variables, self._deliver)
        self._results: list[Result] = []
        self._reading = Reading(self._context)
        self._calls.heard = self._reading.heard
        places = Places()
        self._kit = self._toolkit(places)
        self._names |= self._kit
        self._names |= sub_call_names(
            self._calls, self._context, lambda: self._facts, places, self._results.extend, self._reading.read
        )
        self._tools: dict[str, Any] = {}
        self._specs: list[dict[str, Any]] = []
        self._known = {*namespace, *self._names, "answer"}

    def _toolkit(self, places: Places) -> dict[str, Any]:
        env = Env(self._context, self._reading.scanned)
        try:
            from .toolkit import names

            return dict(names(env, places))
        except Exception as error:  # the cells can do without
            print(f"no toolkit: {error!r}", file=sys.__stderr__)
            return {}

    def _context(self) -> Any:
        return self._bound.get("context")

    def attach(self, wire: Wire) -> None:
        self._wire = self._calls.wire = wire

    def repair(self) -> None:
        """Undoes what a cell did to the builtins."""
        self._repair(self._builtins)

    def handle(self, number: int, op: str, arg: Any) -> None:
        """Does what the host asks for."""
        if op == "answers":
            self._calls.settle(arg)
        elif op == "interrupt":
            if self.running:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        elif op == "cell":
            self._begin(arg)
            self._reply(number, None)
        elif op == "bind":
            self._reply(number, self._bind(arg["name"], arg["binding"], self._received()))

    def _reply(self, number: int, arg: Any) -> None:
        if self._wire is not None:
            self._wire.send("done", arg, number=number)

    def _received(self) -> int:
        """Takes the descriptor that came before the message which needs it."""
        _, (descriptor,), _, _ = socket.recv_fds(self._gate, 1, 1)
        return descriptor

    def _bind(self, name: str, binding: dict[str, Any], descriptor: int) -> str | None:
        """Makes a variable; gives the reason where it cannot be made."""
        self.repair()
        try:
            self._bound[name] = self._namespace[name] = load(binding, descriptor)
        except MemoryError:
            return f"it does not fit the kernel's memory ({self._memory:,} bytes)"
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:500]
        return None

    def _begin(self, arg: dict[str, Any]) -> None:
        self.repair()
        sys.stdout, sys.stderr = self._streams
        late = output.SCREEN.turn(arg["output"])
        self._late = late if self.index >= 0 else ""
        self.index, self._facts = arg["index"], arg["facts"]
        if self._facts.get("reset_answer"):
            self._answer = Answer()
            self._results.clear()
            self._reading.reset()
        self._answer.touched = False
        self._before = self._answer_value()
        for name in _NEEDED:
            self._namespace.pop(name, None)
        self._make_tools(self._facts.get("tools") or [])
        self._namespace.update(self._tools)
        if self._facts.get("dialect", True):
            self._namespace.update(self._names, answer=self._answer)
        else:
            self._namespace.update(self._plain | (self._kit if self._bound else {}))
        self._namespace.update(self._bound)
        self.running = True
        self._calls.open()

    def _make_tools(self, specs: list[dict[str, Any]]) -> None:
        if specs != self._specs:
            self._specs, self._tools = specs, tool_names(self._calls, specs)

    def finish(self, error: BaseException | None, message: str | None) -> None:
        """Ends the cell: whatever it has broken, the report goes out."""
        self.running = False
        self.repair()
        if self._wire is None or not self._wire.usable:
            os._exit(0)  # a forked child that came to the end of its parent's cell
        sys.stdout, sys.stderr = self._streams
        self._calls.shut()
        for stream in self._streams:
            with suppress(OSError):  # the cell closed its descriptor, or the log is full
                stream.take_in()
        text = message if error is None else describe(error, self._memory)
        del error
        printed = output.SCREEN.turn(LATE_CHARACTERS)
        report = {"index": self.index, "output": printed, "late": self._late, "error": text} | self._report()
        try:
            self._wire.send_packed("report", report)
        except Exception as unsendable:
            lost = f"the answer could not be handed over: {unsendable}"
            report |= {"answer": None, "error": f"{text}\n{lost}" if text else lost}
            self._wire.send_packed("report", report)

    def _report(self) -> dict[str, Any]:
        window = self._facts.get("window")
        found: dict[str, Any] = {"answer": self._answer_report(), "vars": [], "candidates": None, "chunks": None}
        try:
            found["vars"] = self._own_variables()
            for name in ("candidates", "chunks"):
                if name in self._namespace:
                    found[name] = summary(self._namespace[name], window)
            found["coverage"] = self._reading.report()
            if found["answer"] and found["answer"]["ready"]:
                found["answer"]["citations"] = citations(self._answer, self._results)
        except Exception as error:  # a value of the model's that cannot be looked at is no reason to lose the rest
            print(f"no report on variables: {error!r}", file=sys.__stderr__)
        return found

    def _answer_report(self) -> dict[str, Any] | None:
        held: Any = self._namespace.get("answer")
        if held is not self._answer and _is_answer(held):
            self._answer = Answer(held.get("content", ""), held.get("ready", False))
            self._answer.update({name: held[name] for name in held if name == "citations"})
            self._answer.touched = True
        value = self._answer_value()
        return value if self._answer.touched or value != self._before else None

    def _answer_value(self) -> dict[str, Any]:
        try:
            ready = bool(self._answer.get("ready"))
        except Exception:
            ready = True  # a value with an opinion of its own on truth was set, at any rate
        return {"content": lenient(self._answer.get("content", "")), "ready": ready}

    def _deliver(self, value: Any) -> None:
        if not isinstance(self._namespace.get("answer"), dict):
            self._namespace["answer"] = self._answer
        self._namespace["answer"]["content"] = value
        self._namespace["answer"]["ready"] = True

    def _own_variables(self) -> list[list[Any]]:
        known: set[str] = self._known | set(self._bound) | set(self._tools)
        rows = variables(self._namespace, known)
        return [[str(name)[:200], kind[:200], length] for name, kind, length in rows]


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict) and ("content" in value or "ready" in value)
