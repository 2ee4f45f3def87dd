"""A session: the conversation with everything that happened, written to a file as it happens."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codemill.agent.model import Message, Usage
from codemill.agent.session_file import Record, SessionFile, read_records
from codemill.chat.tool_types import ToolCall
from codemill.errors import CodemillError

VERSION = 1


class Session:
    """Messages in OpenAI's form, which are what the model sees; each change of them is a record, a line of a file.

    requests: what the user asked for, word for word, also where `messages` has only a summary of it. todos: the list of
    todo_write. known: digests of the files that the agent has read, by path. path: None keeps all in memory only.
    """

    def __init__(self, path: Path | None = None, session_id: str | None = None) -> None:
        self.path = path
        self.id = session_id or new_session_id()
        self.records: list[Record] = []
        self.messages: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.todos: list[dict[str, Any]] = []
        self.known: dict[str, str] = {}
        self.usage = Usage()  # of the latest reply; nothing if the messages were replaced since
        self.metadata: dict[str, Any] = {}
        self._begun: set[str] = set()
        self._file: SessionFile | None = None

    @classmethod
    def create(cls, path: Path | None, **metadata: Any) -> "Session":
        """A new session; metadata is kept in its first line."""
        session = cls(path)
        session._write("session", id=session.id, version=VERSION, created=time.time(), metadata=metadata)
        return session

    @classmethod
    def load(cls, path: Path, file: SessionFile | None = None) -> "Session":
        """Read a session, to go on with it. A last line that was not written whole is left out.

        file: what it is written to from now on. Raises CodemillError naming the file and line that are corrupt.
        """
        session = cls(path)
        for number, record in enumerate(read_records(path), 1):
            try:
                session.apply(record)
            except (KeyError, TypeError, AttributeError) as error:
                raise CodemillError(f"{path}, line {number}: not a record of a session") from error
        if not session.records:
            raise CodemillError(f"{path}: there is no session in this file")
        session._file = file
        return session

    def lock(self) -> None:
        """Keep other processes from writing to it. Raises CodemillError naming the process that has it."""
        if self.path is not None:
            self._file = self._file or SessionFile(self.path)
            self._file.lock()

    def close(self) -> None:
        """Let others have the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, message: Message, **values: Any) -> None:
        """Add a message to the conversation. values: what is to be kept beside it."""
        self._write("message", message=dict(message), **values)

    def add_user(self, text: str) -> None:
        """What the user asks for."""
        self.add({"role": "user", "content": text})

    def add_correction(self, text: str) -> None:
        """What the model is told of its own last message: no request of the user's."""
        self.add({"role": "user", "content": text}, correction=True)

    def add_tool_result(self, call: ToolCall, text: str, known: Mapping[str, str] | None = None) -> None:
        """The observation of a call. known: all files that the agent knows now, by path."""
        news = {"known": dict(known)} if known is not None and known != self.known else {}
        self.add({"role": "tool", "tool_call_id": call.id, "content": text}, **news)

    def note_usage(self, usage: Usage) -> None:
        """What the latest reply cost; its total is how long the conversation is."""
        self._write("usage", **vars(usage))

    def begin_call(self, call: ToolCall) -> None:
        """A call is about to be made: if the process dies now, nobody knows whether it had an effect."""
        self._write("call", id=call.id)

    def keep_todos(self, todos: Sequence[Mapping[str, Any]]) -> None:
        """The list of what is to be done is this now."""
        self._write("todos", todos=[dict(todo) for todo in todos])

    def replace(self, messages: Sequence[Message], reason: str, **values: Any) -> None:
        """Go on with other messages, such as a summary of these, or fewer of them.

        values: requests, todos or known that take the place of what was there.
        """
        self._write("replace", messages=[dict(message) for message in messages], reason=reason, **values)

    def note(self, kind: str, **values: Any) -> None:
        """Something else that belongs to the session, such as a snapshot of the files."""
        self._write(kind, **values)

    @property
    def open_calls(self) -> list[ToolCall]:
        """The calls of the last reply that have no result yet, in order."""
        answered: set[str] = set()
        for message in reversed(self.messages):  # ids of earlier replies may be the same ones
            if message["role"] == "tool":
                answered.add(message["tool_call_id"])
            elif message["role"] == "assistant":
                calls = [_as_call(call) for call in message.get("tool_calls") or ()]
                return [call for call in calls if call.id not in answered]
        return []

    @property
    def is_answered(self) -> bool:
        """Whether the model has said its last word, and asks for nothing more."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant" and not self.open_calls

    def has_begun(self, call: ToolCall) -> bool:
        """Whether the call was under way when the session was left."""
        return call.id in self._begun

    def apply(self, record: Record) -> None:
        """Take over what a record says, without writing it."""
        kind = record["type"]
        if kind == "session":
            self._apply_header(record)
        elif kind == "message":
            self._apply_message(record)
        elif kind == "replace":
            self.messages = list(record["messages"])
            self.requests = list(record.get("requests", self.requests))
            self.usage = Usage()
        elif kind == "usage":
            self.usage = Usage(record["prompt_tokens"], record["completion_tokens"], record["cached_tokens"])
        elif kind == "call":
            self._begun.add(record["id"])
        self.todos = list(record.get("todos", self.todos))
        self.known = dict(record.get("known", self.known))
        self.records.append(record)

    def _apply_header(self, record: Record) -> None:
        if record["version"] > VERSION:
            raise CodemillError(f"session {record['id']} was written by a newer codemill: update this one")
        self.id, self.metadata = record["id"], record.get("metadata", {})

    def _apply_message(self, record: Record) -> None:
        message = record["message"]
        self.messages.append(message)
        if message["role"] == "assistant":
            self._begun.clear()
        elif message["role"] == "user" and not record.get("correction"):
            self.requests.append(message["content"])

    def _write(self, kind: str, **values: Any) -> None:
        record = {"type": kind, "time": round(time.time(), 3), **values}
        if self.path is not None:
            self._open().append(record)
        self.apply(record)

    def _open(self) -> SessionFile:
        if self._file is None:
            assert self.path is not None
            self._file = SessionFile(self.path)
            self._file.repair()
        return self._file


def new_session_id() -> str:
    """Sorts by time, and is short enough to type."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def call_object(call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}


def _as_call(call: Message) -> ToolCall:
    function = call["function"]
    return ToolCall(function["name"], json.loads(function["arguments"]), call["id"])
