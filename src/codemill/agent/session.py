"""A session: the conversation with everything that happened, written to a file as it happens."""

import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codemill.agent.model import Message, Usage
from codemill.chat.tool_types import ToolCall
from codemill.errors import CodemillError

VERSION = 1


class Session:
    """Messages in OpenAI's form, which are what the model sees; each change of them is a line of a JSONL file.

    A line that was not written whole, because the process died, is dropped when the file is read. path: None keeps the
    session in memory only.
    """

    def __init__(self, path: Path | None = None, session_id: str | None = None) -> None:
        self.path = path
        self.id = session_id or new_session_id()
        self.messages: list[dict[str, Any]] = []
        self.usage = Usage()  # of the latest reply
        self.metadata: dict[str, Any] = {}
        self._begun: set[str] = set()

    @classmethod
    def create(cls, path: Path | None, **metadata: Any) -> "Session":
        """A new session; metadata is kept in its first line."""
        session = cls(path)
        session.metadata = metadata
        session._write("session", id=session.id, version=VERSION, created=time.time(), metadata=metadata)
        return session

    @classmethod
    def load(cls, path: Path) -> "Session":
        """Read a session, to go on with it. Raises CodemillError naming the file and line that are corrupt."""
        session = cls(path)
        for record in _read_records(path):
            session._replay(record)
        _drop_torn_line(path)
        return session

    def add(self, message: Message) -> None:
        """Add a message to the conversation."""
        self.messages.append(dict(message))
        self._write("message", message=message)

    def add_user(self, text: str) -> None:
        self.add({"role": "user", "content": text})

    def add_tool_result(self, call: ToolCall, text: str) -> None:
        """The observation of a call."""
        self.add({"role": "tool", "tool_call_id": call.id, "content": text})

    def note_usage(self, usage: Usage) -> None:
        """What the latest reply cost; its total is how long the conversation is."""
        self.usage = usage
        self._write("usage", **vars(usage))

    def begin_call(self, call: ToolCall) -> None:
        """A call is about to be made: if the process dies now, nobody knows whether it had an effect."""
        self._begun.add(call.id)
        self._write("call", id=call.id)

    def replace(self, messages: list[dict[str, Any]], reason: str) -> None:
        """Go on with other messages, such as a summary of these, or fewer of them."""
        self.messages = [dict(message) for message in messages]
        self._write("replace", messages=messages, reason=reason)

    def note(self, kind: str, **values: Any) -> None:
        """Something else that belongs to the session, such as a snapshot of the files."""
        self._write(kind, **values)

    @property
    def open_calls(self) -> list[ToolCall]:
        """The calls of the last reply that have no result yet, in order."""
        answered = {message.get("tool_call_id") for message in self.messages if message["role"] == "tool"}
        replies = [message for message in self.messages if message["role"] == "assistant"]
        calls = [_as_call(call) for call in replies[-1].get("tool_calls") or ()] if replies else []
        return [call for call in calls if call.id not in answered]

    def has_begun(self, call: ToolCall) -> bool:
        """Whether the call was under way when the session was left."""
        return call.id in self._begun

    def _replay(self, record: dict[str, Any]) -> None:
        kind = record["type"]
        if kind == "session":
            self.id, self.metadata = record["id"], record.get("metadata", {})
        elif kind == "message":
            self.messages.append(record["message"])
        elif kind == "replace":
            self.messages = list(record["messages"])
        elif kind == "usage":
            self.usage = Usage(record["prompt_tokens"], record["completion_tokens"], record["cached_tokens"])
        elif kind == "call":
            self._begun.add(record["id"])

    def _write(self, kind: str, **values: Any) -> None:
        if self.path is None:
            return
        line = json.dumps({"type": kind, "time": round(time.time(), 3), **values}, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, (line + "\n").encode("utf-8", "replace"))
        finally:
            os.close(descriptor)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """All lines of a session's file. Raises CodemillError naming the file and line that are corrupt."""
    return _read_records(path)


def new_session_id() -> str:
    """Sorts by time, and is short enough to type."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def call_object(call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}


def _as_call(call: Message) -> ToolCall:
    function = call["function"]
    return ToolCall(function["name"], json.loads(function["arguments"]), call["id"])


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CodemillError(f"{path}: the session cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was not written whole
        try:
            record = json.loads(line)
            record["type"]
        except (ValueError, KeyError, TypeError) as error:
            raise CodemillError(f"{path}, line {number}: not a record of a session") from error
        yield record


def _drop_torn_line(path: Path) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
