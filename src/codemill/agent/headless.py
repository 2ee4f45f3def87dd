"""An agent without a terminal: what it does is written for programs, or only its answer is."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, TextIO, get_args

from codemill.agent.events import CallBegun, CallDone, Event, Listener, Notice, ReasoningDelta, ReplyDone, TextDelta
from codemill.agent.loop import Outcome
from codemill.agent.stops import Status
from codemill.agent.terminal.safe_text import safe_line, safe_text, visible_line
from codemill.errors import UsageError

OutputFormat = Literal["text", "json", "stream-json"]
FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
EXIT_STATUS: Mapping[Status, int] = {
    "finished": 0,
    "failed": 1,
    "budget": 3,
    "loop": 4,
    "refused": 5,
    "interrupted": 130,
}


class HeadlessOutput:
    """Writes what an agent does, and how it ended.

    text: the answer on standard output, and a line for each call on standard error. json: one object at the end, and
    notices on standard error.
    stream-json: an object a line, as it happens; the last has `"type": "outcome"`.
    """

    def __init__(self, output_format: str, out: TextIO | None = None, err: TextIO | None = None) -> None:
        """Raises UsageError for a format that there is not."""
        if output_format not in FORMATS:
            raise UsageError(f"--output-format {output_format}: choose {', '.join(FORMATS)}")
        self._format = output_format
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._calls: list[dict[str, Any]] = []

    @property
    def listener(self) -> Listener:
        """What an agent is to tell its events."""
        listeners: dict[str, Callable[[Event], None]] = {
            "text": self._note_line,
            "json": self._collect,
            "stream-json": self._write_event,
        }
        return listeners[self._format]

    def finish(self, outcome: Outcome, session_id: str) -> int:
        """Write the end -> the exit status."""
        ended = {"type": "outcome", **vars(outcome), "session_id": session_id}
        if self._format == "text":
            if outcome.status == "finished":
                print(self._shown(outcome.text, self._out), file=self._out)
            else:
                print(f"codemill: {safe_line(outcome.text)}", file=self._err)
        elif self._format == "json":
            self._write({**ended, "calls": self._calls}, indent=2)
        else:
            self._write(ended)
        return EXIT_STATUS[outcome.status]

    def _note_line(self, event: Event) -> None:
        if isinstance(event, CallDone):
            mark = "failed" if event.observation.is_error else "done"
            told = visible_line(f"{event.call.name} {event.call.arguments_json[:120]}")
            print(f"[{told}: {mark}]", file=self._err, flush=True)
        elif isinstance(event, Notice):
            self._notice(event)

    def _collect(self, event: Event) -> None:
        if isinstance(event, CallDone):
            self._calls.append(_result(event))
        elif isinstance(event, Notice):
            self._notice(event)

    def _notice(self, event: Notice) -> None:
        print(f"[{safe_line(event.text)}]", file=self._err, flush=True)

    def _write_event(self, event: Event) -> None:
        told = event_object(event)
        if told is not None:
            self._write(told)

    def _write(self, value: Mapping[str, Any], indent: int | None = None) -> None:
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        if not text.replace(
            "\n", ""
        ).isprintable():  # halves of characters cannot be written, and control characters move the cursor
            text = json.dumps(value, indent=indent)
        print(text, file=self._out, flush=True)

    @staticmethod
    def _shown(text: str, out: TextIO) -> str:
        """A program gets the answer as it is; a terminal gets nothing that moves the cursor."""
        return safe_text(text) if out.isatty() else text.encode("utf-8", "replace").decode()


def event_object(event: Event) -> dict[str, Any] | None:
    """An event as an object; None for one that only a terminal shows."""
    if isinstance(event, TextDelta):
        return {"type": "text", "text": event.text}
    if isinstance(event, ReasoningDelta):
        return {"type": "reasoning", "text": event.text}
    if isinstance(event, CallBegun):
        return {"type": "call", "id": event.call.id, "name": event.call.name, "arguments": event.call.arguments}
    if isinstance(event, CallDone):
        return {"type": "result", **_result(event)}
    if isinstance(event, ReplyDone):
        return {"type": "usage", **vars(event.usage), "seconds": round(event.seconds, 3)}
    return {"type": "notice", "text": event.text} if isinstance(event, Notice) else None


def _result(event: CallDone) -> dict[str, Any]:
    call, observation = event.call, event.observation
    return {
        "id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "text": observation.text,
        "is_error": observation.is_error,
    }
