"""What can go wrong, by name.

Each message says what happened, to what, and what to do. None holds a secret or a whole document.
"""

from __future__ import annotations


class RLMError(RuntimeError):
    """Any failure of an RLM run that is not a bug of the caller's own code.

    LangGraph's server shows its clients the messages of few kinds of errors; `RuntimeError` is one of them.
    """


class ContextError(RLMError):
    """The context or the question cannot be used: empty, unreadable, changed since, or of an unknown kind."""


class ModelError(RLMError):
    """A model cannot be found or called. `__cause__` is the provider's own error."""


class UnusableTool(RLMError):
    """A tool cannot be a function in the kernel: by its name, or by what it wants from an agent."""


class NothingRead(RLMError):
    """A run has nothing to answer from: none of its calls was answered, or no cell has looked at the context."""


class PriceError(RLMError):
    """A cost was to be bounded, and the price of a model is not known."""


class KernelError(RLMError):
    """The kernel did not start, died, or no longer speaks.

    Args:
        message: What happened, in one line.
        cause: One of `start`, `exit`, `signal`, `memory`, `hang`, `closed`.
    """

    def __init__(self, message: str, *, cause: str = "exit") -> None:
        super().__init__(message)
        self.cause = cause


class TraceError(RLMError):
    """A trajectory cannot be read, written or replayed; the message says why."""


class IsolationError(KernelError):
    """The model's code cannot be kept from the rest of this machine in the way that was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, cause="start")


class NoGateway(IsolationError, ValueError):
    """The environment names no Jupyter gateway, or not by a URL."""
