"""Reads an engine's updates as events: reasoning apart from text, tool calls apart from both."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from codemill.chat.reasoning import Answer, ReasoningSplitter
from codemill.chat.tokenizer import Tokenizer
from codemill.chat.tool_parser import ToolCallParser
from codemill.chat.tool_types import ArgumentsDelta as ParsedArguments
from codemill.chat.tool_types import CallEnd as ParsedEnd
from codemill.chat.tool_types import CallStart as ParsedStart
from codemill.chat.tool_types import ContentDelta
from codemill.chat.tool_types import Event as ParsedEvent
from codemill.engine.updates import StreamUpdate
from codemill.server.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    Done,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    Usage,
    Waiting,
)

if TYPE_CHECKING:
    from codemill.server.generation import ToolUse


class EventReader:
    """Turns the updates of one request, which has so many samples, into events.

    thinks: the prompt ended inside the reasoning. is_chat: reasoning and calls are looked for; in other text there are
    none.
    """

    def __init__(
        self, tokenizer: Tokenizer, tool_use: "ToolUse", *, num_samples: int = 1, thinks: bool, is_chat: bool
    ) -> None:
        self._tokenizer = tokenizer
        parser = ToolCallParser(tool_use.callable_tools) if is_chat and tool_use.may_call else None
        self._samples = [
            _SampleReader(index, parser and parser.another(), tool_use.parallel, thinks)
            if is_chat
            else _PlainReader(index)
            for index in range(num_samples)
        ]

    @property
    def is_done(self) -> bool:
        """Whether no sample has more to say."""
        return all(sample.is_done for sample in self._samples)

    def read(self, update: StreamUpdate) -> Iterator[Event]:
        """The events of an update; `Waiting` where it shows nothing."""
        if update.progress is not None:
            yield Waiting(update.progress)
            return
        shown = False
        for event in self._read_sample(update):
            shown = True
            yield event
        if update.output is not None:
            yield Done(self._usage(update), update.metrics)
        elif not shown:
            yield Waiting()

    def _read_sample(self, update: StreamUpdate) -> Iterator[Event]:
        sample = self._samples[update.index]
        if sample.is_done:
            return
        events = list(sample.read(update.text))
        if update.finish_reason is not None:
            events += sample.finish(update)
        logprobs = self._logprobs(update)
        if logprobs:
            events = _with_logprobs(events, update.index, logprobs)
        yield from events

    def _usage(self, update: StreamUpdate) -> Usage:
        metrics = update.metrics
        assert metrics is not None
        reasoning = sum(len(self._tokenizer.encode(sample.reasoning)) for sample in self._samples if sample.reasoning)
        return Usage(metrics.num_prompt_tokens, metrics.num_output_tokens, metrics.num_cached_tokens, reasoning)

    def _logprobs(self, update: StreamUpdate) -> tuple[TokenLogprob, ...]:
        if update.logprobs is None or update.top_logprobs is None:
            return ()
        each = zip(update.token_ids, update.logprobs, update.top_logprobs, strict=True)
        return tuple(token_logprob(self._tokenizer, token_id, logprob, top) for token_id, logprob, top in each)


def token_logprob(tokenizer: Tokenizer, token_id: int, logprob: float | None, top: Mapping[int, float]) -> TokenLogprob:
    """A token's log-probability with its text; `top` has those of the likeliest ids."""
    likeliest = tuple(token_logprob(tokenizer, each, value, {}) for each, value in top.items())
    raw = tokenizer.token_bytes(token_id)
    return TokenLogprob(token_id, raw.decode("utf-8", "replace"), raw, logprob, likeliest)


class _PlainReader:
    """Text in which nothing is looked for."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.is_done = False
        self.reasoning = ""

    def read(self, text: str) -> Iterator[Event]:
        if text:
            yield TextDelta(self.index, text)

    def finish(self, update: StreamUpdate) -> Iterator[Event]:
        yield self._end(update)

    def _end(self, update: StreamUpdate, has_calls: bool = False) -> Finish:
        self.is_done = True
        if update.finish_reason != "stop":
            # What a deadline or the end of the server cut off is not whole: clients know that as "length".
            return Finish(self.index, "length")
        found = update.stop_reason if isinstance(update.stop_reason, str) else None
        return Finish(self.index, "tool_calls" if has_calls else "stop", found)


class _SampleReader(_PlainReader):
    """Text with reasoning before it and tool calls in it."""

    def __init__(self, index: int, parser: ToolCallParser | None, parallel: bool, thinks: bool) -> None:
        super().__init__(index)
        self._splitter = ReasoningSplitter(thinks)
        self._parser = parser
        self._parallel = parallel
        self._has_calls = False

    def read(self, text: str) -> Iterator[Event]:
        yield from self._split(self._splitter.feed(text))

    def finish(self, update: StreamUpdate) -> Iterator[Event]:
        yield from self._split(self._splitter.finish())
        if self._parser is not None and not self.is_done:
            yield from self._parsed(self._parser.finish())
        if not self.is_done:
            yield self._end(update, self._has_calls)

    def _split(self, piece: Answer) -> Iterator[Event]:
        if piece.reasoning:
            self.reasoning += piece.reasoning
            yield ReasoningDelta(self.index, piece.reasoning)
        if self._parser is not None:
            yield from self._parsed(self._parser.feed(piece.content))
        elif piece.content:
            yield TextDelta(self.index, piece.content)

    def _parsed(self, events: Iterable[ParsedEvent]) -> Iterator[Event]:
        for event in events:
            if self.is_done:
                return
            if isinstance(event, ContentDelta):
                yield TextDelta(self.index, event.text)
            elif isinstance(event, ParsedStart):
                self._has_calls = True
                yield CallStart(self.index, event.index, event.id, event.name)
            elif isinstance(event, ParsedArguments):
                yield ArgumentsDelta(self.index, event.index, event.text)
            elif isinstance(event, ParsedEnd):
                yield CallEnd(self.index, event.index, event.call)
                if not self._parallel:  # one call is all that is wanted
                    self.is_done = True
                    yield Finish(self.index, "tool_calls")


def _with_logprobs(events: list[Event], index: int, logprobs: tuple[TokenLogprob, ...]) -> list[Event]:
    """The first text of these events brings the log-probabilities, or an empty one before them does."""
    for position, event in enumerate(events):
        if isinstance(event, TextDelta):
            return [*events[:position], TextDelta(index, event.text, logprobs), *events[position + 1 :]]
    return [TextDelta(index, "", logprobs), *events]
