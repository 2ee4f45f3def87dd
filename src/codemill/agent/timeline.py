"""The steps of a session, read from its records: those that count after all that was undone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from codemill.agent.session_file import Record

MAX_SUMMARY = 100
REWINDS = ("undo", "rewind")


@dataclass(frozen=True)
class Step:
    """A request of the user's, or a reply of the model's with the calls that it made.

    number: from 1. position: how many records come before it. snapshot: the files before it changed any, None if it
    changed none.
    """

    number: int
    kind: Literal["user", "model"]
    time: float
    summary: str
    position: int
    snapshot: str | None = None


@dataclass(frozen=True)
class Undoing:
    """An undo that can be taken back. position: of its record. present: the files before it, None if none changed."""

    position: int
    present: str | None


class Timeline:
    """steps: that lead to the present state. undone: what can be redone, the latest last."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.steps: tuple[Step, ...] = ()
        self.undone: tuple[Undoing, ...] = ()
        before: list[tuple[Step, ...]] = []  # for each record, the steps that led to it
        for position, record in enumerate(records):
            before.append(self.steps)
            if is_request(record) or is_reply(record):
                self.steps = (*self.steps, _step(record, position, len(self.steps) + 1))
                self.undone = ()
            elif record["type"] == "snapshot" and record["at"] == "before":
                self._add_snapshot(record["id"])
            elif record["type"] == "replace" and "position" in record:
                self._go_back(record, position, before)

    def _add_snapshot(self, name: str) -> None:
        if self.steps and self.steps[-1].snapshot is None:
            self.steps = (*self.steps[:-1], replace(self.steps[-1], snapshot=name))

    def _go_back(self, record: Record, position: int, before: list[tuple[Step, ...]]) -> None:
        self.steps = before[record["position"]]
        if record["reason"] in REWINDS:
            self.undone = (*self.undone, Undoing(position, record["present"]))
        else:
            self.undone = self.undone[:-1]


def is_request(record: Record) -> bool:
    """Whether the user asked for something here."""
    return record["type"] == "message" and record["message"]["role"] == "user" and not record.get("correction")


def is_reply(record: Record) -> bool:
    """Whether the model said something here."""
    return record["type"] == "message" and record["message"]["role"] == "assistant"


def _step(record: Record, position: int, number: int) -> Step:
    message = record["message"]
    calls = ", ".join(call["function"]["name"] for call in message.get("tool_calls") or ())
    text = " ".join(str(message["content"]).split())
    summary = f"{text[:MAX_SUMMARY]}{' ' if text and calls else ''}{f'[{calls}]' if calls else ''}"
    kind: Literal["user", "model"] = "user" if message["role"] == "user" else "model"
    return Step(number, kind, record["time"], summary, position)
