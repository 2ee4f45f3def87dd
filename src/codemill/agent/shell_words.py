"""What a shell command consists of, as far as rules must know it."""

from dataclasses import dataclass
from typing import Literal

SYSTEM_FOLDERS = ("/bin", "/usr/bin", "/usr/local/bin", "/sbin", "/usr/sbin", "/usr/local/sbin")


@dataclass(frozen=True)
class Word:
    """value: without quotes; expansions stand in it as they are written. raw: as it is written.

    is_computed: it has expansions, so that only the shell knows what becomes of it. may_be_option: it could become an
    option, or several words.
    """

    value: str
    raw: str
    is_computed: bool = False
    may_be_option: bool = False


@dataclass(frozen=True)
class CommandPart:
    """command: a program or builtin with its arguments. write: a redirection, `words` being ">" and the file. assign:
    an assignment that stands alone. unclear: something that could not be understood, and `problem` says why.

    assigned: names of variables that are set for it. fed_by: names of the programs before it in its pipeline.
    """

    kind: Literal["command", "write", "assign", "unclear"]
    text: str
    words: tuple[Word, ...] = ()
    assigned: tuple[str, ...] = ()
    fed_by: tuple[str, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """The program: without its folder, if that is one of the system's."""
        return program_name(self.words[0].value) if self.words else ""

    @property
    def values(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return (self.name, *(word.value for word in self.words[1:]))


def program_name(value: str) -> str:
    folder, _, name = value.rpartition("/")
    return name if folder in SYSTEM_FOLDERS else value


class Unclear(Exception):
    """A text that is not understood. The message says why."""
