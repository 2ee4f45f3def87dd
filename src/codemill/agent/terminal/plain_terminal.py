"""The terminal where there are no control sequences (TERM=dumb): lines in, lines out."""

import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from codemill.agent.approval import ApprovalRequest, Decision
from codemill.agent.stops import Interrupted
from codemill.agent.terminal.commands import EXIT, find_command
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.mentions import expand_mentions
from codemill.agent.terminal.plain_voice import COLUMNS, PlainVoice
from codemill.agent.terminal.question_view import QuestionView
from codemill.agent.terminal.questions import Question
from codemill.agent.terminal.session_commands import show_where_it_was
from codemill.agent.terminal.shell_line import run_command
from codemill.agent.terminal.work import Job, Work
from codemill.errors import CodemillError

if TYPE_CHECKING:
    from codemill.agent.model import Model
    from codemill.agent.session import Session
    from codemill.agent.session_store import SessionStore
    from codemill.agent.workbench import AgentOptions

HELP = "/help shows the commands, Ctrl-C stops the agent, /exit ends."
WORDS = {"y": "once", "yes": "once", "a": "always", "n": "no", "no": "no", "s": "stop"}


class PlainTerminal:
    """Asks and answers in turns; nothing can be typed ahead."""

    def __init__(self, options: "AgentOptions", model: "Model", session: "Session", store: "SessionStore") -> None:
        self._ink = Ink(plain=True)
        self._voice = PlainVoice(self._ink)
        self._work = Work(options, model, session, store, self, self._voice)

    def run(self) -> int:
        """Until the user ends it -> the exit status."""
        try:
            self._work.switch(self._work.session)
            print(HELP)
            if self._work.session.requests:
                self._do(Job("", lambda: show_where_it_was(self._work)))
            while (text := _read("> ")) is not None and text.strip() not in EXIT:
                with suppress(KeyboardInterrupt):
                    self._take(text.strip())
        finally:
            self._work.close(0.0)
        return 0

    def ask(self, request: ApprovalRequest, cancel: threading.Event) -> Decision:
        """An Approver: a letter and Enter; any other words are a no with these words."""
        view = QuestionView(self._ink)
        question = Question(request)
        print(view.preview(question, COLUMNS, None))
        print("\n".join(line.replace("Esc", "s  ") for line in view.choices(question, COLUMNS, False)))
        answer = _read("y/n? ")
        if answer is None or cancel.is_set():
            raise Interrupted("stopped")
        word = WORDS.get(answer.strip().lower(), "")
        if word == "always" and not question.can_always:
            word = "once"
        return Decision(word) if word else Decision("no", answer.strip())  # type: ignore[arg-type]

    def _take(self, text: str) -> None:
        try:
            if text.startswith("/") and "/" not in text.split()[0][1:]:
                command, argument = find_command(text)
                self._do(Job(text, lambda: command.do(self._work, argument)))
            elif text.startswith("!") and text[1:].strip():
                self._do(Job(text, lambda: run_command(self._work, text[1:].strip())))
            elif text:
                self._do(Job(text, lambda: self._run_task(text)))
        except CodemillError as error:
            self._voice.error(str(error))

    def _run_task(self, text: str) -> None:
        expanded = expand_mentions(text, self._work.bench.workspace)
        for problem in expanded.problems:
            self._voice.error(problem)
        self._work.run_task(expanded.text)

    def _do(self, job: Job) -> None:
        """Ctrl-C stops it."""
        before = signal.signal(signal.SIGINT, lambda *_: self._work.stop())
        try:
            self._work.do(job)
        finally:
            signal.signal(signal.SIGINT, before)


def _read(prompt: str) -> str | None:
    """A line; None at the end of the input."""
    while True:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
