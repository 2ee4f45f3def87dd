"""Which commands run at once, which the user is asked about, and which never run: judged part by part.

A rule is a pattern of words: `git status` is that command and no other; `npm run *` and `pytest:*` allow any further
words; `*` and `?` within a word stand for letters of one word. `> build/*` is a rule for redirections.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from codemill.agent.never_meant import why_never
from codemill.agent.read_only_commands import is_read_only, sets_only_harmless
from codemill.agent.shell_syntax import parse_command
from codemill.agent.shell_words import CommandPart
from codemill.errors import UsageError

Action = Literal["allow", "ask", "deny"]


@dataclass(frozen=True)
class CommandVerdict:
    """What is to be done with a command, why in one line, and the part that decided; None if all of it is allowed."""

    action: Action
    reason: str = ""
    part: CommandPart | None = None


@dataclass(frozen=True)
class Pattern:
    """A rule's words. is_open: further words may follow."""

    text: str
    words: tuple[str, ...]
    is_open: bool

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Raises UsageError for a pattern without words, or with a quote that is not closed."""
        body, is_open = (text[:-2], True) if text.endswith(":*") else (text, False)
        try:
            words = shlex.split(body)
        except ValueError as error:
            raise UsageError(f"rule {text!r}: {error}") from error
        if len(words) > 1 and words[-1] == "*" and words[0] != ">":
            words, is_open = words[:-1], True
        if not words:
            raise UsageError(f"rule {text!r} is empty: write a command such as 'git status' or 'npm run *'")
        return cls(text, tuple(words), is_open)

    def matches(self, part: CommandPart) -> bool:
        """Whether the part is what the rule says, whatever becomes of words that the shell computes."""
        return self._compare(part, computed_match=False)

    def may_match(self, part: CommandPart) -> bool:
        """Whether it could become that."""
        return self._compare(part, computed_match=True)

    def _compare(self, part: CommandPart, computed_match: bool) -> bool:
        values = part.values if part.kind == "command" else tuple(word.value for word in part.words)
        has_other_length = len(values) < len(self.words) or (len(values) > len(self.words) and not self.is_open)
        may_change = computed_match and any(word.may_be_option for word in part.words)  # become several words, or none
        if has_other_length and not may_change:
            return False
        return all(
            fnmatchcase(value, pattern) if not word.is_computed else computed_match or pattern == "*"
            for word, value, pattern in zip(part.words, values, self.words, strict=False)
        )


class CommandRules:
    """A denial comes before a question, and a question before an allowance; every part must be allowed."""

    def __init__(self, allow: Iterable[str] = (), ask: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        """Patterns, see the module. Raises UsageError for one that cannot be read."""
        self._allow = [Pattern.parse(text) for text in allow]
        self._ask = [Pattern.parse(text) for text in ask]
        self._deny = [Pattern.parse(text) for text in deny]

    def allow(self, pattern: str) -> None:
        """One more rule. Raises UsageError."""
        self._allow.append(Pattern.parse(pattern))

    def judge(self, command: str) -> CommandVerdict:
        """What the rules and what is known of programs say of a command."""
        parts = parse_command(command)
        verdicts = [self._judge(part, command) for part in parts]
        for action in ("deny", "ask"):
            for verdict in verdicts:
                if verdict.action == action:
                    return verdict
        return CommandVerdict("allow")

    def _judge(self, part: CommandPart, command: str) -> CommandVerdict:
        if reason := why_never(part, command):
            return CommandVerdict("deny", f"`{part.text}` {reason}", part)
        if part.kind == "unclear":
            return CommandVerdict("ask", f"not understood: {part.problem}", part)
        for rule in self._deny:
            if rule.matches(part):
                return CommandVerdict("deny", f"`{part.text}` is denied by the rule {rule.text!r}", part)
            if part.words and rule.may_match(part):
                return CommandVerdict("ask", f"`{part.text}` may be what the rule {rule.text!r} denies", part)
        for rule in self._ask:
            if part.words and rule.may_match(part):
                return CommandVerdict("ask", f"the rule {rule.text!r} asks about `{part.text}`", part)
        if is_read_only(part):
            return CommandVerdict("allow")
        return self._by_allowance(part)

    def _by_allowance(self, part: CommandPart) -> CommandVerdict:
        if not sets_only_harmless(part):
            return CommandVerdict("ask", f"`{part.text}` sets {', '.join(part.assigned)}", part)
        if part.words and any(rule.matches(part) for rule in self._allow):
            return CommandVerdict("allow")
        if part.kind == "write":
            return CommandVerdict("ask", f"writes {part.words[1].value}", part)
        return CommandVerdict("ask", f"no rule allows `{part.text}`", part)
