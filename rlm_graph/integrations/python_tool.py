"""Python as a LangChain tool: the same supervised kernel that runs an RLM's cells, for any agent."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config
from langchain_core.stores import BaseStore
from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, Field, PrivateAttr

from rlm_graph import models, prompts
from rlm_graph.context import describe, take_in
from rlm_graph.integrations.python_thread import AT_ONCE, PythonSettings, PythonThread, Ran
from rlm_graph.kernel.isolation import UNCAGED, Isolation, check
from rlm_graph.kernel.session import KernelOptions
from rlm_graph.store import default_store
from rlm_graph.tools import PLAIN_NAMES, RLM_NAMES, user_tools

_THREADS_KEPT = 1_000
"""Threads whose variables are kept; the one that was idle longest goes first."""


class Code(BaseModel):
    """What an agent gives the tool."""

    code: str = Field(description=prompts.PYTHON_CODE)


class PythonTool(BaseTool):
    """Runs Python for an agent; made by `create_python_tool`."""

    args_schema: type[BaseModel] = Code
    handle_tool_error: bool = True
    _settings: PythonSettings = PrivateAttr()
    _threads: OrderedDict[str, PythonThread] = PrivateAttr(default_factory=OrderedDict)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def _run(self, code: str, config: RunnableConfig, run_manager: CallbackManagerForToolRun | None = None) -> str:
        config = patch_config(config, callbacks=run_manager.get_child() if run_manager else None)
        return _told(models.in_step(lambda: self._thread(config).execute(code, config)))

    async def _arun(
        self, code: str, config: RunnableConfig, run_manager: AsyncCallbackManagerForToolRun | None = None
    ) -> str:
        config = patch_config(config, callbacks=run_manager.get_child() if run_manager else None)
        return _told(await self._thread(config).execute(code, config))

    def _thread(self, config: RunnableConfig) -> PythonThread:
        id = str(config.get("configurable", {}).get("thread_id", ""))
        with self._lock:
            thread = self._threads.setdefault(id, PythonThread(self._settings))
            self._threads.move_to_end(id)
            while len(self._threads) > _THREADS_KEPT:
                self._threads.popitem(last=False)
        return thread

    async def aclose(self) -> None:
        """Ends the kernels of all threads; their variables are gone. The tool may be used again."""
        with self._lock:
            threads = list(self._threads.values())
            self._threads.clear()
        await asyncio.gather(*(thread.close() for thread in threads))

    def close(self) -> None:
        """As `aclose`, for code that is not asynchronous."""
        models.in_step(self.aclose)


def create_python_tool(
    *,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    context: Any = None,
    cell_seconds: float = 120.0,
    cell_output: int = 10_000,
    kernel_memory: int = 4_000_000_000,
    max_calls: int = 1_000,
    isolation: Isolation = "auto",
    content_store: BaseStore[str, bytes] | None = None,
    name: str = "python",
    description: str | None = None,
) -> PythonTool:
    """Makes a tool that runs Python for an agent, in a kernel that keeps its variables between calls.

    Its one argument is `code`. There is a kernel for each thread (`thread_id` of the run; without one, for the tool),
    and runs of one thread wait for one another. A kernel that dies is made again: the code that had run on it runs
    again, its calls of tools answered from the record, so that the variables are back. It is ended when it has been
    idle for ten minutes, and made again in the same way when it is needed.

    Args:
        tools: What the code may call, as functions: LangChain tools, those of MCP servers, plain functions with a
            docstring. They run here, in the caller's context, and may ask a human with `interrupt()`.
        context: What the code finds as `context`: anything that an RLM takes. None: nothing.
        cell_seconds: Computing time of one run of code in seconds; waiting for tools does not count.
        cell_output: Characters of output that are returned: head and tail; the middle is counted.
        kernel_memory: Bytes of data that one kernel may hold.
        max_calls: Calls of tools that one run of code may make.
        isolation: What keeps the code from the rest of the machine, as for `create_rlm`: "auto", "bubblewrap",
            "landlock", "gateway", or "process", which warns of what it does not stop.
        content_store: Where the context is kept: any byte store. None: a folder in the user's cache.
        name: The tool's name.
        description: What the agent is told of it, in place of ours.

    Returns:
        The tool, with `close` and `aclose`. Code that fails gives a `ToolMessage` with the traceback and the status
        `"error"`.

    Raises:
        UnusableTool: A tool's name cannot be a function's in the kernel, or it wants what only an agent can give it.
        ContextError: The context cannot be used.
        ValueError: `isolation` is none of these.

    Example:
        >>> python = create_python_tool()
        >>> python.invoke({"code": "squares = [n * n for n in range(4)]"})
        '(it printed nothing)'
        >>> python.invoke({"code": "sum(squares)"})
        '14'
        >>> python.close()
    """
    check(isolation)
    if isolation == "process":
        warnings.warn(UNCAGED, stacklevel=2)
    store = content_store if content_store is not None else default_store()
    sources = [] if context is None else [take_in(context, store)]
    mine = user_tools(tools, PLAIN_NAMES if context is None else RLM_NAMES)
    told = prompts.python_tool_description(
        cell_seconds, cell_output, [tool.spec for tool in mine], describe(sources[0]) if sources else None
    )
    made = PythonTool(name=name, description=description or told)
    made._settings = PythonSettings(
        tools={tool.spec["name"]: tool for tool in mine},
        sources=sources,
        store=store,
        options=KernelOptions(cell_seconds, cell_output, kernel_memory, isolation),
        max_calls=max_calls,
        threads=ThreadPoolExecutor(AT_ONCE, thread_name_prefix="rlm-tool"),
    )
    return made


def _told(ran: Ran) -> str:
    if ran.failed:
        raise ToolException(ran.text)
    return ran.text
