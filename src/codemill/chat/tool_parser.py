"""Takes tool calls out of what a model writes, whole or as it streams, in Qwen3-Coder's XML and in the Hermes form."""

import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Protocol

from codemill.chat.tool_hermes import HermesCall
from codemill.chat.tool_schema import ToolSchemas
from codemill.chat.tool_tags import CLOSERS, MAX_HEADER, Cursor, Header, LinePosition, Next, Tag
from codemill.chat.tool_types import Event, EventSink, ParsedMessage
from codemill.chat.tool_xml import XmlCall

LINE_OR_CALL_END = re.compile(rf"\n|{Tag.CLOSE_CALL.value}")
CUT_TAG = 5  # characters of an opening tag that, at the end of the text, are taken for a cut-off call


class ToolCallParser:
    """Parses messages one after the other. `tools` are the tools' JSON schemas, with or without their wrapper.

    The types of arguments come from the schemas; without them every value is a string.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raises UsageError naming a tool that is malformed."""
        self._schemas = ToolSchemas(tools)
        self._message = _MessageReader(self._schemas)

    def another(self) -> "ToolCallParser":
        """A parser for the same tools, which need not be read again."""
        parser = copy(self)
        parser._message = _MessageReader(self._schemas)
        return parser

    def parse(self, text: str) -> ParsedMessage:
        """A whole message. What is wrong with its calls is in `.errors`; nothing the model wrote raises."""
        reader = _MessageReader(self._schemas)
        events = reader.feed(text)
        return reader.finish(before=events)

    def feed(self, delta: str) -> list[Event]:
        """The next piece of a streamed message; returns what has become certain."""
        return self._message.feed(delta)

    def finish(self) -> ParsedMessage:
        """The end of a streamed message: the whole of it, with the events still to come in `.events`.

        The parser is then ready for another message.
        """
        reader, self._message = self._message, _MessageReader(self._schemas)
        return reader.finish()


class _Reader(Protocol):
    """Reads one construct from the cursor until it is done."""

    done: bool

    def advance(self) -> bool: ...


class _ClosingTags:
    """Passes over what may still belong to a call after its end: closing tags, and brackets too many."""

    def __init__(self, cursor: Cursor) -> None:
        self.done = False
        self._cursor = cursor

    def advance(self) -> bool:
        following = self._cursor.peek(self._cursor.pos)
        if following.kind is Tag.MORE:
            return False
        is_cut_closer = following.kind is Tag.END and self._cursor.text[following.start :][:2] in ("<", "</")
        if following.kind in CLOSERS or is_cut_closer:
            self._cursor.take(following.end)
        elif following.kind is Tag.TEXT and self._cursor.text[following.start] in "}]":
            self._cursor.take(following.start + 1)
        else:
            self.done = True
        return True


class _InvalidCall:
    """Text between `<tool_call>` and `</tool_call>` that is neither form: it goes into a report, not into content."""

    def __init__(self, cursor: Cursor, sink: EventSink) -> None:
        self.done = False
        self._cursor = cursor
        self._sink = sink
        self._parts: list[str] = []

    def advance(self) -> bool:
        cursor = self._cursor
        at = cursor.text.find("<", cursor.pos)
        self._parts.append(cursor.take(at if at >= 0 else len(cursor.text)))
        if at < 0:
            self.done = cursor.final
        elif (tag := cursor.tag_at(at)) is Tag.MORE:
            return False
        elif tag is Tag.CLOSE_CALL:
            self.done = True
        else:
            self._parts.append(cursor.take(at + 1))
        if self.done:
            self._sink.problem("a tool call has neither a function nor JSON in it", "".join(self._parts))
        return self.done or at >= 0


