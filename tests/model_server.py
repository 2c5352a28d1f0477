"""A scripted language model behind a real HTTP server that speaks OpenAI's chat completions.

    models = by_model({"root": scripted("first", "second"), "sub": lambda request: request.prompt})
    with ModelServer(models) as server:
        ChatOpenAI(model="root", base_url=server.base_url, api_key="none").invoke("…")
    server.seen[0].prompt

As its own process, for benchmarks, it prints its port and serves until it is killed:
`python tests/model_server.py --port 0 --latency 0.2 --jitter 0.4`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion that a client asked for; `number` counts from 0 in order of arrival."""

    model: str
    messages: list[dict[str, Any]]
    prompt: str
    body: dict[str, Any]
    number: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server sends back.

    Attributes:
        text: The reply; for a `status` other than 200, the error's message.
        latency: Seconds before the reply; None: the server's own.
        status: HTTP status. 429 wants `headers={"Retry-After": "0"}` or the like.
        headers: Sent besides the usual ones.
        body: The whole JSON body in place of one made from the other fields.
        finish_reason: `length` for a truncated reply, `content_filter`, ….
        refusal: The refusal's text, with which OpenAI sends no content.
        tools: Calls of tools, each a name and its arguments, with which OpenAI sends no content either.
        until: Hold the reply back until this is true, 60 seconds at most.
        drop: Close the connection instead of answering; in a stream, after half of it.
    """

    text: str = ""
    latency: float | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    finish_reason: str = "stop"
    refusal: str | None = None
    tools: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    drop: bool = False
    until: Callable[[], bool] | None = None


@dataclass(slots=True)
class Record:
    """A request as the server saw it; times in seconds of `time.monotonic()`, None until they have come.

    A reply reaches its client some time between `sending` and `sent`.
    """

    number: int
    model: str
    prompt: str
    messages: list[dict[str, Any]]
    arrived: float
    sending: float | None = None
    sent: float | None = None
    status: int | None = None
    reply: str = ""
    hung_up: bool = False
    """Whether the client was gone before it could be answered."""


Script = Callable[[Request], str | Answer]


def by_model(scripts: Mapping[str, Script]) -> Script:
    """Answers by the script of the model that is asked; any other name is OpenAI's 404."""

    def answer(request: Request) -> str | Answer:
        if (script := scripts.get(request.model)) is not None:
            return script(request)
        message = f"The model `{request.model}` does not exist or you do not have access to it."
        error = {
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        }
        return Answer(status=404, body={"error": error})

    return answer


def scripted(*replies: str | Answer) -> Script:
    """Replies by the number of assistant messages so far, so that a repeated turn gets the same reply.

    Raises:
        IndexError: In the script (see `ModelServer`), when a turn is taken that has no reply.
    """

    def answer(request: Request) -> str | Answer:
        turn: int = sum(message["role"] == "assistant" for message in request.messages)
        if turn >= len(replies):
            raise IndexError(f"turn {turn} was asked of a script of {len(replies)} replies")
        return replies[turn]

    return answer


def spread(prompt: str, seed: int = 0) -> float:
    """A number from 0 to 1 that is always the same for a prompt: varying latency that repeats."""
    return random.Random(f"{seed}:{prompt}").random()


