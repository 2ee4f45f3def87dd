"""The ways in which an agent's work ends. They are raised where it ends, and caught in one place: `Agent.run`."""

from typing import Literal

from codemill.errors import CodemillError

Status = Literal["finished", "interrupted", "budget", "loop", "refused", "failed"]


class Stop(Exception):
    """The work ends. `message` is one line for the user."""

    status: Status = "failed"

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class Finished(Stop):
    """The model answered without asking for a tool; the message is its answer."""

    status = "finished"


class Interrupted(Stop):
    """The user stopped it."""

    status = "interrupted"


class BudgetSpent(Stop):
    """A limit of steps, tokens or time is reached."""

    status = "budget"


class LoopFound(Stop):
    """The model does the same again and again, although it was told."""

    status = "loop"


class Refused(Stop):
    """The user said no, and that the work shall end."""

    status = "refused"


class ContextTooLong(CodemillError):
    """The conversation does not fit the model's context. Lengths in tokens, None where they are not known."""

    def __init__(self, message: str, num_tokens: int | None = None, context_length: int | None = None) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens
        self.context_length = context_length