class _MessageReader:
    """One message: content, and a reader for each call in it.

    White space next to a call is not content, except between two pieces of text.
    """

    def __init__(self, schemas: ToolSchemas) -> None:
        self._schemas = schemas
        self._cursor = Cursor()
        self._sink = EventSink()
        self._reader: _Reader | None = None
        self._line = LinePosition()
        self._space: list[str] = []
        self._space_before_call: str | None = None

    def feed(self, delta: str) -> list[Event]:
        self._cursor.feed(delta)
        self._advance()
        return self._sink.drain()

    def finish(self, before: Sequence[Event] = ()) -> ParsedMessage:
        self._cursor.final = True
        self._advance()
        if self._space_before_call is None:
            self._sink.text("".join(self._space))
        sink = self._sink
        events = (*before, *sink.drain())
        return ParsedMessage(sink.content, tuple(sink.calls), tuple(sink.problems), events)

    def _advance(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        if self._reader is None:
            return self._read_content()
        advanced = self._reader.advance()
        if self._reader.done:
            was_closing = isinstance(self._reader, _ClosingTags)
            self._reader = None if was_closing else _ClosingTags(self._cursor)
        return advanced

    def _read_content(self) -> bool:
        at = self._cursor.text.find("<", self._cursor.pos)
        self._text(self._cursor.take(at if at >= 0 else len(self._cursor.text)))
        if at < 0:
            return False
        tag = self._cursor.tag_at(at)
        if tag is Tag.MORE:
            return False
        if tag is Tag.OPEN_CALL:
            return self._open_call(at)
        if tag is Tag.OPEN_FUNCTION and not self._line.in_code:
            return self._open_function(at)
        if self._cursor.final and self._cursor.is_cut_tag(at) and len(self._cursor.text) - at >= CUT_TAG:
            return self._cut_off()
        return self._literal(at + 1)

    # Each of these decides about one `<` in the content; False: it takes text that has not arrived.

    def _open_call(self, at: int) -> bool:
        following = self._cursor.peek(at + len(Tag.OPEN_CALL.value))
        if following.kind is Tag.MORE:
            return False
        if self._line.in_code and "\n" not in self._cursor.text[at : following.start]:
            return self._literal(at + 1)
        if following.kind is Tag.END:
            return self._cut_off()
        if following.kind is Tag.OPEN_CALL:
            self._cursor.take(following.start)
            return True
        if following.kind is Tag.OPEN_FUNCTION:
            return self._open_wrapped_function(following)
        if following.kind is Tag.TEXT and self._cursor.text[following.start] == "{":
            self._cursor.take(following.start)
            return self._begin(HermesCall(self._cursor, self._sink, self._schemas))
        return self._open_neither(at, following)

    def _open_neither(self, at: int, following: Next) -> bool:
        """A `<tool_call>` that has lines to itself is a call gone wrong; any other is a word in a sentence."""
        end = at + len(Tag.OPEN_CALL.value)
        is_call = self._line.is_blank and ("\n" in self._cursor.text[end : following.start] or self._fills_line(end))
        if is_call is None:
            return False
        if not is_call:
            return self._literal(end)
        self._cursor.take(end)
        return self._begin(_InvalidCall(self._cursor, self._sink))

    def _fills_line(self, start: int) -> bool | None:
        """Whether `</tool_call>` ends this line; None: that takes text that has not arrived."""
        cursor = self._cursor
        line_end = LINE_OR_CALL_END.search(cursor.text, start, start + MAX_HEADER)
        if line_end is None:
            return False if cursor.final or len(cursor.text) - start >= MAX_HEADER else None
        if line_end[0] == "\n":
            return False
        following = cursor.peek(line_end.end())
        if following.kind is Tag.MORE:
            return None
        return following.kind is Tag.END or "\n" in cursor.text[line_end.end() : following.start]

    def _open_wrapped_function(self, following: Next) -> bool:
        header = self._cursor.header(following.end)
        if header is Tag.MORE:
            return False
        if header is Tag.END:
            return self._cut_off()
        if not isinstance(header, Header):
            self._cursor.take(following.start)
            return self._begin(_InvalidCall(self._cursor, self._sink))
        self._cursor.take(header.end)
        return self._begin(XmlCall(self._cursor, self._sink, self._schemas, header.name, wrapped=True))

    def _open_function(self, at: int) -> bool:
        header = self._cursor.header(at + len(Tag.OPEN_FUNCTION.value))
        if header is Tag.MORE:
            return False
        if header is Tag.END and self._line.is_blank:
            return self._cut_off()
        if not isinstance(header, Header):
            return self._literal(at + 1)
        following = self._cursor.peek(header.end).kind
        if following is Tag.MORE:
            return False
        plausible = following in (Tag.OPEN_PARAMETER, Tag.CLOSE_FUNCTION, Tag.CLOSE_CALL, Tag.END)
        if not plausible or not (self._line.is_blank or self._schemas.knows(header.name)):
            return self._literal(at + 1)
        self._cursor.take(header.end)
        return self._begin(XmlCall(self._cursor, self._sink, self._schemas, header.name, wrapped=False))

    def _literal(self, end: int) -> bool:
        self._text(self._cursor.take(end))
        return True

    def _cut_off(self) -> bool:
        self._sink.problem("a tool call is cut off", self._cursor.take(len(self._cursor.text)))
        self._around_call()
        return True

    def _begin(self, reader: _Reader) -> bool:
        self._reader = reader
        self._around_call()
        return True

    # Content

    def _around_call(self) -> None:
        """Note that a call stands here: the white space before it is only content if text follows."""
        self._space_before_call = self._space_before_call or "".join(self._space)
        self._space.clear()
        self._line = LinePosition()

    def _text(self, text: str) -> None:
        if not text:
            return
        self._line.pass_over(text)
        end = len(text.rstrip())
        self._space.append(text if end == 0 else "")
        if end:
            self._sink.text(self._space_between(text) + text.strip())
            self._space_before_call = None
            self._space = [text[end:]]

    def _space_between(self, text: str) -> str:
        """The white space before this text: after a call, what stood before the call if there was any."""
        after = "".join(self._space) + text[: len(text) - len(text.lstrip())]
        if self._space_before_call is None:
            return after
        return (self._space_before_call or after) if self._sink.has_content else ""
