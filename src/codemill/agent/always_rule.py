"""The rule that the answer "always" makes: as narrow as is still of use.

Further words are left open only after programs that are known to do one kind of work whatever follows. After all
others the rule is the very command, since with other words they might run another program, or write another file:
`find`, `make`, `env`, `xargs`, interpreters, and whatever is not known here.
"""

import glob
import shlex
from collections.abc import Mapping, Sequence

from codemill.agent.command_rules import CommandRules
from codemill.agent.read_only_commands import is_read_only, sets_only_harmless
from codemill.agent.shell_syntax import parse_command
from codemill.agent.shell_words import CommandPart, Word

_LONGEST = 120  # characters; nobody reads what is longer before saying "always"
_NEVER = ("sudo", "doas", "su", "ssh", "pkexec")  # what they do is done with other rights, or elsewhere
# Programs that test, check or format sources. What they run is in the workspace, whatever their arguments are.
_CHECKS = frozenset(
    "pytest py.test tox nox mypy pyright pylint flake8 black isort tsc eslint prettier jest vitest mocha rspec rubocop"
    " phpunit ctest shellcheck gofmt golangci-lint rustfmt mkdir touch".split()
)
# Not those which take a command, a program's name or an address: `git rebase --exec`, `git fetch --upload-pack`.
_SUBCOMMANDS: Mapping[str, frozenset[str]] = {
    "git": frozenset("add commit switch checkout restore stash branch tag mv".split()),
    "npm": frozenset(("test",)),
    "yarn": frozenset(("test", "lint", "build")),
    "pnpm": frozenset(("test", "lint", "build")),
    "cargo": frozenset("build check test clippy fmt doc bench".split()),
    "go": frozenset("fmt mod".split()),
    "ruff": frozenset(("check", "format")),
    "dotnet": frozenset(("build", "test")),
}
# What stands before a command that is judged instead, or before the name of a script of the project.
_RUNNERS = (
    *(("uv", "run"), ("poetry", "run"), ("pipenv", "run"), ("pdm", "run"), ("hatch", "run"), ("bundle", "exec")),
    *(("python", "-m"), ("python3", "-m"), ("npx",)),
)
_SCRIPTS = (("npm", "run"), ("yarn", "run"), ("pnpm", "run"))


def rule_for(command: str) -> str:
    """The rule for a command; empty where there can be none: for more than one part that does something, and for words
    that only the shell knows."""
    parts = [part for part in parse_command(command) if not is_read_only(part)]
    if len(parts) != 1 or parts[0].kind != "command" or not sets_only_harmless(parts[0]):
        return ""
    part = parts[0]
    rule = _open(part) or _exact(part)
    allows = rule and CommandRules(allow=[rule]).judge(command).action == "allow"
    return rule if allows and part.name not in _NEVER and len(rule) <= _LONGEST else ""


def _open(part: CommandPart) -> str:
    """A rule for any further words, or empty."""
    kept = _kept(part.values)
    if not kept or any(not _is_plain(word) for word in part.words[:kept]):
        return ""
    return f"{shlex.join(part.values[:kept])}:*"


def _kept(values: Sequence[str]) -> int:
    """How many words say what kind of work it is; 0 where no number does."""
    for runner in _RUNNERS:
        if tuple(values[: len(runner)]) == runner:
            inner = _kept(values[len(runner) :])
            return len(runner) + inner if inner else 0
    if tuple(values[:2]) in _SCRIPTS:
        return 3 if len(values) > 2 else 0
    if values[:1] and values[0] in _CHECKS:
        return 1
    return 2 if len(values) > 1 and values[1] in _SUBCOMMANDS.get(values[0], ()) else 0


def _is_plain(word: Word) -> bool:
    return not word.is_computed and glob.escape(word.value) == word.value


def _exact(part: CommandPart) -> str:
    if any(word.is_computed or not word.value.isprintable() for word in part.words):
        return ""
    return shlex.join(glob.escape(value) for value in part.values)
