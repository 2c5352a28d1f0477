"""The command `rlm-graph`: a question, some files, and the answer alone on standard output.

Everything else that it says goes to standard error.
"""

# No `from __future__ import annotations` here: typer reads the annotations of `ask`, whose names are local.

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from rlm_graph import commands, live, models
from rlm_graph.context import hold
from rlm_graph.describe import counted
from rlm_graph.errors import ContextError, ModelError, RLMError
from rlm_graph.graph import Graph, create_rlm
from rlm_graph.kernel import isolation
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.ledger import Limits
from rlm_graph.live import printable
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.state import Input, Source
from rlm_graph.trace.events import Entry, Output, shown
from rlm_graph.trace.handover import state_at
from rlm_graph.trace.recording import VARIABLE, tracing
from rlm_graph.trace.replay import limits_of
from rlm_graph.trace.trajectory import read_trace

if TYPE_CHECKING:
    import typer

Chat = BaseChatModel | Runnable[Any, AIMessage]

DEFAULT_MODEL = "gpt-5-mini"
"""What a key without `OPENAI_MODEL` gets."""

KERNEL_NOTICE = {
    "bubblewrap": "caged by bubblewrap: no network, no file of yours, bounded memory, processes and time",
    "landlock": "caged by Landlock: no network, no file of yours, bounded memory, processes and time, but not the disk",
    "gateway": "on the gateway that $JUPYTER_GATEWAY_URL names",
    "process": f"not caged: {isolation.UNCAGED}.\nkernel: Run it only on inputs and with models that you trust.",
}
"""What keeps the model's code from the rest of the machine, by isolation."""

_THREAD: RunnableConfig = {"configurable": {"thread_id": "1"}}

ANSWERED, FAILED, LIMITED, INTERRUPTED = 0, 1, 3, 130
_EXIT = {"answered": ANSWERED, "direct": ANSWERED, "errors": FAILED, "refused": FAILED}


def main() -> None:
    """The entry point of `rlm-graph`."""
    try:
        app = _app()
    except ModuleNotFoundError as missing:
        raise SystemExit(f"rlm-graph: the command line needs {missing.name!r}: pip install 'rlm-graph[cli]'") from None
    app()


