"""What a model's answer is made of while it comes; every protocol writes these down in its own way."""

from dataclasses import dataclass
from typing import Literal

from codemill.chat.tool_types import ToolCall
from codemill.engine.outputs import RequestMetrics
from codemill.engine.updates import Progress

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text, its exact bytes and its log-probability; `top` are the likeliest there, best first.

    logprob: None for the first token of a prompt, which nothing predicts.
    """

    token_id: int
    text: str
    raw: bytes
    logprob: float | None
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens. cached_tokens: of the prompt, those that the prefix cache had."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


# `index` is the sample, where several were asked for; `call` counts the calls of a sample from 0.


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing to show yet. progress: where the prompt stands, if that is what it waits for."""

    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the text; logprobs, where asked for, of the tokens that came with it (the text may be empty)."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins."""

    index: int
    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the JSON text of a call's arguments."""

    index: int
    call: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is whole."""

    index: int
    call: int
    tool_call: ToolCall


@dataclass(frozen=True, slots=True)
class Finish:
    """A sample is whole. stop_sequence: the stop string that ended it."""

    index: int
    reason: FinishReason
    stop_sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """All samples are whole. metrics: of the engine, where one request gave them all."""

    usage: Usage
    metrics: RequestMetrics | None = None


Event = Waiting | TextDelta | ReasoningDelta | CallStart | ArgumentsDelta | CallEnd | Finish | Done
