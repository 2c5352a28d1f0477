"""A call of one of the user's tools, on the host, where the caller runs."""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphInterrupt

from rlm_graph import models, prompts
from rlm_graph.ledger import Spent
from rlm_graph.nodes.plain_call import Answer
from rlm_graph.settings import Settings
from rlm_graph.state import Asked, Reply
from rlm_graph.tools import call_tool
from rlm_graph.tree import Tree


def tool_call(settings: Settings, tree: Tree, config: RunnableConfig) -> Answer:
    """Who answers calls of tools: the tool of that name."""
    tools = {tool.spec["name"]: tool for tool in settings.tools}

    async def answer(asked: Asked) -> tuple[Reply, Spent | None]:
        tool = tools.get(asked["prompt"])
        if tool is None:
            return Reply(error="ToolError", message=prompts.NO_SUCH_TOOL.format(name=asked["prompt"][:60])), None
        try:
            async with tree.slot() as threads:
                shown = models.noted_call(config, asked)
                return await call_tool(tool, asked["context"], asked["id"], shown, threads), None
        except GraphInterrupt:
            if tree.lasting:
                raise
            told = prompts.TOOL_FAILED.format(tool=asked["prompt"], error=prompts.CANNOT_ASK)
            return Reply(error="ToolError", message=told), None

    return answer