def _app() -> "typer.Typer":
    import rich  # noqa: F401 - progress needs it later: say now that it is missing
    import typer

    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(version("rlm-graph"))
            raise typer.Exit

    @app.callback()
    def rlm_graph(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None:
        """Asks questions of texts that are far larger than a model's window."""

    @app.command()
    def ask(
        question: Annotated[str, typer.Argument(help="The question.")],
        paths: Annotated[
            list[Path] | None,
            typer.Argument(metavar="[PATH]...", help="A file, several, or a directory; else standard input."),
        ] = None,
        model: Annotated[
            str | None, typer.Option(help="The root: PROVIDER:NAME (openai:gpt-5-mini), or offline.")
        ] = None,
        sub_model: Annotated[
            str | None, typer.Option(help="Who reads the parts: the same; without it, the root.")
        ] = None,
        base_url: Annotated[
            str | None, typer.Option(help="Where openai: models are served, else $OPENAI_BASE_URL.")
        ] = None,
        max_calls: Annotated[int | None, typer.Option(min=0, help="Sub-calls in all.")] = None,
        max_depth: Annotated[int | None, typer.Option(min=0, help="0: none; 1: plain; 2: nested.")] = None,
        max_turns: Annotated[int | None, typer.Option(min=1, help="Turns of the root.")] = None,
        max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of all models, in and out.")] = None,
        max_cost: Annotated[float | None, typer.Option(min=0.000001, help="US dollars in all.")] = None,
        max_seconds: Annotated[float | None, typer.Option(min=0.001, help="Seconds in all.")] = None,
        exclude: Annotated[
            list[str] | None,
            typer.Option(metavar="GLOB", help="Leave these out of a directory; may be repeated."),
        ] = None,
        isolation: Annotated[
            Isolation, typer.Option(help="What the model's code is kept in; process: nothing but bounds.")
        ] = "auto",
        as_json: Annotated[bool, typer.Option("--json", help="Print {answer, stop_reason, usage, note?}.")] = False,
        verbose: Annotated[bool, typer.Option(help="Print each cell and its output, on standard error.")] = False,
        trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the run's trajectory there.")] = None,
        texts: Annotated[bool, typer.Option(help="With --trace: prompts, replies and outputs whole.")] = False,
    ) -> None:
        """Answers a question over files.

        Exit codes: 0 answered; 1 error; 2 wrong usage; 3 ended by a limit, with the best answer so far; 130 Ctrl-C.
        """
        limits = _limits(
            max_calls=max_calls,
            max_depth=max_depth,
            max_turns=max_turns,
            max_tokens=max_tokens,
            max_cost=max_cost,
            max_seconds=max_seconds,
        )
        wrong = _wrong_usage(paths or [], exclude or [], base_url, (model, sub_model), trace)
        if wrong:
            raise typer.BadParameter(wrong)
        choice = Choice(model, sub_model, base_url)
        request = Request(
            question, paths or [], choice, limits, exclude or [], as_json, verbose, trace, texts, isolation
        )
        sys.exit(_guarded(lambda: answer(request)))

    def go_on_from(path: Path, cell: int, options: commands.GoOn) -> int:
        choice = Choice(options.model, options.sub_model, options.base_url)
        return go_on(path, cell, Request("", [], choice, Limits(), [], isolation=options.isolation))

    commands.add_to(app, _guarded, go_on_from)
    return app


def _limits(**given: Any) -> Limits:
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _wrong_usage(
    paths: list[Path],
    exclude: list[str],
    base_url: str | None,
    models: tuple[str | None, ...],
    trace: Path | None,
) -> str | None:
    if not paths and sys.stdin.isatty():
        return "no text: name a file or a directory, or send the text to standard input (… | rlm-graph ask …)"
    if exclude and not (len(paths) == 1 and paths[0].is_dir()):
        return "--exclude is for a directory"
    foreign = next((m for m in models if m and m != "offline" and not m.startswith("openai:")), None)
    if base_url and foreign:
        return f"--base-url is for OpenAI-compatible servers: write the model as openai:{foreign}"
    return commands.unwritable(trace, paths, exclude) if trace else None


@dataclass(frozen=True, slots=True)
class Choice:
    """The models as the options name them."""

    model: str | None = None
    sub_model: str | None = None
    base_url: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What `rlm-graph ask` was asked."""

    question: str
    paths: list[Path]
    choice: Choice
    limits: Limits
    exclude: list[str]
    as_json: bool = False
    verbose: bool = False
    trace: Path | None = None
    texts: bool = False
    isolation: Isolation = "auto"


def _guarded(act: Callable[[], int]) -> int:
    """Runs it; what the user can mend becomes one line, a bug keeps its traceback."""
    try:
        return act()
    except KeyboardInterrupt:
        _say("\nstopped")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except RLMError as error:
        _say(f"error: {error}")
    except OSError as error:
        _say(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    return FAILED


def answer(request: Request) -> int:
    """Answers, and returns the exit code."""
    root, sub, chosen = choose(request.choice)
    _say(f"model: {chosen}")
    _say(f"kernel: {KERNEL_NOTICE[isolation.settled(request.isolation)]}")
    source = _taken_in(request)
    _say(_about(source))
    # With a thread the replies are kept, so that the trajectory can be replayed.
    saver = InMemorySaver() if request.trace or os.environ.get(VARIABLE) else None
    graph = create_rlm(root, sub, limits=request.limits, isolation=request.isolation, checkpointer=saver)
    return _delivered(asyncio.run(_run(graph, {"question": request.question, "context": source}, request)), request)


def go_on(path: Path, cell: int, request: Request) -> int:
    """Has a model go on with a recorded run from one of its cells, within its limits, and returns the exit code."""
    trajectory = read_trace(path)
    root, sub, chosen = choose(request.choice)
    _say(f"model: {chosen}")
    _say(f"kernel: {KERNEL_NOTICE[isolation.settled(request.isolation)]}")
    limits = limits_of(trajectory.asked)
    if lowered := _lowered(trajectory.asked.run["limits"], limits):
        _say(f"limits: {lowered}")
    graph = create_rlm(root, sub, limits=limits, isolation=request.isolation, checkpointer=InMemorySaver())

    async def gone_on() -> dict[str, Any]:
        state = await state_at(trajectory, cell, sub, isolation=request.isolation)
        await graph.aupdate_state(_THREAD, state, as_node="plan")
        return await _run(graph, None, request)

    return _delivered(asyncio.run(gone_on()), request)


def _lowered(recorded: Mapping[str, float | None], limits: Limits) -> str:
    """Which limits of a file are not granted, as it may come from anybody."""
    granted = asdict(limits)
    less = [name for name, most in recorded.items() if name in granted and most != granted[name]]
    return ", ".join(f"{name} {granted[name]:,}, not {recorded[name]:,} as recorded" for name in less)


def _delivered(out: dict[str, Any], request: Request) -> int:
    note = out["messages"][-1].response_metadata.get("note")
    if request.as_json:
        shown = {"answer": out["answer"], "stop_reason": out["stop_reason"], "usage": out["usage"]}
        _print(json.dumps(shown | ({"note": note} if note else {}), ensure_ascii=False))
    else:
        _print(out["answer"] or "")
    for warning in out.get("warnings") or ():
        if warning != isolation.UNCAGED:  # said above
            _say(f"warning: {warning}")
    _say(_summary(out, note))
    return _EXIT.get(out["stop_reason"], LIMITED)


def choose(choice: Choice) -> tuple[Chat, Chat, str]:
    """The root, the sub-model, and what to tell the user about them.

    The options decide; else `OPENAI_API_KEY` or `OPENAI_BASE_URL`; else no language model is used.

    Raises:
        ModelError: A name cannot be used.
    """
    online = choice.base_url or os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
    name, why = choice.model, ""
    if name is None and online:
        name = f"openai:{os.environ.get('OPENAI_MODEL') or DEFAULT_MODEL}"
        why = "" if os.environ.get("OPENAI_MODEL") else " (the default; OPENAI_MODEL or --model names another)"
    elif name is None:
        name, why = "offline", " (no --model, no OPENAI_API_KEY, no OPENAI_BASE_URL)"
    sub_name = choice.sub_model or name
    root = OfflineRoot() if name == "offline" else _model(name, choice.base_url)
    sub = OfflineReader() if sub_name == "offline" else _model(sub_name, choice.base_url)
    below = f", sub-model {_said(sub_name)}" if sub_name != name else ""
    return root, sub, f"{_said(name)}{why}{below}"


def _said(name: str) -> str:
    return "offline keyword search, no language model" if name == "offline" else name


def _model(name: str, base_url: str | None) -> Chat:
    """A model by its name. One that is served elsewhere than at OpenAI may need no key."""
    base_url = base_url or os.environ.get("OPENAI_BASE_URL")
    if not (base_url and name.startswith("openai:") and name != "openai:"):
        return models.resolve(name)
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    key = SecretStr(os.environ.get("OPENAI_API_KEY") or "none")
    try:
        return ChatOpenAI(model=name.removeprefix("openai:"), base_url=base_url, api_key=key)
    except Exception as error:
        raise ModelError(f"the model {name!r} cannot be used: {models.first_line(error)}") from error


def _taken_in(request: Request) -> Source:
    """The context by reference; reads every file once."""
    if len(request.paths) == 1:
        return hold(request.paths[0], exclude=request.exclude)
    if request.paths:
        return hold(request.paths)
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContextError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not text.strip():
        raise ContextError("standard input is empty: name a file or a directory, or send a text to it")
    # A text that ends with a newline is never taken for a path that someone forgot to wrap.
    return hold(text if text.endswith("\n") else text + "\n", name="standard input")


def _about(source: Source) -> str:
    line = f"context: {source['name']}, {counted(source['items'], 'text')}, {source['chars']:,} characters"
    line += f", about {counted(source['tokens'], 'token')}"
    left_out = source["left_out"]
    if left_out:
        more = "; …" if len(left_out) > 3 else ""
        line += f"\nleft out: {'; '.join(left_out[:3])}{more}"
    return line


def _summary(out: dict[str, Any], note: str | None) -> str:
    usage, reason = out["usage"], out["stop_reason"]
    tokens = usage["input_tokens"] + usage["output_tokens"]
    bad = "".join(f", {usage[what]:,} {what}" for what in ("failed", "refused") if usage[what])
    cost = f"${usage['cost']:.4f}, " if usage["cost"] else ""
    line = (
        f"{counted(usage['turns'], 'turn')}, {counted(usage['calls'], 'call')}{bad}, {counted(tokens, 'token')}, "
        f"{cost}{usage['seconds']:.1f} s; stop reason: {reason}"
    )
    if reason not in ("answered", "direct"):
        said = "this is the best answer so far, and may be incomplete" if out["answer"] else "there is no answer"
        line += f": {said}"
    return f"{line}\nnote: {note}" if note else line


async def _run(graph: Graph, given: Input | None, request: Request) -> dict[str, Any]:
    """Runs the graph to its end, and shows what it is at."""
    last: dict[str, Any] = {}
    view = live.View()
    thread = _THREAD if graph.checkpointer is not None else {}
    with live.drawn(view, _say) as say:

        def tell(entry: Entry) -> None:
            if request.verbose and entry["event"] == "output":
                say(_told(entry))

        with tracing(request.trace, texts=request.texts, tell=tell) as files:
            # `subgraphs`: calls and nested runs tell theirs in namespaces of their own.
            events: AsyncIterator[Any] = graph.astream(given, thread, stream_mode=["custom", "values"], subgraphs=True)
            async for namespace, mode, event in events:
                if mode == "custom":
                    view.take(event)
                elif not namespace:
                    last = event
    for file in files:
        _say(f"trajectory: {file}")
    return last


def _told(cell: Output) -> str:
    """A cell and its output, for who wants to read all of it."""
    nested = f" at depth {cell['depth']}" if cell["depth"] else ""
    parts = [f"── {cell['phase']} {cell['index']}{nested} ──"]
    texts = [shown(text).rstrip() for text in (cell["code"], cell["stdout"], cell["error"]) if text]
    return "\n".join([*parts, "\n──\n".join(text for text in texts if text)])


def _say(text: str) -> None:
    # Messages can quote a file's name or a server's reply.
    _write(sys.stderr, text + "\n")


def _print(text: str) -> None:
    _write(sys.stdout, text if text.endswith("\n") else text + "\n")


def _write(stream: TextIO, text: str) -> None:
    """Writes UTF-8: to a terminal only what is safe to show, to a pipe or a file every character as it is."""
    stream.flush()
    shown = printable(text) if stream.isatty() else text
    # Lone surrogates have no bytes; escaped like this they are also what JSON writes for them.
    stream.buffer.write(shown.encode("utf-8", "backslashreplace"))
    stream.flush()


if __name__ == "__main__":
    main()
