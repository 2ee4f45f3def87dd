"""What an answer is made of besides what the model says: the prompt again, the stop string, or less than all of it."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.outputs import RequestOutput
from codemill.engine.prompts import Prompt
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.updates import StreamUpdate
from codemill.server.event_reader import token_logprob
from codemill.server.events import Done, Event, Finish, TextDelta, TokenLogprob, Waiting


@dataclass(frozen=True)
class LineLimits:
    """Where a completion in an editor is long enough.

    seconds: since its first token, after which it ends with its line. indent: a line that is indented by fewer
    characters ends it, and is left out; lines without text do not count.
    """

    seconds: float | None = None
    indent: int = 0


@dataclass(frozen=True)
class Shape:
    """echo: the prompt comes before the answer; of a conversation, the beginning that its answer was given.

    prompt_only: the prompt is computed, and nothing answered. includes_stop: the stop string belongs to the text.
    """

    echo: bool = False
    prompt_only: bool = False
    includes_stop: bool = False
    line_limits: LineLimits | None = None


class Shaper:
    """Brings the events of one request into shape. echoed: what an echo says, None for the prompt's text."""

    def __init__(
        self, shape: Shape, tokenizer: Tokenizer, prompt: Prompt, echoed: str | None, params: SamplingParams
    ) -> None:
        self._shape = shape
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._echoed = echoed
        self._params = params
        self._held: list[Event] | None = [] if shape.echo else None
        self._lines: dict[int, _LineReader] = {}
        if shape.line_limits is not None:
            self._lines = {index: _LineReader(shape.line_limits) for index in range(params.n)}

    @property
    def is_done(self) -> bool:
        """Whether no sample may have more."""
        return bool(self._lines) and all(reader.is_done for reader in self._lines.values())

    def shape(self, update: StreamUpdate, events: Iterable[Event]) -> Iterator[Event]:
        """What becomes of an update's events."""
        shaped = [each for event in events for each in self._shaped(event)]
        if self._held is None:
            yield from shaped
        elif self._params.prompt_logprobs is not None and update.output is None:  # they are known at the end
            self._held += [event for event in shaped if not isinstance(event, Waiting)]
            yield from (event for event in shaped if isinstance(event, Waiting))
        else:
            held, self._held = self._held, None
            yield from (*self._echo(update.output), *held, *shaped)

    def _echo(self, output: RequestOutput | None) -> Iterator[Event]:
        text = self._tokenizer.decode(self._prompt.token_ids) if self._echoed is None else self._echoed
        logprobs = () if output is None else tuple(self._prompt_logprobs(output))
        for index in range(self._params.n):
            yield TextDelta(index, text, logprobs)

    def _prompt_logprobs(self, output: RequestOutput) -> Iterator[TokenLogprob]:
        count = self._params.prompt_logprobs or 0
        for token_id, found in zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=False):
            top = sorted((found or {}).items(), key=lambda item: item[1], reverse=True)[:count]
            yield token_logprob(self._tokenizer, token_id, found[token_id] if found else None, dict(top))

    def _shaped(self, event: Event) -> Iterator[Event]:
        if self._shape.prompt_only and not isinstance(event, Waiting):
            yield from _without_text(event)
        elif self._lines and isinstance(event, TextDelta | Finish):
            yield from self._lines[event.index].read(event)
        elif self._shape.includes_stop and isinstance(event, Finish) and event.stop_sequence:
            yield TextDelta(event.index, event.stop_sequence)
            yield event
        else:
            yield event


def _without_text(event: Event) -> Iterator[Event]:
    """The engine makes one token at least: here it does not count."""
    if isinstance(event, Finish):
        yield Finish(event.index, "length")
    elif isinstance(event, Done):
        yield replace(event, usage=replace(event.usage, completion_tokens=0))


class _LineReader:
    """Ends one sample where its lines say so."""

    def __init__(self, limits: LineLimits) -> None:
        self._limits = limits
        self._first_time: float | None = None
        self._indent: int | None = None  # of the line so far, while there is nothing else in it
        self.is_done = False

    def read(self, event: TextDelta | Finish) -> Iterator[Event]:
        if self.is_done:
            return
        if isinstance(event, Finish):
            self.is_done = True
            yield event
            return
        text = self._allowed(event.text)
        if text:
            yield replace(event, text=text)
        if self.is_done or self._is_late(text):
            self.is_done = True
            yield Finish(event.index, "length")

    def _allowed(self, text: str) -> str:
        """The text up to a line that is indented too little."""
        for position, character in enumerate(text):
            if character == "\n":
                self._indent = 0
            elif self._indent is not None and character in " \t":
                self._indent += 1
            elif self._indent is not None:
                if self._indent < self._limits.indent:
                    self.is_done = True
                    return text[:position]
                self._indent = None
        return text

    def _is_late(self, text: str) -> bool:
        now = time.monotonic()
        if self._first_time is None:
            self._first_time = now
        seconds = self._limits.seconds
        return seconds is not None and "\n" in text and now - self._first_time > seconds
