"""The terminal where there are no control sequences (TERM=dumb): lines in, lines out."""

import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from codemill.agent.approval import ApprovalRequest, Decision
from codemill.agent.events import CallDone, Event, Notice, ReplyDone, TextDelta
from codemill.agent.stops import Interrupted
from codemill.agent.terminal.call_view import call_line, done_details, done_note
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.mentions import expand_mentions
from codemill.agent.terminal.question_view import QuestionView
from codemill.agent.terminal.questions import Question
from codemill.agent.terminal.safe_text import safe_text
from codemill.errors import CodemillError

if TYPE_CHECKING:
    from codemill.agent.model import Model
    from codemill.agent.session import Session
    from codemill.agent.session_store import SessionStore
    from codemill.agent.workbench import AgentOptions, Workbench

COLUMNS = 78
HELP = "Ctrl-C stops the agent, /undo takes the last request back, /exit ends."
WORDS = {"y": "once", "yes": "once", "a": "always", "n": "no", "no": "no", "s": "stop"}


class PlainTerminal:
    """Asks and answers in turns; nothing can be typed ahead."""

    def __init__(self, options: "AgentOptions", model: "Model", session: "Session", store: "SessionStore") -> None:
        self._options, self._model, self._session, self._store = options, model, session, store
        self._ink = Ink(plain=True)

    def run(self) -> int:
        """Until the user ends it -> the exit status."""
        from codemill.agent.workbench import Workbench

        folder = self._store.snapshots_folder
        with Workbench(self._options, self._model, self._session, self, self._listen, folder) as bench:
            print(HELP)
            while (text := _read("> ")) is not None and text.strip() not in ("/exit", "/quit"):
                with suppress(KeyboardInterrupt):
                    self._take(text.strip(), bench)
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

    def _take(self, text: str, bench: "Workbench") -> None:
        try:
            if text == "/undo":
                done = bench.history.undo(keep=bench.history.plan_undo().foreign)
                print(f"{done.num_steps} steps undone")
            elif text.startswith("/"):
                print(HELP)
            elif text:
                self._run(text, bench)
        except CodemillError as error:
            print(f"codemill: error: {safe_text(str(error))}", file=sys.stderr)

    def _run(self, text: str, bench: "Workbench") -> None:
        expanded = expand_mentions(text, bench.workspace)
        for problem in expanded.problems:
            print(problem)
        bench.cancel.clear()
        before = signal.signal(signal.SIGINT, lambda *_: bench.cancel.set())
        try:
            outcome = bench.agent.run(expanded.text)
        finally:
            signal.signal(signal.SIGINT, before)
        if outcome.status != "finished":
            print(f"\n[{safe_text(outcome.text)}]")

    def _listen(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            print(safe_text(event.text), end="", flush=True)
        elif isinstance(event, ReplyDone):
            print()
        elif isinstance(event, CallDone):
            failed = event.observation.is_error
            print(call_line(event.call, COLUMNS, self._ink, done_note(event), failed=failed))
            print(done_details(event, COLUMNS, self._ink))
        elif isinstance(event, Notice):
            print(f"[{safe_text(event.text)}]")


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
