"""The value of one parameter as it arrives: JSON text out, piece by piece where the schema says it is a string."""

import json
from typing import Any

from codemill.chat.tool_schema import STRING, coerce

UNDECIDED = len("null")  # a nullable string is one for certain once it is longer than this


class ValueStream:
    """Takes the raw text between `<parameter=KEY>` and its end.

    One line break (LF or CRLF) at each end is not part of the value. The fragments from `push` and `close` together
    are the value's JSON text.
    """

    def __init__(self, types: frozenset[str]) -> None:
        self._types = types
        self._streams = types == STRING
        self._held = ""  # a line break that may turn out to be the last
        self._started = False
        self._parts: list[str] = []
        self._length = 0
        self._emitted = False

    def push(self, text: str) -> str:
        """Take a piece of the raw text; return the JSON that has become certain."""
        text = self._held + text
        if not self._started:
            if text in ("", "\r"):
                self._held = text
                return ""
            text = text.removeprefix("\r\n") if text[0] == "\r" else text.removeprefix("\n")
            self._started = True
        cut = len(text) - _line_break_at_end(text)
        self._held = text[cut:]
        return self._certain(text[:cut])

    def _certain(self, text: str) -> str:
        if not text:
            return ""
        self._parts.append(text)
        self._length += len(text)
        if not self._streams and self._types == STRING | {"null"} and self._length > UNDECIDED:
            self._streams, text = True, "".join(self._parts)
        if not self._streams:
            return ""
        opening = "" if self._emitted else '"'
        self._emitted = True
        return opening + _escaped(text)

    def close(self) -> tuple[str, Any]:
        """The last JSON fragment, and the value."""
        rest = self._held if self._held == "\r" else ""  # a lone CR is no line break
        last = self._certain(rest)
        text = "".join(self._parts)
        if self._emitted:
            return last + '"', text
        value = coerce(text, self._types)
        return json.dumps(value, ensure_ascii=False), value


def _line_break_at_end(text: str) -> int:
    if text.endswith("\r\n"):
        return 2
    return 1 if text.endswith(("\n", "\r")) else 0


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
