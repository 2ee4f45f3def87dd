"""What an agent does, as a person reads it: finished parts are printed for good, the present one is shown live."""

import time
from collections.abc import Callable
from typing import Any

from codemill.agent.events import (
    CallBegun,
    CallDelta,
    CallDone,
    CallOutput,
    Event,
    Notice,
    ReasoningDelta,
    ReplyDone,
    TextDelta,
    Waiting,
)
from codemill.agent.terminal.activity import Activity, duration
from codemill.agent.terminal.call_view import INDENT, call_line, done_details, done_note
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.markdown import render_markdown
from codemill.agent.terminal.markdown_blocks import BlockSplitter
from codemill.agent.terminal.safe_text import cut, safe_line, safe_text, wrap
from codemill.agent.terminal.status import Status

LIVE_LINES = 12
REASONING_LINES = 3
MAX_TAIL = 8000  # characters of a running command's output that are looked at
STRIDE = 4000  # characters by which the beginning of a long text is left out, so that lines do not move all the time


class Transcript:
    """Takes events in the thread of the screen. show: prints text for good; columns: gives the window's width."""

    def __init__(self, show: Callable[[str], None], columns: Callable[[], int], ink: Ink, status: Status) -> None:
        self._show, self._columns, self._ink, self._status = show, columns, ink, status
        self.activity: Activity | None = None
        self._blocks = BlockSplitter()
        self._reasoning, self._reasoning_begin = "", 0.0
        self._answer_begin: float | None = None
        self._output = ""
        self._asked = ""  # the tool of the call that the user was just asked about, and what they said
        self._answer = ""
        self._depth = 0  # 1 while a second agent works
        self._gap = False  # whether the last thing printed needs an empty line after it

    @property
    def is_second_agent(self) -> bool:
        """Whether what happens is the work of a second agent."""
        return self._depth > 0

    def begin(self, what: str) -> None:
        """A job begins."""
        self.activity = Activity(what)

    def settle(self) -> None:
        """What is said so far is all: print it."""
        self._end_text()

    def wait(self) -> None:
        """An answer of the user's is on its way."""
        self.activity = Activity("working")

    def end(self) -> None:
        """The task has ended, in whatever way."""
        self._end_text()
        self.activity, self._output, self._asked, self._depth = None, "", "", 0

    def note_asked(self, name: str, answer: str) -> None:
        """A call is shown already, since the user was asked about it. answer: what they said, empty for a refusal."""
        self._asked, self._answer = name, answer

    def take(self, event: Event) -> None:
        """Show an event."""
        takers: dict[type, Callable[[Any], None]] = {
            Waiting: self._take_waiting,
            TextDelta: self._take_text,
            ReasoningDelta: self._take_reasoning,
            CallDelta: self._take_call_delta,
            ReplyDone: self._take_reply,
            CallBegun: self._take_call,
            CallOutput: self._take_output,
            CallDone: self._take_done,
            Notice: self._take_notice,
        }
        takers[type(event)](event)

    def live(self) -> list[str]:
        """The lines of what is not finished."""
        columns = self._columns()
        if self._reasoning:
            lines = wrap(safe_text(_tail(self._reasoning)).strip(), columns - 2)[-REASONING_LINES:]
            return [self._ink(f"  {line}", "dim") for line in lines]
        rest = self._blocks.rest
        if rest.strip():
            return wrap(safe_text(_tail(rest)).strip("\n"), columns)[-LIVE_LINES:]
        lines = [line for line in safe_text(self._output).split("\n") if line.strip()][-LIVE_LINES // 2 :]
        return [self._ink(INDENT + cut(line, columns - len(INDENT)), "dim") for line in lines]

    def show_block(self, text: str) -> None:
        """Print something that stands for itself, with an empty line before it."""
        if text:
            self._show(f"\n{text}")
            self._gap = True

    def show_line(self, text: str) -> None:
        """Print a line that belongs to others of its kind: no empty line between them."""
        self._show(f"\n{text}" if self._gap else text)
        self._gap = False

    def _take_waiting(self, event: Waiting) -> None:
        if self.activity is None or self.activity.what not in ("waiting for the model", "reading the prompt"):
            self.activity = Activity("waiting for the model")
        self.activity = self.activity.read_on(event, time.monotonic())

    def _take_text(self, event: TextDelta) -> None:
        self._end_reasoning()
        self._begin_answer("answering")
        for block in self._blocks.feed(event.text):
            self._show_markdown(block)

    def _take_reasoning(self, event: ReasoningDelta) -> None:
        if not self._reasoning:
            self._reasoning_begin = time.monotonic()
        self._reasoning += event.text
        self._begin_answer("thinking")

    def _take_call_delta(self, event: CallDelta) -> None:
        self._end_reasoning()
        since = self.activity.since if self.activity and self.activity.what.startswith("writing") else time.monotonic()
        self._begin_answer("writing")
        self.activity = Activity(f"writing {safe_line(event.name)}, {event.num_characters:,} characters", since)

    def _take_reply(self, event: ReplyDone) -> None:
        self._end_text()
        begin = self._answer_begin
        self._answer_begin = None
        self._status.add(event.usage, event.seconds, time.monotonic() - begin if begin is not None else 0.0)
        self.activity = Activity("waiting for the model")

    def _take_call(self, event: CallBegun) -> None:
        self._output = ""
        if event.call.name == "task":
            self.show_line(call_line(event.call, self._columns(), self._ink, "a second agent begins"))
            self._depth = 1
        self.activity = Activity(f"running {safe_line(event.call.name)}")

    def _take_output(self, event: CallOutput) -> None:
        self._output = (self._output + event.text)[-MAX_TAIL:]

    def _take_done(self, event: CallDone) -> None:
        self._output = ""
        self.activity = Activity("waiting for the model")
        if event.call.name == "task":
            self._depth = 0
        columns, failed = self._columns(), event.observation.is_error
        was_asked, self._asked = self._asked == event.call.name, ""
        note = done_note(event)
        if was_asked and not self._answer:
            return
        if was_asked:
            line = " · ".join(part for part in (self._answer, safe_line(note)) if part)
            self._show(self._ink(INDENT + cut(line, columns - len(INDENT)), "red" if failed else "dim"))
        else:
            self.show_line(call_line(event.call, columns, self._ink, note, failed=failed, depth=self._depth))
        details = done_details(event, columns, self._ink, with_diff=not was_asked)
        if details:
            self._show(details)
            self._gap = True

    def _take_notice(self, event: Notice) -> None:
        self._end_text()
        self.show_line(self._ink(f"  {safe_line(event.text)}", "yellow"))

    def _begin_answer(self, what: str) -> None:
        if self._answer_begin is None:
            self._answer_begin = time.monotonic()
        if self.activity is None or self.activity.what != what:
            self.activity = Activity(what)

    def _end_reasoning(self) -> None:
        if self._reasoning.strip():
            words = len(self._reasoning.split())
            seconds = duration(time.monotonic() - self._reasoning_begin)
            self.show_line(self._ink(f"  thought for {seconds}, {words:,} word{'' if words == 1 else 's'}", "dim"))
        self._reasoning = ""

    def _end_text(self) -> None:
        self._end_reasoning()
        for block in self._blocks.finish():
            self._show_markdown(block)

    def _show_markdown(self, block: str) -> None:
        self.show_block(render_markdown(safe_text(block), self._columns(), self._ink))


def _tail(text: str) -> str:
    """The end of a text, which is all that is shown of it while it is written."""
    begin = len(text) // STRIDE * STRIDE - STRIDE
    return text if begin <= 0 else text[begin:]
