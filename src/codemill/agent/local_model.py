"""A model in this process: our engine, loaded when it is first asked."""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from codemill.agent.events import CallDelta, Listener, Notice, ReasoningDelta, TextDelta, Waiting
from codemill.agent.model import Message, Reply, Usage
from codemill.agent.stops import ContextTooLong, Interrupted
from codemill.chat.reasoning import OPEN, ReasoningSplitter
from codemill.chat.tool_parser import ToolCallParser
from codemill.chat.tool_types import ArgumentsDelta, CallStart, ContentDelta
from codemill.chat.tool_types import Event as ParsedEvent

if TYPE_CHECKING:
    from codemill.engine.llm import LLM
    from codemill.engine.outputs import RequestMetrics
    from codemill.engine.sampling_params import SamplingParams


class LocalModel:
    """Answers with an `LLM`. load: makes it when it is first needed. temperature: None for the model's own."""

    def __init__(self, load: Callable[[], "LLM"], name: str, temperature: float | None = None) -> None:
        self.name = name
        self._load = load
        self._temperature = temperature
        self._lock = threading.Lock()
        self._loaded: LLM | None = None

    @property
    def context_length(self) -> int | None:
        return self._llm(lambda event: None).max_model_len

    def reply(
        self, messages: Sequence[Message], tools: Sequence[Message], listen: Listener, cancel: threading.Event
    ) -> Reply:
        from codemill.engine.prompts import PromptTooLong

        def read_on(num_computed: int, num_prompt_tokens: int) -> None:
            if cancel.is_set():
                raise Interrupted("stopped")
            listen(Waiting(num_computed, num_prompt_tokens))

        llm = self._llm(listen)
        listen(Waiting())
        answer = _Answer(llm, messages, tools, listen)
        try:
            for piece in llm.stream_chat(messages, self._sampling(llm), list(tools) or None, on_progress=read_on):
                answer.take(piece)
                if cancel.is_set():
                    raise Interrupted("stopped")
                if piece.finish_reason is not None:
                    return answer.reply(piece.finish_reason == "length", piece.metrics)
        except PromptTooLong as error:
            raise ContextTooLong(str(error), error.num_tokens, error.max_model_len) from error
        raise AssertionError("a stream ends with a reason")

    def _llm(self, listen: Listener) -> "LLM":
        with self._lock:
            if self._loaded is None:
                listen(Notice(f"loading {self.name}"))
                self._loaded = self._load()
            return self._loaded

    def _sampling(self, llm: "LLM") -> "SamplingParams":
        from codemill.engine.sampling_params import SamplingParams

        return SamplingParams(temperature=self._temperature, max_tokens=llm.max_model_len)


class _Answer:
    """A reply in the making."""

    def __init__(self, llm: "LLM", messages: Sequence[Message], tools: Sequence[Message], listen: Listener) -> None:
        prompt = llm.tokenizer.render(messages, list(tools) or None)
        self._splitter = ReasoningSplitter(prompt.rstrip().endswith(OPEN))
        self._parser = ToolCallParser(tools)
        self._listen = listen
        self._reasoning: list[str] = []
        self._call, self._length = "", 0

    def take(self, text: str) -> None:
        piece = self._splitter.feed(text)
        self._take_reasoning(piece.reasoning)
        for event in self._parser.feed(piece.content):
            self._tell(event)

    def reply(self, is_cut: bool, metrics: "RequestMetrics | None") -> Reply:
        piece = self._splitter.finish()
        self._take_reasoning(piece.reasoning)
        for event in self._parser.feed(piece.content):
            self._tell(event)
        parsed = self._parser.finish()
        for event in parsed.events:
            self._tell(event)
        usage = Usage()
        if metrics is not None:
            usage = Usage(metrics.num_prompt_tokens, metrics.num_output_tokens, metrics.num_cached_tokens)
        problems = tuple(problem.message for problem in parsed.errors)
        return Reply(parsed.content, parsed.tool_calls, problems, "".join(self._reasoning), is_cut, usage)

    def _take_reasoning(self, text: str) -> None:
        if text:
            self._reasoning.append(text)
            self._listen(ReasoningDelta(text))

    def _tell(self, event: ParsedEvent) -> None:
        if isinstance(event, ContentDelta):
            self._listen(TextDelta(event.text))
        elif isinstance(event, CallStart):
            self._call, self._length = event.name, 0
        elif isinstance(event, ArgumentsDelta):
            self._length += len(event.text)
            self._listen(CallDelta(self._call, self._length))
