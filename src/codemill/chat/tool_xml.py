"""Reads one call in Qwen3-Coder's form: `<function=NAME>`, `<parameter=KEY>` and the values, to its end."""

import json
from typing import Any

from codemill.chat.tool_boundary import Decision, ValueBoundary, Verdict
from codemill.chat.tool_schema import ToolSchemas
from codemill.chat.tool_tags import Cursor, Header, LinePosition, Next, Tag
from codemill.chat.tool_types import EventSink
from codemill.chat.tool_value import ValueStream


class XmlCall:
    """A call being read; the cursor stands after `<function=NAME>`. `wrapped`: it began with `<tool_call>`."""

    def __init__(self, cursor: Cursor, sink: EventSink, schemas: ToolSchemas, name: str, wrapped: bool) -> None:
        self.done = False
        self._cursor = cursor
        self._sink = sink
        self._schemas = schemas
        self._name = name
        self._wrapped = wrapped
        self._arguments: dict[str, Any] = {}
        self._stray: list[str] = []
        self._key = ""
        self._value: ValueStream | None = None
        self._held: list[str] | None = None  # text from the place where the value perhaps ends
        self._sink.start(name)

    def advance(self) -> bool:
        """Take one step; False if that takes text that has not arrived."""
        if self._value is None:
            return self._read_body()
        return self._read_value(self._value)

    # Between parameters

    def _read_body(self) -> bool:
        following = self._cursor.peek(self._cursor.pos)
        if following.kind is Tag.MORE:
            return False
        self._stray.append(self._cursor.take(following.start))
        if following.kind is Tag.OPEN_PARAMETER:
            return self._open_parameter(following)
        if following.kind is Tag.TEXT:
            return self._read_stray(following)
        if following.kind is Tag.END:
            self._sink.problem(f"the call of {self._name!r} is cut off")
        if following.kind not in (Tag.OPEN_CALL, Tag.OPEN_FUNCTION):
            self._cursor.take(following.end)
        if following.kind is not Tag.CLOSE_PARAMETER:
            self._end()
        return True

    def _read_stray(self, following: Next) -> bool:
        """Text where only tags may stand: kept for the report."""
        end = self._cursor.text.find("<", following.start + 1)
        self._stray.append(self._cursor.take(end if end >= 0 else len(self._cursor.text)))
        return True

    def _open_parameter(self, following: Next) -> bool:
        header = self._cursor.header(following.end)
        if header is Tag.MORE:
            return False
        if not isinstance(header, Header):
            self._stray.append(self._cursor.take(following.end if header is Tag.TEXT else len(self._cursor.text)))
            return True
        self._cursor.take(header.end)
        self._start_value(header)
        return True

    def _start_value(self, header: Header) -> None:
        self._key = header.name
        if self._key in self._arguments:
            self._sink.problem(f"parameter {self._key!r} is given twice to {self._name!r}; the last value counts")
        self._sink.arguments((", " if self._arguments else "{") + json.dumps(self._key, ensure_ascii=False) + ": ")
        self._value = ValueStream(self._schemas.types(self._name, self._key))
        seen = frozenset({*self._arguments, self._key})
        self._boundary = ValueBoundary(self._cursor, self._schemas, self._name, seen, self._wrapped)
        self._line = LinePosition()
        if header.value:
            self._push(self._value, header.value)
        if header.is_closed:
            self._close_value(self._value)

    # Inside a value

    def _read_value(self, value: ValueStream) -> bool:
        at = self._cursor.text.find("<", self._cursor.pos)
        if at < 0:
            self._push(value, self._cursor.take(len(self._cursor.text)))
            if self._cursor.final:
                self._end_with_text(value)
            return self._cursor.final
        self._push(value, self._cursor.take(at))
        if self._is_cut_off(at):
            self._cursor.take(len(self._cursor.text))
            return True
        decision = self._boundary.judge(at, self._line)
        if decision is None:
            return False
        self._apply(decision, value)
        return True

    def _apply(self, decision: Decision, value: ValueStream) -> None:
        if decision.verdict is Verdict.END_BEFORE:
            self._end_before(value)
        elif decision.verdict is Verdict.END:
            self._release(value)
            self._close_value(value)
        else:
            if decision.verdict is Verdict.PERHAPS:
                self._release(value)
                self._held = []
            self._push(value, self._cursor.take(decision.end))

    def _end_with_text(self, value: ValueStream) -> None:
        if self._held is not None and self._boundary.ended_before("".join(self._held)):
            self._end_before(value)
        else:
            self._release(value)
            self._close_value(value)

    def _end_before(self, value: ValueStream) -> None:
        """End the value where it perhaps did, and read on from there."""
        self._cursor.put_back("".join(self._held or ()))
        self._held = None
        if not self._boundary.is_closed:
            self._sink.problem(f"the call of {self._name!r} lacks closing tags")
        self._close_value(value)

    def _release(self, value: ValueStream) -> None:
        """What was held is part of the value."""
        held, self._held = self._held or (), None
        self._sink.arguments("".join(map(value.push, held)))

    def _is_cut_off(self, at: int) -> bool:
        """Whether the text ends within a tag of the call, which is then no part of the value."""
        if not self._cursor.final or not self._line.is_blank:
            return False
        if self._cursor.tag_at(at) is Tag.OPEN_PARAMETER:
            return self._cursor.header(at + len(Tag.OPEN_PARAMETER.value)) is Tag.END
        return self._cursor.tag_at(at) is Tag.TEXT and self._cursor.is_cut_tag(at)

    def _push(self, value: ValueStream, text: str) -> None:
        self._line.pass_over(text)
        if self._held is None:
            self._sink.arguments(value.push(text))
        else:
            self._held.append(text)

    def _close_value(self, value: ValueStream) -> None:
        fragment, self._arguments[self._key] = value.close()
        self._sink.arguments(fragment)
        self._value = None

    def _end(self) -> None:
        self._sink.arguments("}" if self._arguments else "{}")
        stray = "".join(self._stray).strip()
        if stray:
            self._sink.problem(f"text between the parameters of {self._name!r} was left out", stray)
        if self._schemas.names and not self._schemas.knows(self._name):
            self._sink.problem(f"there is no tool {self._name!r}; the tools are {', '.join(self._schemas.names)}")
        self._sink.end(self._arguments)
        self.done = True
