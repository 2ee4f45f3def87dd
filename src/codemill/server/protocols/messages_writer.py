"""Writes a message as Anthropic's events: its head, its blocks one after the other, why it ended."""

from typing import Any

from codemill.engine.updates import Progress
from codemill.server.errors import ApiError
from codemill.server.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    Done,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from codemill.server.json_response import json_bytes, sse
from codemill.server.protocols.messages_object import (
    SIGNATURE,
    empty_message,
    stop,
    text_block,
    thinking_block,
    tool_use_block,
    usage_object,
)


class MessagesWriter:
    """Writes one answer. `ping` says that the server is alive; Claude Code counts no comments.

    How long the prompt is stands in the last but one event: the first one does not wait for it.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._index = -1  # of the last block
        self._open: str | None = None  # the type of the block that is open
        self._finish = Finish(0, "stop")

    def start(self) -> bytes:
        return _event("message_start", message=empty_message(self._model))

    def write(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            return self._text(event.text)
        if isinstance(event, ReasoningDelta):
            return self._thinking(event.text)
        if isinstance(event, CallStart):
            return self._begin(tool_use_block(event.id, event.name, {}))
        if isinstance(event, ArgumentsDelta):
            return self._delta("input_json_delta", partial_json=event.text)
        if isinstance(event, CallEnd):
            return self._end()
        if isinstance(event, Finish):
            self._finish = event
        return self._close(event.usage) if isinstance(event, Done) else b""

    def wait(self, progress: Progress | None) -> bytes:
        return _event("ping")

    def fail(self, error: ApiError) -> bytes:
        return sse(json_bytes(error.anthropic_body()), "error")

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        begin = b"" if self._open == "text" else self._begin(text_block())
        return begin + self._delta("text_delta", text=text)

    def _thinking(self, text: str) -> bytes:
        begin = b"" if self._open == "thinking" else self._begin(thinking_block())
        return begin + self._delta("thinking_delta", thinking=text)

    def _begin(self, block: dict[str, Any]) -> bytes:
        end = self._end()
        self._index += 1
        self._open = block["type"]
        return end + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **values: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **values})

    def _end(self) -> bytes:
        """The end of the block that is open, if one is."""
        if self._open is None:
            return b""
        signature = self._delta("signature_delta", signature=SIGNATURE) if self._open == "thinking" else b""
        self._open = None
        return signature + _event("content_block_stop", index=self._index)

    def _close(self, usage: Usage) -> bytes:
        """The end of the message. One that says nothing has an empty text."""
        is_mute = self._index < 0 or (self._index == 0 and self._open == "thinking")
        last = (self._begin(text_block()) if is_mute else b"") + self._end()
        delta = _event("message_delta", delta=stop(self._finish), usage=usage_object(usage))
        return last + delta + _event("message_stop")


def _event(kind: str, **values: Any) -> bytes:
    return sse(json_bytes({"type": kind, **values}), kind)
