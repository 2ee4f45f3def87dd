"""Reads one call in the Hermes form: a JSON object with a name and arguments, to the end of the object."""

import json
import re
from typing import Any

from codemill.chat.tool_schema import ToolSchemas, load_object
from codemill.chat.tool_tags import Cursor, Tag
from codemill.chat.tool_types import EventSink

OUTSIDE = re.compile(r'["{}\[\]<]')
INSIDE = re.compile(r'["\\]')
CLOSING = {"{": "}", "[": "]"}


class ObjectScanner:
    """Finds the end of a JSON object, reading every character once.

    A `<` outside a string ends it early: the model forgot a bracket. `missing` then holds what was left open.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._skip_one = False

    @property
    def missing(self) -> str:
        """The brackets that are still to be closed, as text to append."""
        return "".join(reversed(self._open))

    def scan(self, text: str, at: int) -> int | None:
        """Read from `at`; the end of the object, or None if it is not in this text."""
        if self._skip_one and at < len(text):
            self._skip_one, at = False, at + 1
        while match := (INSIDE if self._in_string else OUTSIDE).search(text, at):
            at = match.end()
            if match[0] == "<":
                return match.start()
            if match[0] == "\\":
                self._skip_one, at = at == len(text), at + 1
            elif self._structural(match[0]):
                return at
        return None

    def _structural(self, character: str) -> bool:
        """Take note of a quote or bracket; True if it closes the object."""
        if character == '"':
            self._in_string = not self._in_string
        elif character in CLOSING:
            self._open.append(CLOSING[character])
        elif self._open:
            self._open.pop()
        return not self._in_string and not self._open


class HermesCall:
    """A call being read; the cursor stands at its `{`."""

    def __init__(self, cursor: Cursor, sink: EventSink, schemas: ToolSchemas) -> None:
        self.done = False
        self._cursor = cursor
        self._sink = sink
        self._schemas = schemas
        self._scanner = ObjectScanner()
        self._parts: list[str] = []

    def advance(self) -> bool:
        """Take one step; False if that takes text that has not arrived."""
        cursor = self._cursor
        end = self._scanner.scan(cursor.text, cursor.pos)
        self._parts.append(cursor.take(len(cursor.text) if end is None else end))
        if end is not None:
            self._finish("".join(self._parts), self._scanner.missing)
        elif cursor.final:
            self._resynchronise("".join(self._parts))
        return self.done

    def _resynchronise(self, raw: str) -> None:
        """The object never ends: a quote is missing. Take it to end at the first closing tag, and go on after that."""
        end = raw.find(Tag.CLOSE_CALL.value)
        if end < 0:
            self._sink.problem("a tool call is cut off", raw)
            self.done = True
            return
        self._cursor.put_back(raw[end:])
        self._finish(raw[:end], "")

    def _finish(self, raw: str, missing: str) -> None:
        self.done = True
        call = _name_and_arguments(raw + missing)
        if call is None:
            self._sink.problem("a tool call is not a JSON object with a name and an object of arguments", raw)
            return
        name, arguments = call
        self._sink.start(name)
        self._sink.arguments(json.dumps(arguments, ensure_ascii=False))
        if self._schemas.names and not self._schemas.knows(name):
            self._sink.problem(f"there is no tool {name!r}; the tools are {', '.join(self._schemas.names)}")
        if missing:
            self._sink.problem(f"the call of {name!r} lacked {missing!r} at its end", raw)
        self._sink.end(arguments)


def _name_and_arguments(text: str) -> tuple[str, dict[str, Any]] | None:
    """What a call's JSON names; arguments may be missing, or JSON in a string. None if it is no call."""
    call = load_object(text) or {}
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = load_object(arguments)
        if arguments is None:
            return None
    if not isinstance(name, str) or not isinstance(arguments or {}, dict):
        return None
    return name, arguments or {}
