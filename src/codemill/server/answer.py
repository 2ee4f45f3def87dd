"""A whole answer, put together from its events."""

from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from codemill.chat.tool_types import ToolCall
from codemill.engine.outputs import RequestMetrics
from codemill.server.events import (
    CallEnd,
    Done,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    Usage,
)


@dataclass(eq=False)
class Sample:
    """One sample of an answer."""

    reasoning: str = ""
    parts: list[str | ToolCall] = field(default_factory=list)  # text and calls, in the order they came
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    stop_sequence: str | None = None

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    def add_text(self, text: str) -> None:
        """More of the text."""
        if self.parts and isinstance(self.parts[-1], str):
            self.parts[-1] += text
        elif text:
            self.parts.append(text)


@dataclass(frozen=True)
class Answer:
    """All samples, in order, and what they cost. metrics: as in `Done`."""

    samples: list[Sample]
    usage: Usage
    metrics: RequestMetrics | None = None


async def collect(events: AsyncIterator[Event]) -> Answer:
    """The whole answer."""
    samples: dict[int, Sample] = defaultdict(Sample)
    done = Done(Usage())
    async for event in events:
        if isinstance(event, Done):
            done = event
        else:
            _add(samples, event)
    return Answer([samples[index] for index in sorted(samples)], done.usage, done.metrics)


def _add(samples: dict[int, Sample], event: Event) -> None:
    if isinstance(event, TextDelta):
        sample = samples[event.index]
        sample.add_text(event.text)
        sample.logprobs += event.logprobs
    elif isinstance(event, ReasoningDelta):
        samples[event.index].reasoning += event.text
    elif isinstance(event, CallEnd):
        samples[event.index].parts.append(event.tool_call)
    elif isinstance(event, Finish):
        sample = samples[event.index]
        sample.finish_reason, sample.stop_sequence = event.reason, event.stop_sequence
