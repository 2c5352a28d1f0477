"""A chat model's run and what it starts: LangChain expects nothing below such a run, and gives it no children."""

from __future__ import annotations

from contextvars import Context, copy_context

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config, var_child_runnable_config
from langchain_core.utils.uuid import uuid7
from langgraph.constants import TAG_NOSTREAM


def as_parent(config: RunnableConfig | None) -> tuple[RunnableConfig, Context]:
    """A run's configuration with its id, and the context in which what is run is its child (`_stream` is not told)."""
    config = ensure_config(config)
    run_id = config.get("run_id") or uuid7()
    child = get_callback_manager_for_config(config)
    child.parent_run_id = run_id
    inside: RunnableConfig = {**config, "callbacks": child}
    for key in ("run_id", "run_name"):
        inside.pop(key, None)  # type: ignore[misc]
    context = copy_context()
    context.run(var_child_runnable_config.set, inside)
    return {**config, "run_id": run_id}, context


def child_of(run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> RunnableConfig:
    """The configuration of what is done for a model's run; LangChain expects none, and gives such a run no children."""
    if run_manager is None:
        return {}
    kind = CallbackManager if isinstance(run_manager, CallbackManagerForLLMRun) else AsyncCallbackManager
    child = kind(handlers=[], parent_run_id=run_manager.run_id)
    child.set_handlers(run_manager.inheritable_handlers)
    child.add_tags(run_manager.inheritable_tags)
    # What LangSmith is told of this model would pass for the graph's and the other models'.
    child.add_metadata({k: v for k, v in run_manager.inheritable_metadata.items() if not k.startswith("ls_")})
    return {"callbacks": child}


def unshown(config: RunnableConfig) -> RunnableConfig:
    """The configuration of a model whose reply is passed on: LangGraph's `messages` stream would show it twice."""
    return {**config, "tags": [TAG_NOSTREAM]}
