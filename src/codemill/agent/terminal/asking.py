"""The question that is open: it takes the keys until it is answered, and what was typed waits."""

import time

from codemill.agent.approval import Decision
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.prompt_line import PromptLine
from codemill.agent.terminal.question_view import QuestionView
from codemill.agent.terminal.questions import Question, Questions
from codemill.agent.terminal.safe_text import cut, safe_line
from codemill.agent.terminal.screen import Screen
from codemill.agent.terminal.transcript import Transcript

MAX_WORDS = 20_000
ROWS = 14  # that the keys and the prompt line take


class Asking:
    """At most one question is open at a time; all but `approver` happens in the screen's thread."""

    def __init__(self, screen: Screen, transcript: Transcript, line: PromptLine, ink: Ink) -> None:
        self.question: Question | None = None
        self.approver = Questions(lambda question: screen.post(self._ask, question), lambda: screen.post(self.withdraw))
        self._screen, self._transcript, self._line, self._ink = screen, transcript, line, ink
        self._view = QuestionView(ink)
        self._is_folded = False

    @property
    def wants_key(self) -> bool:
        """Whether a single key is the answer."""
        return self.question is not None and not self.question.is_writing

    @property
    def prompt(self) -> str:
        """What the prompt line asks for, if it is the reason of a refusal."""
        return "why not? " if self.question is not None and self.question.is_writing else ""

    def choices(self, columns: int) -> list[str]:
        """The open question with its keys."""
        assert self.question is not None
        return self._view.choices(self.question, columns, self._is_folded)

    def answer(self, key: str) -> None:
        """A key was pressed; most mean nothing."""
        question = self.question
        if question is None or question.is_deaf:
            return
        if key == "y":
            self._decide(Decision("once"), "allowed")
        elif key == "a" and question.can_always:
            self._decide(Decision("always"), f"allowed, and from now on {question.request.remember}")
        elif key == "n":
            self._decide(Decision("no"), "refused")
        elif key == "e":
            question.is_writing = True
        elif key == "d" and self._is_folded:
            self._is_folded = False
            self._transcript.show_block(self._view.preview(question, self._screen.columns, None))

    def refuse(self, words: str) -> None:
        """No, and what to do instead."""
        if words.strip():
            self._decide(Decision("no", words[:MAX_WORDS]), f"refused: {words}")

    def go_back(self) -> bool:
        """Leave the words for a refusal, and ask for a key again; whether there was that to leave."""
        if self.question is None or not self.question.is_writing:
            return False
        self.question.is_writing = False
        self._line.clear()
        return True

    def stop(self) -> bool:
        """The work shall end; whether a question was open."""
        if self.question is None:
            return False
        self._decide(Decision("stop"), "stopped")
        return True

    def withdraw(self) -> None:
        """It needs no answer any more."""
        if self.question is not None:
            self.question = None
            self._line.take_up()

    def _ask(self, question: Question) -> None:
        question.is_second_agent = self._transcript.is_second_agent
        room = max(6, self._screen.rows - ROWS)
        self._is_folded = self._view.is_folded(question, room)
        self._line.set_aside()
        self.question, question.asked = question, time.monotonic()
        self._transcript.activity = None
        self._transcript.show_block(self._view.preview(question, self._screen.columns, room))

    def _decide(self, decision: Decision, shown: str) -> None:
        assert self.question is not None
        question, self.question = self.question, None
        is_allowed = decision.answer in ("once", "always")
        if decision.answer == "no":
            self._screen.show(self._ink(f"    {cut(safe_line(shown), self._screen.columns - 4)}", "yellow"))
        self._transcript.note_asked(question.request.call.name, safe_line(shown) if is_allowed else "")
        self._line.take_up()
        self._transcript.wait()
        question.answer(decision)
