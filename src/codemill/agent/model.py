"""What the agent needs of a model, wherever it runs."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from codemill.chat.tool_types import ToolCall

if TYPE_CHECKING:
    from codemill.agent.events import Listener

Message = Mapping[str, Any]  # in OpenAI's form


@dataclass(frozen=True)
class Usage:
    """Tokens of one reply. cached_tokens: of the prompt, those that were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Reply:
    """What the model said. problems: of calls that could not be read, a line each; is_cut: it ran out of tokens."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()
    reasoning: str = ""
    is_cut: bool = False
    usage: Usage = field(default_factory=Usage)


class Model(Protocol):
    """Answers conversations."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together, None if that is not known."""

    def reply(
        self, messages: Sequence[Message], tools: Sequence[Message], listen: "Listener", cancel: threading.Event
    ) -> Reply:
        """Answer a conversation; tools in OpenAI's form. What is said is told to `listen` as it comes.

        Raises Interrupted once `cancel` is set, ContextTooLong, CodemillError if the model fails.
        """
