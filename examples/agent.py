"""An agent with the middleware: a tool's long result never enters its window; it asks about it instead.

The agent's model is a fixed plan in place of a language model. A real one: `create_agent("openai:gpt-5-mini", …)`.
"""

from pathlib import Path
from typing import Any

try:
    from langchain.agents import create_agent
except ImportError as error:
    raise SystemExit("this example needs langchain: pip install 'rlm-graph[agents]'") from error

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from rlm_graph import RLMMiddleware
from rlm_graph.offline import OfflineReader, OfflineRoot

LOGBOOK = Path(__file__).parent.parent / "graphs" / "samples" / "logbook.txt"


class Plan(BaseChatModel):
    """Calls the tool, asks about its result, and says what came of it."""

    @property
    def _llm_type(self) -> str:
        return "fixed-plan"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        results = [m for m in messages if isinstance(m, ToolMessage)]
        steps = [
            _call("read_logbook"),
            _call("ask_text", question=messages[0].text, source="read_logbook"),
            AIMessage(results[-1].text if results else ""),
        ]
        return ChatResult(generations=[ChatGeneration(message=steps[len(results)])])


def _call(name: str, **args: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": name}])


@tool
def read_logbook() -> str:
    """The log of the lighthouse, all of it."""
    return LOGBOOK.read_text("utf-8")


agent = create_agent(Plan(), [read_logbook], middleware=[RLMMiddleware(OfflineRoot(), OfflineReader())])
out = agent.invoke({"messages": [("user", "Which ship struck the outer reef?")]})

for message in out["messages"]:
    for call in getattr(message, "tool_calls", ()):
        print(f"agent calls {call['name']}({call['args']})")
    if isinstance(message, ToolMessage):
        print(f"{message.name} gives {len(message.text):,} characters to the agent")
print(f"The log has {len(LOGBOOK.read_text('utf-8')):,} characters.")
print(out["messages"][-1].text)
