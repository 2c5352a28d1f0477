"""The user's tools: what the kernel's code is shown of them, and how they are called on the host."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import json
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId, StructuredTool, ToolException
from langchain_core.tools import tool as made_tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.errors import GraphInterrupt, is_invalid_resume
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from rlm_graph import models, prompts
from rlm_graph.errors import UnusableTool
from rlm_graph.kernel.inside.calls import Calls
from rlm_graph.kernel.inside.dialect import answer_names, call_names, exit_names
from rlm_graph.kernel.inside.toolkit import Toolkit
from rlm_graph.state import Reply


class Spec(TypedDict):
    """What the kernel is told of a tool."""

    name: str
    doc: str
    returns: str
    """A type as it reads in Python, or nothing."""
    params: list[list[str | None]]
    """`[name, type, default]` as text; the default of a required one is None."""
    more: bool
    """Whether arguments of other names may be given."""


PLAIN_NAMES = frozenset(
    {name for name, each in call_names(Calls()).items() if isinstance(each, type)}
    | {*exit_names(), *dir(builtins), "Document", "context"}
)
"""Names that every kernel has."""
RLM_NAMES = frozenset(
    {*PLAIN_NAMES, *call_names(Calls()), *answer_names({}, list, print)}
    | {name for name in vars(Toolkit) if not name.startswith("_")}
    | {"Piece", "answer", "candidates", "chunks", "sub_call", "asub_call", "Result"}
)
"""Names that an RLM's kernel has."""
_OLDER_CONTEXT = re.compile(r"context_\d+")
_MESSAGE_CHARS = 2_000
_TYPE_CHARS = 160
_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


@dataclass(frozen=True, slots=True)
class UserTool:
    """A tool that the kernel's code may call.

    Attributes:
        tool: The tool itself.
        spec: What the kernel is told of it.
        call_id: Whether it wants to know the id of its call.
    """

    tool: BaseTool
    spec: Spec
    call_id: bool


def user_tools(
    tools: Iterable[BaseTool | Callable[..., Any]], taken: frozenset[str] = RLM_NAMES
) -> tuple[UserTool, ...]:
    """Takes in tools: LangChain's, those of MCP servers, or plain functions with a docstring.

    Args:
        tools: The tools.
        taken: Names that none may have.

    Raises:
        UnusableTool: One is no tool, its name cannot be a name in the kernel, or it wants what nobody can give it here.
    """
    made = [_user_tool(each, taken) for each in tools]
    names = [each.spec["name"] for each in made]
    for name in names:
        if names.count(name) > 1:
            raise UnusableTool(f"two tools are named {name!r}: rename one")
    return tuple(made)


def _user_tool(given: Any, taken: frozenset[str]) -> UserTool:
    tool = _as_tool(given)
    _check_name(tool.name, taken)
    injected = _injected(tool)
    unfilled = [name for name, (kind, required) in injected.items() if required and kind != "call id"]
    if unfilled:
        raise UnusableTool(
            f"the tool {tool.name!r} wants {', '.join(map(repr, unfilled))} injected by an agent, which cannot be done "
            "when code calls it: wrap it in a function that gives it a value"
        )
    wants_id = any(kind == "call id" for kind, _ in injected.values())
    return UserTool(tool, _spec(tool, frozenset(injected)), wants_id)


def _as_tool(given: Any) -> BaseTool:
    if isinstance(given, BaseTool):
        return given
    if not inspect.isroutine(given):
        raise UnusableTool(f"a tool is a LangChain tool or a function with a docstring, not {type(given).__name__}")
    try:
        return made_tool(given)
    except ValueError as error:
        raise UnusableTool(f"the function {getattr(given, '__name__', given)!r} is no tool: {error}") from error


def _check_name(name: str, taken: frozenset[str]) -> None:
    advice = "rename it, e.g. tool.model_copy(update={'name': …})"
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise UnusableTool(f"the tool's name {name!r} cannot be a function's name: {advice}")
    if name in taken or _OLDER_CONTEXT.fullmatch(name):
        raise UnusableTool(f"the tool's name {name!r} is taken in the kernel: {advice}")


def _injected(tool: BaseTool) -> dict[str, tuple[str, bool]]:
    """Arguments that no caller gives, by name: of what kind, and whether they are required."""
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None) or tool._run
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
    except Exception:
        hints, parameters = {}, MappingProxyType({})
    required = {name: parameters[name].default is inspect.Parameter.empty for name in hints if name in parameters}
    schema = tool.get_input_schema()
    if not isinstance(tool.args_schema, dict) and issubclass(schema, BaseModel):
        hints |= {name: Annotated[f.annotation, *f.metadata] for name, f in schema.model_fields.items() if f.metadata}
        required |= {name: f.is_required() for name, f in schema.model_fields.items()}
    kinds = {name: _kind(hint) for name, hint in hints.items()}
    return {name: (kind, required.get(name, True)) for name, kind in kinds.items() if kind}


def _kind(hint: Any) -> str:
    parts = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    classes = [each if isinstance(each, type) else get_origin(each) or type(each) for each in parts]
    if any(issubclass(each, InjectedToolCallId) for each in classes if isinstance(each, type)):
        return "call id"
    other = (InjectedToolArg, ToolRuntime)
    return "other" if any(issubclass(each, other) for each in classes if isinstance(each, type)) else ""


