"""How the work reaches a terminal without control sequences: it is printed as it comes."""

import sys

from codemill.agent.events import CallDone, Event, Notice, ReplyDone, TextDelta
from codemill.agent.terminal.call_view import call_line, done_details, done_note
from codemill.agent.terminal.diff_view import render_diff
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.safe_text import safe_line, safe_text
from codemill.agent.terminal.status import Status
from codemill.agent.terminal.work import Job

COLUMNS = 78
KEYS = """\
- `Ctrl-C` stops the agent, and the session stays; `/exit` or `Ctrl-D` ends
- `@path` adds a file or a folder's list to the message; `!command` runs a command in the sandbox"""


class PlainVoice:
    """A Voice."""

    def __init__(self, ink: Ink) -> None:
        self.status, self.keys = Status(), KEYS
        self._ink = ink

    def event(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            print(safe_text(event.text), end="", flush=True)
        elif isinstance(event, ReplyDone):
            self.status.add(event.usage, event.seconds, 0.0)
            print()
        elif isinstance(event, CallDone):
            failed = event.observation.is_error
            print(call_line(event.call, COLUMNS, self._ink, done_note(event), failed=failed))
            print(done_details(event, COLUMNS, self._ink))
        elif isinstance(event, Notice):
            self.note(event.text)

    def begin(self, job: Job) -> None:
        """What was typed stands there already."""

    def end(self) -> None:
        sys.stdout.flush()

    def say(self, text: str) -> None:
        print(safe_text(text))

    def diff(self, name: str, verb: str, diff: str) -> None:
        print(f"{safe_line(name)} {verb}")
        print(render_diff(diff, COLUMNS, self._ink, None, cut_lines=False))

    def note(self, text: str) -> None:
        print(f"[{safe_text(text)}]")

    def error(self, text: str) -> None:
        print(f"codemill: error: {safe_text(text)}", file=sys.stderr, flush=True)

    def prefill(self, text: str) -> None:
        print(f"The request was:\n{safe_text(text)}")

    def measured(self, context_tokens: int, num_processes: int) -> None:
        self.status.context_tokens, self.status.num_processes = context_tokens, num_processes

    def opened(self, model: str, context_length: int | None) -> None:
        self.status.model, self.status.context_length = model, context_length

    def failed(self, error: BaseException) -> None:
        raise error
