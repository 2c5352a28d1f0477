"""Running a cell: what `probe`, `filter`, `chunk` and `compose` share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.errors import GraphBubbleUp

from rlm_graph import leaving, models, prompts, stopping
from rlm_graph.errors import KernelError
from rlm_graph.kernel import pool
from rlm_graph.kernel.isolation import UNCAGED_AFAR
from rlm_graph.kernel.kernel import Kernel, Work
from rlm_graph.settings import Settings
from rlm_graph.state import Cell, Done, Draft, Phase, State, SubCall
from rlm_graph.trace import said
from rlm_graph.trace.events import AtCell
from rlm_graph.tree import INLINE, Tree
from rlm_graph.trees import at_work, forget_failed, tree_of

Act = Callable[[Any, RunnableConfig], Coroutine[Any, Any, dict[str, Any]]]


class Node(Runnable[Any, dict[str, Any]]):
    """One asynchronous function as a graph's node, which a synchronous run can step through as well."""

    def __init__(self, act: Act, name: str) -> None:
        self.act = act
        self.name = name

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        return models.in_step(lambda: self._work(input, config or {}))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        return await self._work(input, config or {})

    async def _work(self, input: Any, config: RunnableConfig) -> dict[str, Any]:
        with at_work():
            return await self.act(input, config)


@asynccontextmanager
async def working_on(run: str) -> AsyncIterator[pool.Holding]:
    """Holds a run while a node works on it. A run that fails, and cannot be resumed, leaves nothing behind."""
    leaving.works_on(run)
    try:
        with stopping.heeding(run):
            async with pool.holding(run) as hold:
                yield hold
    except GraphBubbleUp:
        raise
    except BaseException:
        forget_failed(run)
        raise


@contextmanager
def among_siblings(kernel: Kernel | None) -> Iterator[None]:
    """Counts a task that is not the pump, so that the pump knows when nobody else will answer."""
    if kernel is None:
        yield
        return
    siblings = kernel.siblings
    siblings.started += 1
    try:
        yield
    finally:
        siblings.ended += 1


def asked_by(state: SubCall, depth: int) -> AtCell:
    """The cell whose calls a task answers."""
    return {"run": state["run"], "depth": depth, "index": state["cell"]}


def work_of(state: State, settings: Settings, depth: int) -> Work:
    """What the state needs a kernel for."""
    running = state.get("running") or next(iter(state.get("queue") or ()), None)
    below = settings.model(depth + 1)
    return Work(
        run=state["run"],
        depth=depth,
        index=len(state.get("journal") or []),
        journal=state.get("journal") or [],
        sources=state["sources"],
        cell=running["code"] if running else None,
        phase=running["phase"] if running else state["phase"],
        question=state["start"]["question"],
        model=models.settings_hash(below),
        window=models.window_of(below),
        retry=None if settings.retry_model is None else models.settings_hash(settings.retry_model),
        tools=[tool.spec for tool in settings.tools],
    )


def cell_node(settings: Settings, depth: int, phase: Phase, *reported: str) -> Node:
    """The node that runs cells of one label.

    Args:
        settings: The RLM's parameters.
        depth: Depth of this RLM.
        phase: The label.
        reported: Which of the kernel's reports on its variables this phase passes to the root.
    """

    async def act(state: State, config: RunnableConfig) -> dict[str, Any]:
        return await run_cell(state, config, settings, depth, reported)

    return Node(act, phase)


async def run_cell(
    state: State, config: RunnableConfig, settings: Settings, depth: int, reported: tuple[str, ...]
) -> dict[str, Any]:
    """Runs the next queued cell, or goes on with the one that waited, until it ends or waits for answers."""
    tree = await tree_of(state["tree"], settings.limits, settings.store, config)
    work = work_of(state, settings, depth)

    async def run(code: str) -> dict[str, Any]:
        return await _run(state, work, tree, settings, reported)

    cell: Runnable[str, dict[str, Any]] = RunnableLambda(run)
    at: dict[str, Any] = {"rlm_run": work.run, "rlm_depth": depth, "rlm_cell": work.index, "rlm_phase": work.phase}
    shown = models.named(config, f"cell {work.index}", **at)
    return await cell.ainvoke(work.cell or "", shown)


async def _run(state: State, work: Work, tree: Tree, settings: Settings, reported: tuple[str, ...]) -> dict[str, Any]:
    async with working_on(work.run) as hold:
        try:
            kernel = await kernel_at_rest(hold, work, tree, settings)
        except KernelError as error:
            if error.cause == "start":
                raise
            return {**_ended(state, work, _lost_cell(state, work, error), None), **_limit(tree)}
        told = _told(state, kernel, work.depth)
        if kernel.outcome is None:
            return {"running": {"phase": work.phase, "code": work.cell}, "queue": _rest(state), **told}
        cell, draft = await _recorded(state, work, kernel, tree, reported)
        return {**told, **_ended(cast(State, {**state, **told}), work, cell, draft), **_limit(tree)}