def text_of(content: Any) -> str:
    """The text of a message's content, be it a string or a list of parts."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content)


def tokens(text: str) -> int:
    return math.ceil(len(text) / 4)


class ModelServer:
    """Serves `/v1/chat/completions` and `/v1/models` on 127.0.0.1, from a thread with its own event loop.

    A script that raises answers with a 500 that clients do not retry, and the exception is raised again
    when the `with` block ends, so that a wrong expectation in a script fails its test.

    Args:
        answer: Called in the server's thread, one call at a time; it must not block.
        latency: Seconds before each reply.
        jitter: At most so many seconds more, by `spread(prompt)`.
        models: The names that `/v1/models` lists.
        port: 0 for any free one.
    """

    def __init__(
        self,
        answer: Script,
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        models: tuple[str, ...] = ("root", "sub"),
        port: int = 0,
    ) -> None:
        self.port = port
        self.peak = 0
        """The most requests that were in flight at once."""
        self.failures: list[Exception] = []
        self._answer, self._latency, self._jitter, self._models = answer, latency, jitter, models
        self._seen: list[Record] = []
        self._in_flight = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="model-server", daemon=True)
        self._started = threading.Event()

    @property
    def base_url(self) -> str:
        # LangChain keeps one HTTP client for each address, and a port may come again on another event loop.
        return f"http://127.0.0.1:{self.port}/{id(self):x}/v1"

    @property
    def seen(self) -> list[Record]:
        """The requests so far, in order of arrival; a copy of the list, with live records."""
        return self._seen.copy()

    def asked(self, model: str | None = None) -> int:
        """How many requests came for a model, or in all."""
        return sum(model in (None, record.model) for record in self.seen)

    def __enter__(self) -> ModelServer:
        self._thread.start()
        if not self._started.wait(60) or not self._thread.is_alive():
            raise RuntimeError("the model server did not start")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        if kind is None and self.failures:
            raise self.failures[0]

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        try:
            server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=4096, limit=1 << 20)
            self.port = server.sockets[0].getsockname()[1]
        finally:
            self._started.set()
        await self._stop.wait()
        server.close()
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            del self._connections[task]

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its response; False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        payload = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ", 2)
        keep = headers.get("connection", "").lower() != "close"
        if method == "POST" and path.endswith("/v1/chat/completions"):
            return await self._complete(json.loads(payload), headers, reader, writer) and keep
        if method == "GET" and path.endswith("/v1/models"):
            names = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self._models]
            writer.write(response(200, {"object": "list", "data": names}))
        elif (method, path) == ("GET", "/stats"):
            writer.write(response(200, {"calls": len(self._seen), "peak": self.peak}))
        else:
            writer.write(response(404, error_body(404, f"no such route: {method} {path}")))
        await writer.drain()
        return keep

    async def _complete(
        self,
        body: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        messages = body["messages"]
        said = (text_of(message["content"]) for message in reversed(messages) if message["role"] == "user")
        request = Request(body["model"], messages, next(said, ""), body, len(self._seen), headers)
        record = Record(request.number, request.model, request.prompt, messages, time.monotonic())
        self._seen.append(record)
        self._in_flight += 1
        self.peak = max(self.peak, self._in_flight)
        try:
            answer = self._ask(request)
            record.reply = answer.text
            if seconds := self._seconds(request, answer):
                await asyncio.sleep(seconds)
            deadline = time.monotonic() + 60
            while answer.until and not answer.until() and not reader.at_eof() and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            if reader.at_eof():  # the client gave up meanwhile
                record.hung_up = True
                return False
            return await self._send(request, answer, record, writer)
        finally:
            self._in_flight -= 1

    async def _send(self, request: Request, answer: Answer, record: Record, writer: asyncio.StreamWriter) -> bool:
        record.sending = time.monotonic()
        if request.body.get("stream") and answer.status == 200 and answer.body is None:
            events = list(stream(request, answer))
            if answer.drop:
                events = events[: len(events) // 2]
            writer.write(STREAM_HEAD % lines_of(answer.headers) + b"".join(map(chunked, events)))
        elif not answer.drop:
            body = answer.body
            if body is None:
                ok = answer.status == 200
                body = completion(request, answer) if ok else error_body(answer.status, answer.text)
            writer.write(response(answer.status, body, answer.headers))
        await writer.drain()
        if answer.drop:
            return False
        record.sent, record.status = time.monotonic(), answer.status
        return True

    def _ask(self, request: Request) -> Answer:
        try:
            answer = self._answer(request)
        except Exception as error:
            self.failures.append(error)
            unretried = {"x-should-retry": "false"}
            return Answer(f"the test's script failed: {error!r}", status=500, headers=unretried)
        return Answer(answer) if isinstance(answer, str) else answer

    def _seconds(self, request: Request, answer: Answer) -> float:
        if answer.latency is not None:
            return answer.latency
        return self._latency + (self._jitter and self._jitter * spread(request.prompt))


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n%s\r\n"


def lines_of(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP response."""
    data = json.dumps(body).encode()
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (status, len(data))
    return head + lines_of(headers or {}) + b"\r\n" + data


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def error_body(status: int, message: str) -> dict[str, Any]:
    """OpenAI's form of an error."""
    kind = {429: "rate_limit_error", 401: "authentication_error"}.get(status, "invalid_request_error")
    kind = "server_error" if status >= 500 else kind
    return {"error": {"message": message or f"scripted error {status}", "type": kind, "param": None, "code": None}}


def usage(request: Request, answer: Answer) -> dict[str, int]:
    """Tokens, each message's (and the reply's) characters / 4 rounded up."""
    prompt = sum(tokens(text_of(message.get("content"))) for message in request.messages)
    reply = tokens(answer.refusal or answer.text)
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


def completion(request: Request, answer: Answer) -> dict[str, Any]:
    """The body of a plain reply."""
    content = None if answer.refusal is not None or answer.tools else answer.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": answer.refusal}
    if answer.tools:
        message["tool_calls"] = tool_calls(request, answer)
    return {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion",
        "created": 0,
        "model": request.model,
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}],
        "usage": usage(request, answer),
    }


def tool_calls(request: Request, answer: Answer) -> list[dict[str, Any]]:
    """Calls of tools in OpenAI's form."""
    return [
        {
            "index": at,
            "id": f"call_{request.number}_{at}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for at, (name, arguments) in enumerate(answer.tools)
    ]


def stream(request: Request, answer: Answer) -> Iterator[bytes]:
    """The server-sent events of a streamed reply; usage where `stream_options` asks for it, as at OpenAI."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        frame = {"id": f"chatcmpl-{request.number}", "object": "chat.completion.chunk", "created": 0}
        return b"data: %s\n\n" % json.dumps(frame | {"model": request.model, "choices": choices} | more).encode()

    def delta(part: dict[str, Any], finish: str | None = None) -> bytes:
        return event([{"index": 0, "delta": part, "finish_reason": finish}])

    yield delta({"role": "assistant", "content": ""})
    if answer.refusal is not None:
        yield delta({"refusal": answer.refusal})
    elif answer.tools:
        for call in tool_calls(request, answer):
            # Name first, then the arguments in two halves, as OpenAI does.
            text, half = call["function"]["arguments"], len(call["function"]["arguments"]) // 2
            yield delta({"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": ""}}]})
            for part in (text[:half], text[half:]):
                yield delta({"tool_calls": [{"index": call["index"], "function": {"arguments": part}}]})
    else:
        step = max(16, len(answer.text) // 50)
        yield from (delta({"content": answer.text[at : at + step]}) for at in range(0, len(answer.text), step))
    yield delta({}, answer.finish_reason)
    if (request.body.get("stream_options") or {}).get("include_usage"):
        yield event([], usage=usage(request, answer))
    yield b"data: [DONE]\n\n"
    yield b""


def main() -> None:
    """Serves one fixed reply until it is killed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--jitter", type=float, default=0.0, help="at most so many seconds more")
    parser.add_argument("--reply", default="ok", help="the text of every reply")
    args = parser.parse_args()
    server = ModelServer(lambda _: args.reply, latency=args.latency, jitter=args.jitter, port=args.port)
    with server:
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
