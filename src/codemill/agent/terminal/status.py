"""The line at the very bottom: mode, model, context, speed."""

from dataclasses import dataclass, field

from codemill.agent.model import Usage
from codemill.agent.terminal.safe_text import safe_line, width

GAP = " · "


@dataclass
class Status:
    """What is known. context_tokens: of the conversation, of context_length, None where that is not known.

    tokens_per_second: of the last answer, what came before its first token not counted.
    """

    mode: str = "default"
    model: str = ""
    context_tokens: int = 0
    context_length: int | None = None
    tokens_per_second: float = 0.0
    usage: Usage = field(default_factory=Usage)
    steps: int = 0
    num_processes: int = 0
    total_prompt_tokens: int = 0
    total_cached_tokens: int = 0
    total_answer_tokens: int = 0
    model_seconds: float = 0.0

    def add(self, usage: Usage, seconds: float, answer_seconds: float) -> None:
        """A reply is done. answer_seconds: from its first token on."""
        self.usage = usage
        self.steps += 1
        self.total_prompt_tokens += usage.prompt_tokens
        self.total_cached_tokens += usage.cached_tokens
        self.total_answer_tokens += usage.completion_tokens
        self.model_seconds += seconds
        if answer_seconds > 0.05 and usage.completion_tokens > 1:
            self.tokens_per_second = usage.completion_tokens / answer_seconds

    def line(self, columns: int) -> str:
        """As many parts as fit, the most important first."""
        shown = ""
        for part in self._parts():
            longer = f"{shown}{GAP}{part}" if shown else part
            if width(longer) <= columns:
                shown = longer
        return shown

    def _parts(self) -> list[str]:
        parts = [self.mode, self._context(), safe_line(self.model)]
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:.{1 if self.tokens_per_second < 10 else 0}f} tokens/s")
        if self.usage.cached_tokens:
            parts.append(f"{100 * self.usage.cached_tokens // max(1, self.usage.prompt_tokens)} % cached")
        if self.steps:
            parts.append(f"{self.steps} step{'' if self.steps == 1 else 's'}")
        if self.num_processes:
            parts.append(f"{self.num_processes} in the background")
        return [part for part in parts if part]

    def _context(self) -> str:
        if not self.context_tokens:
            return ""
        if not self.context_length:
            return f"{self.context_tokens:,} tokens"
        return f"{self.context_tokens:,} tokens, {100 * self.context_tokens // self.context_length} %"
