"""What a server sends, put together to a reply."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codemill.agent.events import CallDelta, Event, ReasoningDelta, TextDelta, Waiting
from codemill.agent.model import Message, Reply, Usage
from codemill.agent.stops import ContextTooLong
from codemill.chat.reasoning import split_reasoning
from codemill.chat.tool_parser import ToolCallParser
from codemill.chat.tool_types import ToolCall, new_call_id
from codemill.errors import CodemillError

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
TOO_LONG = (
    "context_length_exceeded",
    "maximum context length",
    "context size",
    "prompt is too long",
    "too many tokens",
)


class TryLater(Exception):
    """What may work the next time. seconds: when, where the server says so."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _Call:
    """A call in the making."""

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = self.name = self.arguments = ""

    def take(self, part: Mapping[str, Any]) -> None:
        function = part.get("function") or {}
        self.id = self.id or part.get("id") or ""
        self.name = self.name or function.get("name") or ""
        arguments = function.get("arguments") or ""
        self.arguments += json.dumps(arguments) if isinstance(arguments, Mapping) else arguments

    def whole(self) -> ToolCall:
        """Raises ValueError for arguments that are no JSON object."""
        arguments = json.loads(self.arguments) if self.arguments.strip() else {}
        if not isinstance(arguments, dict):
            raise ValueError(f"found {type(arguments).__name__}")
        return ToolCall(self.name, arguments, self.id or new_call_id())


class EndpointAnswer:
    """A reply in the making."""

    def __init__(self, tools: Sequence[Message]) -> None:
        self._tools = tools
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._finish_reason: str | None = None
        self._usage = Usage()

    def take(self, chunk: Mapping[str, Any]) -> list[Event]:
        """One more piece -> what it says. Raises TryLater for one that is no part of an answer."""
        try:
            return list(self._take(chunk))
        except (TypeError, AttributeError, ValueError, KeyError) as error:
            raise TryLater("the server sent an event that is no part of an answer") from error

    def end(self) -> None:
        """The server says that this was all; some give no reason."""
        self._finish_reason = self._finish_reason or "stop"

    def _take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        if isinstance(chunk.get("error"), Mapping):
            raise_error(chunk["error"], 500)
        if isinstance(chunk.get("usage"), Mapping):
            self._usage = _usage(chunk["usage"])
        if isinstance(chunk.get("prompt_progress"), Mapping):
            progress = chunk["prompt_progress"]
            yield Waiting(progress.get("processed"), progress.get("total"))
        for choice in chunk.get("choices") or ():
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            yield from self._take_delta(choice.get("delta") or {})

    def _take_delta(self, delta: Mapping[str, Any]) -> Iterator[Event]:
        text, reasoning = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str) and reasoning:
            self._reasoning.append(reasoning)
            yield ReasoningDelta(reasoning)
        if isinstance(text, str) and text:
            self._text.append(text)
            yield TextDelta(text)
        for part in delta.get("tool_calls") or ():
            call = self._call(part)
            call.take(part)
            yield CallDelta(call.name, len(call.arguments))

    def _call(self, part: Mapping[str, Any]) -> "_Call":
        """The call that a part belongs to. Ollama's parts may have no index, and each is a call then; some servers give
        all calls one index, and ids of their own."""
        index, call_id = part.get("index"), part.get("id") or ""
        has_name = bool((part.get("function") or {}).get("name"))
        last = self._calls[-1] if self._calls else None
        if index is None and last is not None and not has_name:
            return last
        for call in reversed(self._calls):
            if index is not None and call.index == index and (not call_id or call.id in ("", call_id)):
                return call
        self._calls.append(_Call(index))
        return self._calls[-1]

    def reply(self) -> Reply:
        """The whole reply. Raises TryLater if the stream ended before it was whole."""
        if self._finish_reason is None:
            raise TryLater("the answer was cut off")
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        if not reasoning and text.lstrip().startswith("<think>"):
            answer = split_reasoning(text)
            text, reasoning = answer.content, answer.reasoning
        calls, problems = [], []
        for call in self._calls:
            try:
                calls.append(call.whole())
            except (ValueError, RecursionError) as error:
                problems.append(f"the arguments of {call.name} are no JSON object ({error})")
        if self._tools and not self._calls:  # a server that does not know the model's format leaves calls in the text
            parsed = ToolCallParser(self._tools).parse(text)
            text, calls = parsed.content, list(parsed.tool_calls)
            problems = [problem.message for problem in parsed.errors]
        is_cut = self._finish_reason == "length"
        return Reply(text, tuple(calls), tuple(problems), reasoning, is_cut, self._usage)


def raise_error(error: Mapping[str, Any], status: int, seconds: float = 0.0) -> None:
    message = " ".join(str(error.get("message") or error).split())
    told = f"{error.get('code') or ''} {message}".lower()
    if any(words in told for words in TOO_LONG):
        raise ContextTooLong(message)
    if status in RETRIED:
        raise TryLater(f"the server answers {status} ({message[:200]})", seconds)
    if status in (401, 403):
        message += "; give the key with --api-key or in OPENAI_API_KEY"
    raise CodemillError(f"the server refuses the request ({status}): {message}")


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
    return Usage(*(count if isinstance(count, int) else 0 for count in counts))
