"""An agent's model that does what a test says, and remembers what it was shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field


class Agent(BaseChatModel):
    """A model that does what `act` says."""

    act: Callable[[list[BaseMessage]], AIMessage]
    shown: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted-agent"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[t.name for t in tools], **kwargs)

    def _generate(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> ChatResult:
        self.shown.append("\n".join(m.text for m in messages))
        return ChatResult(generations=[ChatGeneration(message=self.act(messages))])


def calls(*wanted: tuple[str, dict[str, Any]], start: int = 0) -> AIMessage:
    """A message that calls these tools."""
    return AIMessage("", tool_calls=[{"name": n, "args": a, "id": f"c{i}"} for i, (n, a) in enumerate(wanted, start)])
