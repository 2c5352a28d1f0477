"""The state machine: its nodes and its edges, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

from langchain_core.stores import BaseStore
from langchain_core.tools import BaseTool
from langgraph.cache.base import BaseCache
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph.store.base import BaseStore as Store
from langgraph.types import Checkpointer

from rlm_graph import flow, leaving, models
from rlm_graph.approval import Approval, above
from rlm_graph.checks import Verify
from rlm_graph.kernel.gateway import Gateway, place
from rlm_graph.kernel.isolation import Isolation
from rlm_graph.ledger import Limits
from rlm_graph.nodes.chunk import chunk
from rlm_graph.nodes.compose import compose
from rlm_graph.nodes.dispatch import dispatch
from rlm_graph.nodes.filter import filter
from rlm_graph.nodes.load import load
from rlm_graph.nodes.plan import plan
from rlm_graph.nodes.probe import probe
from rlm_graph.nodes.sub_call import sub_call
from rlm_graph.nodes.verify import verify as verify_node
from rlm_graph.prices import Prices
from rlm_graph.response import format_of
from rlm_graph.settings import Model, Settings, costs_of, models_by_depth
from rlm_graph.state import Input, NestedInput, Output, State
from rlm_graph.store import default_store
from rlm_graph.tools import user_tools
from rlm_graph.trace.watched import watched

Graph = CompiledStateGraph[State, None, Input, Output]
_ANY_CELL = ["probe", "filter", "chunk", "compose"]


def create_rlm(
    model: Model,
    sub_model: Model | Sequence[Model] | None = None,
    *,
    retry_model: Model | None = None,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    response_format: Any = None,
    system_prompt: str | None = None,
    limits: Limits | None = None,
    direct_below: int = 16_000,
    checkpointer: Checkpointer = None,
    store: Store | None = None,
    cache: BaseCache[Any] | None = None,
    prices: Prices | None = None,
    approve_above: int | Approval | None = None,
    root_window: int | None = None,
    isolation: Isolation | Gateway = "auto",
    verify: Verify = "evidence",
    content_store: BaseStore[str, bytes] | None = None,
    contexts: Mapping[str, Any] | None = None,
    sub_graph: RemoteGraph | None = None,
    name: str = "rlm",
) -> Graph:
    """Makes a Recursive Language Model (Zhang, Kraska, Khattab, arXiv 2512.24601) as a LangGraph graph.

    Its input is `question` (or `messages`) and `context`; its output `answer`, `messages`, `usage` and `stop_reason`.
    The context is a variable in a Python kernel. The root model sees its description, writes cells that probe, filter
    and chunk it, and calls sub-models on the chunks from code.

    Args:
        model: The root: a chat model, or `"provider:name"`.
        sub_model: Who answers the calls: one for all depths, or a list, one for each depth below the root. None:
            the root's own model.
        retry_model: Who is asked again for answers of `sub_call(…)` that do not stand the check: as a rule a stronger
            model than `sub_model`, at its own price and within its own window. None: who was asked before.
        tools: Functions for the kernel's code: LangChain tools, those of MCP servers, or plain functions with a
            docstring. They run here, count as calls, and may ask a human with `interrupt()`. Nested RLMs have them too.
        response_format: What the answer must look like: a pydantic class, a dataclass, a TypedDict or a JSON schema. An
            answer of another form goes back to the root with what is wrong; the output has it as
            `structured_response`.
        system_prompt: Instructions of yours to the root, beside ours.
        limits: How much one question may do.
        direct_below: Tokens below which the context goes straight into one prompt of the root; 0: never.
        checkpointer: Where LangGraph keeps the thread.
        store: LangGraph's store, for `tools` that ask it with `get_store()`: what is remembered across threads.
        cache: A LangGraph cache in which sub-models' replies are looked up by content (model, settings, prompt), across
            runs. Equal prompts of one cell still get a sample each. None: nothing is looked up.
        prices: US dollars for a million input and a million output tokens, `{"model name": (0.25, 2.0)}`, of models
            whose price the table of `genai-prices` does not have, or has wrong.
        approve_above: Calls of a question that may be made before a human is asked, and between two such askings, or
            an `Approval(calls=…, cost=…)` that bounds their estimated cost in US dollars: the run is interrupted with
            what it is about to do. It needs a checkpointer. None: nobody is asked.
        root_window: Tokens that the root's model can be given. As its messages come near, older turns are put in short;
            the variables remain. None: as the model's profile says; where it says nothing, all turns stay whole.
        isolation: What keeps the model's code from the rest of the machine. "bubblewrap": namespaces of its own, no
            network, no file of yours. "landlock": much the same without namespaces. "auto": the best that works
            here, and an error where none does. "process": nothing but an empty environment and bounded resources.
            "gateway": it runs on the Jupyter gateway that JUPYTER_GATEWAY_URL and JUPYTER_GATEWAY_AUTH_TOKEN name, or
            on the `Gateway(url, token=…)` given here.
        verify: How the answers of `sub_call(…)` are checked: `"evidence"`: form, ids, schema, confidence, and that
            every quote stands in its text; `"twice"`: as well that two answers agree, which takes twice the calls;
            `"off"`: not at all. What fails is asked again, `Limits.max_retries` times at most, then marked.
        content_store: Where contexts, payloads and replies are kept: any byte store. None: a folder in the
            user's cache. It must be shared where runs move between machines.
        contexts: Contexts that a caller may name instead of giving one: a `context` that is one of these names means
            what stands here (a path, say, or what `hold()` returned). Where the graph is served, it is the list of
            what callers may have read of this machine's files: what comes over HTTP is never a path.
        sub_graph: Where nested RLMs run instead of here: a graph of ours on a LangGraph server, which has the same
            `content_store`. Each call has a thread of its own there. None: here.
        name: The graph's name, and that of its messages.

    Returns:
        The compiled graph, with `invoke`, `ainvoke`, `stream`, `astream` and `batch`, or a node for a parent graph.

    Raises:
        ModelError: A model's name is not known, or its package is not installed.
        UnusableTool: A tool's name cannot be a function's in the kernel, or it wants what only an agent can give it.
        ValueError: `isolation` is none of these, or the environment names no gateway.
        PriceError: A cost is to be bounded, and the price of a model is not known.

    Example:
        >>> from rlm_graph.offline import OfflineReader, OfflineRoot
        >>> rlm = create_rlm(OfflineRoot(), OfflineReader())
        >>> out = rlm.invoke({"question": "When was the pier built?", "context": "The pier was built in 1907."})
        >>> out["answer"], out["stop_reason"], out["usage"]["calls"]
        ('The pier was built in 1907.', 'direct', 0)
    """
    graph = build_rlm(
        model,
        sub_model,
        retry_model=retry_model,
        tools=tools,
        response_format=response_format,
        system_prompt=system_prompt,
        limits=limits,
        direct_below=direct_below,
        cache=cache,
        prices=prices,
        approve_above=approve_above,
        root_window=root_window,
        isolation=isolation,
        verify=verify,
        content_store=content_store,
        contexts=contexts,
        sub_graph=sub_graph,
        name=name,
    )
    return graph.compile(checkpointer=checkpointer, store=store, name=name).with_config(callbacks=leaving.heard())


def build_rlm(
    model: Model,
    sub_model: Model | Sequence[Model] | None = None,
    *,
    retry_model: Model | None = None,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    response_format: Any = None,
    system_prompt: str | None = None,
    limits: Limits | None = None,
    direct_below: int = 16_000,
    cache: BaseCache[Any] | None = None,
    prices: Prices | None = None,
    approve_above: int | Approval | None = None,
    root_window: int | None = None,
    isolation: Isolation | Gateway = "auto",
    verify: Verify = "evidence",
    content_store: BaseStore[str, bytes] | None = None,
    contexts: Mapping[str, Any] | None = None,
    sub_graph: RemoteGraph | None = None,
    name: str = "rlm",
) -> StateGraph[State, None, Input, Output]:
    """The same as `create_rlm`, not compiled: for those who compile it themselves.

    Args:
        model: See `create_rlm`, as for all the others.
        sub_model: …
        retry_model: …
        tools: …
        response_format: …
        system_prompt: …
        limits: …
        direct_below: …
        cache: …
        prices: …
        approve_above: …
        root_window: …
        isolation: …
        verify: …
        content_store: …
        contexts: …
        sub_graph: …
        name: …

    Raises:
        ModelError: See `create_rlm`.

    Example:
        >>> from rlm_graph.offline import OfflineRoot
        >>> rlm = build_rlm(OfflineRoot()).compile(interrupt_before=["dispatch"])
        >>> "answer" in rlm.get_output_jsonschema()["properties"]
        True
    """
    limits = Limits() if limits is None else limits
    if not isinstance(limits, Limits):
        raise TypeError(f"limits is a Limits(…), not {type(limits).__name__}")
    if verify not in get_args(Verify):
        raise ValueError(f"verify={verify!r}: one of {', '.join(get_args(Verify))}")
    of_each = models_by_depth(model, sub_model)
    again = None if retry_model is None else models.resolve(retry_model)
    asked_above = above(approve_above)
    costs = costs_of(of_each if again is None else (*of_each, again), prices, limits, asked_above)
    settings = Settings(
        models=of_each,
        limits=limits,
        system_prompt=system_prompt,
        direct_below=direct_below,
        store=content_store if content_store is not None else default_store(),
        cache=cache,
        approve_above=asked_above,
        root_window=root_window,
        costs=costs[: len(of_each)],
        retry_model=again,
        retry_cost=costs[-1],
        isolation=place(isolation),
        verify=verify,
        format=format_of(response_format),
        contexts=dict(contexts or {}),
        sub_graph=sub_graph,
        name=name,
        tools=user_tools(tools),
    )
    return _at_depth(settings, 0, name)


def _at_depth(settings: Settings, depth: int, name: str) -> StateGraph[State, None, Any, Output]:
    """The graph of one depth. Each depth has its own, so that a picture shows how they nest."""
    deeper = depth + 2 <= settings.limits.max_depth
    child = _at_depth(settings, depth + 1, name).compile(name=f"{name}_{depth + 1}") if deeper else None
    graph = StateGraph(State, input_schema=NestedInput if depth else Input, output_schema=Output)
    seen = partial(watched, settings=settings, depth=depth)
    graph.add_node("load", seen(load(settings, depth)))
    graph.add_node("plan", seen(plan(settings, depth)))
    graph.add_node("probe", seen(probe(settings, depth)))
    graph.add_node("filter", seen(filter(settings, depth)))
    graph.add_node("chunk", seen(chunk(settings, depth)))
    graph.add_node("dispatch", seen(dispatch(settings, depth)))
    graph.add_node("sub_call", sub_call(settings, depth, child))
    graph.add_node("verify", seen(verify_node(settings)))
    graph.add_node("compose", seen(compose(settings, depth)))

    step = flow.next_step(settings.limits)
    graph.add_edge(START, "load")
    graph.add_conditional_edges("load", flow.after_load(depth, settings.direct_below), ["plan", "compose"])
    graph.add_conditional_edges("plan", step, ["plan", *_ANY_CELL])
    for cell in ("probe", "filter", "chunk"):
        graph.add_conditional_edges(cell, step, ["plan", *_ANY_CELL, "dispatch"])
    graph.add_conditional_edges("compose", step, ["plan", *_ANY_CELL, "dispatch", "__end__"])
    graph.add_conditional_edges("dispatch", flow.let_go, ["sub_call", *_ANY_CELL])
    graph.add_edge("sub_call", "verify")
    graph.add_conditional_edges("verify", flow.after_verify, ["dispatch", *_ANY_CELL])
    return graph
