"""Finds an agent that goes round in circles."""

from codemill.agent.stops import LoopFound
from codemill.agent.tool import Observation
from codemill.chat.tool_types import ToolCall

TIMES = 3  # so often the same is a circle
TIMES_WAITING = 20  # where each time something had time to change
MEMORY = 12  # calls that are looked back on

WARNING = (
    "\n\n[You have made this same call {times} times with the same result. It will not change: do something else, or "
    "say what is in the way. Another repetition ends the work.]"
)


class RepetitionGuard:
    """Looks at each call and what it gave: the same call with the same result, or the same error of whatever call.

    Asking again and again how something in the background gets on is work, if time passes in between: then more is
    allowed.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[str, str]] = []
        self._errors: list[str] = []
        self._waits: list[tuple[str, str]] = []
        self._warned: set[tuple[str, str] | str] = set()

    def note(self, call: ToolCall, observation: Observation) -> str:
        """What to add to the observation: a warning, the first time. Raises LoopFound when that did not help."""
        key = (f"{call.name} {call.arguments_json}", observation.text)
        if observation.has_waited:
            self._waits = [*self._waits, key][-TIMES_WAITING:]
            return self._warn(key, call.name, TIMES_WAITING) if self._waits.count(key) >= TIMES_WAITING else ""
        self._calls = [*self._calls, key][-MEMORY:]
        if self._calls.count(key) >= TIMES:
            return self._warn(key, call.name)
        if not observation.is_error:
            self._errors.clear()
            return ""
        self._errors = [*self._errors, observation.text][-MEMORY:]
        if self._errors.count(observation.text) >= TIMES:
            return self._warn(observation.text, call.name)
        return ""

    def _warn(self, key: tuple[str, str] | str, name: str, times: int = TIMES) -> str:
        if key in self._warned:
            raise LoopFound(f"stopped: {name} was called again and again with the same result")
        self._warned.add(key)
        return WARNING.format(times=times)
