"""How much an agent may spend, and what it has spent."""

import time
from dataclasses import dataclass

from codemill.agent.model import Usage
from codemill.agent.stops import BudgetSpent
from codemill.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """Limits of one run; None for no limit. tokens: of all prompts and answers, what was cached not counted."""

    steps: int | None = 100
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"a budget of {value:g} {name}: must be above 0")


class Spending:
    """What one run has spent."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._begin = time.monotonic()
        self.steps = 0
        self.tokens = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def check(self) -> None:
        """Raise BudgetSpent if there is nothing left for another step."""
        for name in ("steps", "tokens", "seconds"):
            limit, spent = getattr(self._budget, name), getattr(self, name)
            if limit is not None and spent >= limit:
                raise BudgetSpent(f"stopped after {spent:.0f} {name}, of {limit:g} allowed")

    def check_seconds(self) -> None:
        """Raise BudgetSpent if the time is over; a step that has begun may still be ended otherwise."""
        limit = self._budget.seconds
        if limit is not None and self.seconds >= limit:
            raise BudgetSpent(f"stopped after {self.seconds:.0f} seconds, of {limit:g} allowed")

    def add(self, usage: Usage) -> None:
        """A step was made."""
        self.steps += 1
        self.tokens += usage.total_tokens - usage.cached_tokens

    def add_work(self, steps: int, tokens: int) -> None:
        """A second agent spent this."""
        self.steps += steps
        self.tokens += tokens

    def left(self) -> Budget:
        """What a second agent may spend. Raises BudgetSpent if that is nothing."""
        self.check()
        limits = ((name, getattr(self._budget, name)) for name in ("steps", "tokens", "seconds"))
        # The clock may have gone on since the check.
        left = {name: None if limit is None else max(limit - getattr(self, name), 1e-3) for name, limit in limits}
        return Budget(**left)
