"""What an agent says while it works, for whoever shows it: a terminal, or a program."""

from collections.abc import Callable
from dataclasses import dataclass

from codemill.agent.model import Usage
from codemill.agent.tool import Observation
from codemill.chat.tool_types import ToolCall


@dataclass(frozen=True, slots=True)
class Waiting:
    """The model has not begun to answer. num_computed: tokens of the prompt that are done, where that is known."""

    num_computed: int | None = None
    num_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of what the model says."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The model is writing a call: so many characters of it there are."""

    name: str
    num_characters: int


@dataclass(frozen=True, slots=True)
class ReplyDone:
    """A reply is whole. seconds: what it took."""

    usage: Usage
    seconds: float


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call is about to be made, after it was approved."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class CallOutput:
    """A running command has printed something."""

    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class CallDone:
    """What a call gave."""

    call: ToolCall
    observation: Observation


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know: a retry, a loop, a compaction."""

    text: str


Event = Waiting | TextDelta | ReasoningDelta | CallDelta | ReplyDone | CallBegun | CallOutput | CallDone | Notice
Listener = Callable[[Event], None]
