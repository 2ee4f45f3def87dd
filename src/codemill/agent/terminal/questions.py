"""Asks the user whether a call may be made. The agent's thread waits here while the screen goes on."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from codemill.agent.approval import ApprovalRequest, Decision
from codemill.agent.stops import Interrupted

# A key that was meant for the prompt line must not approve anything: the first moment is deaf.
DEAF_SECONDS = 0.5


@dataclass
class Question:
    """One that is open. words: whether the user is writing why not."""

    request: ApprovalRequest
    is_second_agent: bool = False
    asked: float = field(default_factory=time.monotonic)
    is_writing: bool = False
    decision: Decision | None = None
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def is_plan(self) -> bool:
        return self.request.call.name == "exit_plan_mode"

    @property
    def is_deaf(self) -> bool:
        """Whether it was only just asked."""
        return time.monotonic() - self.asked < DEAF_SECONDS

    @property
    def can_always(self) -> bool:
        return bool(self.request.remember)

    def answer(self, decision: Decision) -> None:
        """Let the agent go on."""
        self.decision = decision
        self.answered.set()


class Questions:
    """An Approver. show: is given each question, in the agent's thread."""

    def __init__(self, show: Callable[[Question], None], withdraw: Callable[[], None]) -> None:
        self._show, self._withdraw = show, withdraw

    def ask(self, request: ApprovalRequest, cancel: threading.Event) -> Decision:
        """Wait for the answer. Raises Interrupted once `cancel` is set."""
        question = Question(request)
        self._show(question)
        while not question.answered.wait(0.05):
            if cancel.is_set():
                self._withdraw()
                raise Interrupted("stopped")
        assert question.decision is not None
        return question.decision