async def kernel_at_rest(hold: pool.Holding, work: Work, tree: Tree, settings: Settings) -> Kernel:
    """The kernel, its cell ended or waiting for calls that are not on record.

    Raises:
        KernelError: It did not start (cause `start`), or the cell ended it, or was ended.
    """
    if pool.is_given_up(work):
        raise KernelError(prompts.GIVEN_UP, cause="hang")

    async def until_it_waits(kernel: Kernel) -> None:
        await _until_it_waits(kernel, work, tree, settings)

    return await pool.kernel_that(
        until_it_waits, hold, work, settings.kernel_options(), settings.store, tree.replies, lasting=tree.lasting
    )


async def _until_it_waits(kernel: Kernel, work: Work, tree: Tree, settings: Settings) -> None:
    """Lets the cell go on until it has ended, or waits for a call that is not on record."""
    if not kernel.busy:
        await kernel.begin(work, settings.store)
    while kernel.outcome is None:
        unanswered = list(kernel.waiting) or await kernel.advance(work)
        tree.log.asks(said.at_cell(work.run, work.depth, work.index), kernel.waiting)
        kernel.deliver(await tree.replies(unanswered))
        if kernel.waiting:
            return


async def _recorded(
    state: State, work: Work, kernel: Kernel, tree: Tree, reported: tuple[str, ...]
) -> tuple[Cell, Draft | None]:
    asked, failed, refused = list(kernel.asked), len(kernel.failed), len(kernel.refused)
    checked = kernel.checked
    done = kernel.take_outcome(work)
    cell = _cell(state, work, done.stdout, done.error, _reported(done, state, reported))
    cell["asked"], cell["failed"], cell["refused"] = len(asked), failed, refused
    cell["calls"] = await tree.put(asked) if asked else None
    if coverage := done.report.get("coverage"):
        cell["report"]["coverage"] = coverage
    if checked:
        cell["report"]["checked"] = dict(checked)
    return cell, await _draft(done, tree)


async def _draft(done: Done, tree: Tree) -> Draft | None:
    if done.answer is None:
        return None
    content = done.answer.get("content")
    if len(content) if isinstance(content, str) else content not in (None, [], {}):
        small = isinstance(content, str) and len(content) <= INLINE
        content = content if small else {"stored": await tree.put(content)}
    draft: Draft = {"ready": bool(done.answer.get("ready")), "content": content}
    cited = done.answer.get("citations")
    if cited and (cited["passages"] or cited["more"]):
        draft["cited"] = await tree.put(cited)
    return draft


def _reported(done: Done, state: State, reported: tuple[str, ...]) -> dict[str, Any]:
    report: dict[str, Any] = {name: dict(done.report[name]) for name in reported if done.report.get(name)}
    report |= {name: done.report[name] for name in ("late", "vars") if done.report.get(name)}
    if (kept := report.get("candidates")) and (chars := state["sources"][-1].get("chars")):
        kept["share"] = min(1.0, kept["chars"] / chars)
    return report


def _cell(state: State, work: Work, stdout: str, error: str | None, report: dict[str, Any]) -> Cell:
    return {
        "index": work.index,
        "turn": len(state.get("turns") or []) - 1 - state["start"]["turn"],
        "phase": work.phase,
        "code": work.cell or "",
        "stdout": stdout,
        "error": error,
        "context": len(work.sources) - 1,
        "question": work.question,
        "asked": 0,
        "failed": 0,
        "refused": 0,
        "calls": None,
        "report": report,
        "lost": False,
    }


def _lost_cell(state: State, work: Work, error: KernelError) -> Cell:
    told = prompts.lost(error, work.journal)
    return {**_cell(state, work, "", told, {}), "lost": True}


def _limit(tree: Tree) -> dict[str, Any]:
    limit = tree.ledger.limit_reached()
    return {"limit": limit} if limit else {}


def _told(state: State, kernel: Kernel, depth: int) -> dict[str, Any]:
    """What a kernel has to say: one without a cage to the caller, a rebuilt one to the root's next turn as well."""
    warnings = list(state.get("warnings") or [])
    uncaged = kernel.session.uncaged_afar and depth == 0 and UNCAGED_AFAR not in warnings
    news, kernel.told = [prompts.REBUILT.format(news=line) for line in kernel.told], []
    told: dict[str, Any] = {}
    if uncaged or news:
        told["warnings"] = [*warnings, *([UNCAGED_AFAR] if uncaged else []), *news]
    if news:
        told["notice"] = "\n".join(filter(None, [state["notice"], *news, prompts.CHECK_VARIABLES]))
    return told


def _ended(state: State, work: Work, cell: Cell, draft: Draft | None) -> dict[str, Any]:
    """The state after a cell: a failed one drops the cells behind it."""
    rest = _rest(state)
    update: dict[str, Any] = {"journal": [cell], "running": None, "queue": rest, "phase": work.phase, "errors": 0}
    if draft is not None:
        update["draft"] = draft
    if cell["error"] is not None:
        update["queue"] = []
        update["errors"] = state.get("errors", 0) + 1
        if rest:
            dropped = ", ".join(q["phase"] for q in rest)
            update["notice"] = "\n".join(filter(None, [state["notice"], prompts.DROPPED.format(phases=dropped)]))
    return update


def _rest(state: State) -> list[Any]:
    queue = state.get("queue") or []
    return list(queue) if state.get("running") else list(queue[1:])
