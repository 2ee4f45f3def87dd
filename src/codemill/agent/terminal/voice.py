"""How the work reaches the screen: each call is made in the agent's thread and carried out in the screen's."""

from collections.abc import Callable

from codemill.agent.events import Event
from codemill.agent.terminal.call_view import MARK
from codemill.agent.terminal.diff_view import render_diff
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.markdown import render_document
from codemill.agent.terminal.safe_text import safe_line, safe_text, wrap
from codemill.agent.terminal.screen import Screen
from codemill.agent.terminal.status import Status
from codemill.agent.terminal.transcript import Transcript
from codemill.agent.terminal.work import Job


class ScreenVoice:
    """A Voice. keys: what keys do. on_end: called when a job has ended; on_prefill: with a text for the prompt line."""

    def __init__(
        self,
        screen: Screen,
        transcript: Transcript,
        status: Status,
        ink: Ink,
        *,
        keys: str,
        on_end: Callable[[], None],
        on_prefill: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.status, self.keys = status, keys
        self._screen, self._transcript, self._ink = screen, transcript, ink
        self._on_end, self._on_prefill, self._on_failure = on_end, on_prefill, on_failure

    def event(self, event: Event) -> None:
        self._screen.post(self._transcript.take, event)

    def begin(self, job: Job) -> None:
        self._screen.post(self._begin, job)

    def end(self) -> None:
        self._screen.post(self._end)

    def say(self, text: str) -> None:
        shown = render_document(safe_text(text), self._screen.columns, self._ink)
        self._screen.post(self._transcript.show_block, shown)

    def diff(self, name: str, verb: str, diff: str) -> None:
        heading = f"{self._ink(MARK, 'cyan')} {self._ink(safe_line(name), 'bold')} {self._ink(verb, 'dim')}"
        body = render_diff(diff, self._screen.columns, self._ink, None, cut_lines=False)
        self._screen.post(self._transcript.show_block, f"{heading}\n{body}" if body else heading)

    def note(self, text: str) -> None:
        self._screen.post(self._transcript.show_block, self._remark(text, "dim"))

    def error(self, text: str) -> None:
        self._screen.post(self._transcript.settle)
        self._screen.post(self._transcript.show_block, self._remark(text, "red"))

    def prefill(self, text: str) -> None:
        self._screen.post(self._on_prefill, text)

    def measured(self, context_tokens: int, num_processes: int) -> None:
        self.status.context_tokens, self.status.num_processes = context_tokens, num_processes

    def opened(self, model: str, context_length: int | None) -> None:
        self.status.model, self.status.context_length = model, context_length

    def failed(self, error: BaseException) -> None:
        self._screen.post(self._on_failure, error)

    def _remark(self, text: str, style: str) -> str:
        lines = wrap(safe_line(text), self._screen.columns - 2)
        return self._ink("\n".join(f"  {line}" for line in lines), style)

    def _begin(self, job: Job) -> None:
        if job.text:
            self._transcript.show_block(self.echo(job.text))
        self._transcript.begin(job.what)

    def _end(self) -> None:
        self._transcript.end()
        self._on_end()

    def echo(self, text: str) -> str:
        """What the user typed, as it stands above."""
        first, *more = wrap(safe_text(text), self._screen.columns - 2)
        hidden = len(more) - 20
        more = more[:20] if hidden > 0 else more
        lines = [self._ink("> ", "cyan") + self._ink(first, "bold"), *(f"  {self._ink(line, 'bold')}" for line in more)]
        return "\n".join([*lines, *([self._ink(f"  … {hidden} more lines", "dim")] if hidden > 0 else [])])