def _spec(tool: BaseTool, injected: frozenset[str]) -> Spec:
    schema = convert_to_openai_tool(tool)["function"]["parameters"]
    properties = {name: p for name, p in schema.get("properties", {}).items() if name not in injected}
    required = [name for name in schema.get("required", ()) if name in properties]
    order = [*required, *(name for name in properties if name not in required)]
    told = [f"{name}: {text}" for name, p in properties.items() if (text := p.get("description"))]
    return {
        "name": tool.name,
        "doc": "\n\n".join(filter(None, [tool.description.strip(), "\n".join(told)])),
        "returns": _returned(tool),
        "params": [
            [name, type_text(properties[name]), None if name in required else repr(properties[name].get("default"))]
            for name in order
        ],
        "more": bool(schema.get("additionalProperties")),
    }


def type_text(schema: Mapping[str, Any], depth: int = 3) -> str:
    """A JSON schema as a Python type reads: `{"type": "array", "items": {"type": "string"}}` is `list[str]`."""
    text = _type(schema, depth)
    return text if len(text) <= _TYPE_CHARS else _type(schema, 0)


def _type(schema: Mapping[str, Any], depth: int) -> str:
    kind = schema.get("type")
    kinds = [{"type": each} for each in kind] if isinstance(kind, list) else []
    if "enum" in schema and depth:
        return f"Literal[{', '.join(map(repr, schema['enum']))}]"
    if either := schema.get("anyOf") or schema.get("oneOf") or kinds:
        return " | ".join(dict.fromkeys(_type(each, depth) for each in either))
    if kind == "array":
        items = schema.get("items")
        return f"list[{_type(items, depth - 1)}]" if isinstance(items, Mapping) and depth else "list"
    if kind == "object" or "properties" in schema:
        fields = schema.get("properties")
        if not fields or not depth:
            return "dict"
        return "{" + ", ".join(f"{name!r}: {_type(each, depth - 1)}" for name, each in fields.items()) + "}"
    return _TYPES.get(str(kind), "Any")


def _returned(tool: BaseTool) -> str:
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    if function is None or tool.response_format != "content":
        return ""
    hint = inspect.signature(function).return_annotation
    if hint is inspect.Signature.empty:
        return ""
    return hint if isinstance(hint, str) else inspect.formatannotation(hint).replace("typing.", "")


async def call_tool(tool: UserTool, given: Any, id: str, config: RunnableConfig, threads: Executor) -> Reply:
    """Calls a tool where the caller runs; what it returns is the reply's text, as JSON.

    Args:
        tool: The tool.
        given: The arguments by name, as the kernel sent them: checked before they are believed.
        id: The id of the call.
        config: The caller's configuration, so that callbacks and streams see the call.
        threads: Where a synchronous caller's tools run.

    Raises:
        GraphInterrupt: The tool asks a human.
    """
    name = tool.spec["name"]
    try:
        arguments = _arguments(tool.spec, given)
        value = await _returned_by(tool, arguments, id, config, threads)
        return Reply(text=json.dumps(value, ensure_ascii=True))
    except GraphInterrupt:
        raise
    except (Exception, asyncio.CancelledError) as error:
        cancelled = isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling()
        if cancelled or is_invalid_resume(error):
            raise
        told = prompts.TOOL_FAILED.format(tool=name, error=_told(error))
        return Reply(error="ToolError", message=told)


def _arguments(spec: Spec, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise TypeError("its arguments are no mapping")
    known = [name for name, _, _ in spec["params"]]
    unknown = [name for name in given if name not in known]
    if unknown and not spec["more"]:
        raise TypeError(f"it has no argument {unknown[0][:100]!r}")
    return given


async def _returned_by(
    tool: UserTool, arguments: dict[str, Any], id: str, config: RunnableConfig, threads: Executor
) -> Any:
    user = tool.tool
    as_message = tool.call_id or user.response_format == "content_and_artifact"
    if not as_message and (user.handle_tool_error or user.handle_validation_error):
        # A handled error comes back as if it were a result.
        user = user.model_copy(update={"handle_tool_error": False, "handle_validation_error": False})
    request: Any = arguments
    if as_message:
        request = {"type": "tool_call", "id": id, "name": user.name, "args": arguments}
    in_a_thread = models.is_synchronous() and not (isinstance(user, StructuredTool) and user.func is None)
    if in_a_thread:
        return _value(await models.in_threads(user, request, config, threads))
    return _value(await user.ainvoke(request, config))


def _value(result: Any) -> Any:
    """What a tool returned, as JSON-like data, else as text.

    Raises:
        ToolException: It returned an error, or something that only an agent can obey.
    """
    if isinstance(result, Command):
        raise ToolException("it returned a Command, which only an agent's graph can obey")
    if not isinstance(result, ToolMessage):
        return _json_like(result)
    if result.status == "error":
        raise ToolException(result.text or str(result.content))
    blocks = result.content
    texts = isinstance(blocks, str) or all(isinstance(b, str) or b.get("type") == "text" for b in blocks)
    text = result.text if texts else None
    if isinstance(result.artifact, dict) and (structured := result.artifact.get("structured_content")) is not None:
        return _unwrapped(structured, text)
    return _json_like(blocks) if text is None else text


def _unwrapped(structured: Any, text: str | None) -> Any:
    """An MCP tool's structured result; servers wrap what is no object as `{"result": …}`, their text does not."""
    if not (isinstance(structured, dict) and list(structured) == ["result"]):
        return structured
    try:
        whole = text is not None and json.loads(text) == structured
    except ValueError:
        whole = False
    return structured if whole else structured["result"]


def _json_like(value: Any) -> Any:
    if isinstance(value, str):
        return value
    try:
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        return json.loads(json.dumps(value, default=_item))
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _item(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return list(value)
    return str(value)


def _told(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        wrong = [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False)]
        text = "; ".join(f"{where}: {what}" if where else what for where, what in wrong)
    elif isinstance(error, ToolException):
        text = models.without_keys(str(error))
    else:
        text = f"{type(error).__name__}: {models.first_line(error)}"
    return text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + "…"
