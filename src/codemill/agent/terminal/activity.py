"""What the agent is doing at this moment, in one line."""

import time
from dataclasses import dataclass, field, replace

from codemill.agent.events import Waiting

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_SECONDS = 0.1


@dataclass(frozen=True)
class PromptProgress:
    """How far the model has read. begin_computed, begin: where and when that was first told."""

    num_computed: int
    num_prompt_tokens: int
    begin_computed: int
    begin: float

    def describe(self, now: float) -> str:
        """Tokens, per cent, and an estimate of the time left."""
        share = 100 * self.num_computed // max(1, self.num_prompt_tokens)
        text = f"{self.num_computed:,} of {self.num_prompt_tokens:,} tokens, {share} %"
        done, seconds = self.num_computed - self.begin_computed, now - self.begin
        if done <= 0 or seconds < 1:
            return text
        left = (self.num_prompt_tokens - self.num_computed) * seconds / done
        return f"{text}, about {duration(left)} more"


@dataclass(frozen=True)
class Activity:
    """what: in words. since: when it began, by the monotonic clock."""

    what: str
    since: float = field(default_factory=time.monotonic)
    progress: PromptProgress | None = None

    def line(self, now: float) -> str:
        """With a sign that moves, and the seconds."""
        frame = FRAMES[int(now / FRAME_SECONDS) % len(FRAMES)]
        progress = f" · {self.progress.describe(now)}" if self.progress is not None else ""
        return f"{frame} {self.what}{progress} · {duration(now - self.since)}"

    def read_on(self, event: Waiting, now: float) -> "Activity":
        """The model has read more of the prompt."""
        if event.num_computed is None or not event.num_prompt_tokens:
            return self
        before = self.progress
        if before is None or before.num_prompt_tokens != event.num_prompt_tokens:
            before = PromptProgress(event.num_computed, event.num_prompt_tokens, event.num_computed, now)
        return replace(self, what="reading the prompt", progress=replace(before, num_computed=event.num_computed))


def duration(seconds: float) -> str:
    """`8 s`, `2 min 5 s`, `1 h 20 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
