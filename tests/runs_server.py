"""The routes of LangGraph's API that a nested RLM calls, over loopback; a run there lasts until it is cancelled."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

PATIENCE_SECONDS = 30.0
"""How long a request waits at most, so that a test fails rather than hangs."""


class RunsServer:
    """A stand-in for a LangGraph server.

    Args:
        begun: Called once a run has begun.
        slow: A run begins late: only once somebody has asked for the thread's runs after it was sent.
    """

    def __init__(self, begun: Callable[[], None] = lambda: None, *, slow: bool = False) -> None:
        self.begun = begun
        self.runs: dict[str, dict[str, str]] = {}
        """`{thread: {run: status}}`"""
        self.sent, self.joined = threading.Event(), threading.Event()
        self._may_begin = threading.Event()
        if not slow:
            self._may_begin.set()
        self._changed = threading.Condition()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> RunsServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def states(self) -> list[str]:
        """What has become of each run."""
        return [status for runs in self.runs.values() for status in runs.values()]

    def begin(self, thread: str) -> str:
        run = str(uuid4())
        self.runs.setdefault(thread, {})[run] = "running"
        return run

    def answer(self, method: str, path: list[str], query: dict[str, list[str]], body: Any) -> Any:
        """What a request that is no stream gets."""
        match method, path:
            case "POST", ["threads"]:
                self.runs.setdefault(body["thread_id"], {})
                return body
            case "GET", ["threads", thread, "state"]:
                return {"values": {}, "next": [], "tasks": []}
            case "GET", ["threads", thread, "runs"]:
                if self.sent.is_set():
                    self._may_begin.set()
                wanted = query.get("status", [None])[0]
                return [{"run_id": r, "status": s} for r, s in self.runs[thread].items() if wanted in (s, None)]
            case "GET", ["threads", thread, "runs", run, "join"]:
                self.joined.set()
                self.until_cancelled(thread, run)
                return {}
            case "POST", ["threads", thread, "runs", run, "cancel"]:
                with self._changed:
                    self.runs[thread][run] = "interrupted"
                    self._changed.notify_all()
                return {}
        raise AssertionError(f"no route {method} {path}")

    def streamed(self, thread: str) -> str:
        """Begins a run, as far as it gets by the request that streams it."""
        self.sent.set()
        self._may_begin.wait(PATIENCE_SECONDS)
        run = self.begin(thread)
        self.begun()
        return run

    def until_cancelled(self, thread: str, run: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.runs[thread][run] != "running", PATIENCE_SECONDS)


def _handler(server: RunsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do("GET")

        def do_POST(self) -> None:
            self._do("POST")

        def log_message(self, *args: Any) -> None:
            pass

        def _do(self, method: str) -> None:
            url = urlsplit(self.path)
            path = url.path.strip("/").split("/")
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "null")
            try:
                if path[2:] == ["runs", "stream"]:
                    self._stream(path[1])
                else:
                    self._head("application/json")
                    self.wfile.write(json.dumps(server.answer(method, path, parse_qs(url.query), body)).encode())
            except (BrokenPipeError, ConnectionResetError):
                pass  # who asked has hung up

        def _stream(self, thread: str) -> None:
            run = server.streamed(thread)
            self._head("text/event-stream")
            self.wfile.write(f'event: metadata\ndata: {{"run_id": "{run}"}}\n\n'.encode())
            server.until_cancelled(thread, run)
            self.wfile.write(b'event: error\ndata: {"error": "UserInterrupt", "message": "cancelled"}\n\n')

        def _head(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()

    return Handler
