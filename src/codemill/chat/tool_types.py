"""What the tool-call parser gives back: calls, problems, streaming events, and the whole message."""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


def new_call_id() -> str:
    """A fresh `call_...` id."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ToolCall:
    """One call the model asked for. `arguments` is a JSON object as a dict."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=new_call_id)

    @property
    def arguments_json(self) -> str:
        """The arguments as the JSON string that OpenAI clients expect."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class ParseProblem:
    """Something wrong with what the model wrote, in one line. `index` is the call it belongs to, if one was made of it;
    `raw` is the text concerned, the whole of it where no call could be made."""

    message: str
    raw: str = ""
    index: int | None = None


@dataclass(frozen=True)
class ContentDelta:
    """Text meant for the user; the concatenation of all of them is the message's content."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins. `index` counts the calls of the message from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """A piece of the JSON text of a call's arguments; the concatenation of a call's pieces parses to them."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """A call is whole, or as whole as it will get."""

    index: int
    call: ToolCall


Event = ContentDelta | CallStart | ArgumentsDelta | CallEnd | ParseProblem


@dataclass(frozen=True)
class ParsedMessage:
    """A message taken apart. Iterating gives `events`: those that had not been handed out before `finish`."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    errors: tuple[ParseProblem, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def finish_reason(self) -> str:
        """`tool_calls` if there are any, else `stop`."""
        return "tool_calls" if self.tool_calls else "stop"

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)


def repeated_calls(calls: Sequence[ToolCall]) -> int:
    """How many of the last calls are one and the same, name and arguments; 3 or so is a loop."""
    count = 0
    for call in reversed(calls):
        if (call.name, call.arguments) != (calls[-1].name, calls[-1].arguments):
            break
        count += 1
    return count


class EventSink:
    """Collects events, merging neighbouring deltas, and keeps what the whole message is made of."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.problems: list[ParseProblem] = []
        self._content: list[str] = []
        self._events: list[Event] = []
        self._open: CallStart | None = None
        self._pending: list[str] = []

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def has_content(self) -> bool:
        return bool(self._content)

    def text(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._pending.append(text)

    def start(self, name: str) -> int:
        self._flush()
        self._open = CallStart(len(self.calls), new_call_id(), name)
        self._events.append(self._open)
        return self._open.index

    def arguments(self, text: str) -> None:
        if text:
            self._pending.append(text)

    def end(self, arguments: dict[str, Any]) -> None:
        self._flush()
        assert self._open is not None
        call = ToolCall(self._open.name, arguments, self._open.id)
        self.calls.append(call)
        self._events.append(CallEnd(self._open.index, call))
        self._open = None

    def problem(self, message: str, raw: str = "") -> None:
        self._flush()
        problem = ParseProblem(message, raw, self._open.index if self._open else None)
        self.problems.append(problem)
        self._events.append(problem)

    def drain(self) -> list[Event]:
        """The events since the last drain."""
        self._flush()
        events, self._events = self._events, []
        return events

    def _flush(self) -> None:
        if self._pending:
            text = "".join(self._pending)
            self._pending.clear()
            self._events.append(ArgumentsDelta(self._open.index, text) if self._open else ContentDelta(text))
