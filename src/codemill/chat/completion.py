"""Completion at a cursor in a file: what stands before and after it, and what of the repository helps.

The prompt is fill-in-the-middle, inside the repository form if other files are given. See `prompts` for both.
"""

import io
from dataclasses import dataclass
from pathlib import Path

from codemill.chat.prompts import fim_ids, repository_ids
from codemill.chat.repository import RepositoryFiles
from codemill.chat.tokenizer import Tokenizer
from codemill.errors import UsageError

# Of a window, this share lies before the cursor: what precedes code says more about it than what follows.
_PREFIX_SHARE = 0.75
_MOST_CANDIDATES = 100


@dataclass(frozen=True)
class Cursor:
    """A place in a text file: all text before it and all text after it."""

    path: Path
    prefix: str
    suffix: str

    @classmethod
    def at(cls, path: Path, line: int | None = None, column: int | None = None) -> "Cursor":
        """Before column `column` of line `line` (both from 1), by default at the line's or the file's end.

        Raises UsageError for a file that cannot be read as text and for a place outside it.
        """
        text = read_text(path)
        if line is None:
            return cls(path, text, "")
        lines = list(io.StringIO(text, newline=""))  # not splitlines, which also cuts at form feeds
        if not lines or lines[-1].endswith(("\n", "\r")):
            lines.append("")  # the empty line after the last newline, where an editor's cursor may stand
        if not 1 <= line <= len(lines):
            raise UsageError(f"{path} has {len(lines)} lines, there is no line {line}")
        content = lines[line - 1].rstrip("\r\n")
        column = len(content) + 1 if column is None else column
        if not 1 <= column <= len(content) + 1:
            raise UsageError(f"line {line} of {path} has columns 1 to {len(content) + 1}, there is no column {column}")
        offset = sum(map(len, lines[: line - 1])) + column - 1
        return cls(path, text[:offset], text[offset:])


@dataclass(frozen=True)
class CompletionPrompt:
    """Ids of the prompt, the other files in it, and how many tokens of the file itself were left out."""

    token_ids: list[int]
    context_paths: tuple[str, ...] = ()
    dropped_tokens: int = 0


def completion_prompt(
    tokenizer: Tokenizer, cursor: Cursor, budget: int, repo: Path | None = None, window: bool = False
) -> CompletionPrompt:
    """The prompt for `cursor` in at most `budget` tokens.

    Related files of `repo` fill what the file itself leaves, the most related nearest to it. A file that does not fit
    alone raises UsageError, or is cut to what surrounds the cursor if `window` is set.
    """
    if not cursor.prefix and not cursor.suffix:
        raise UsageError(f"{cursor.path} is empty: there is nothing to complete")
    prefix, suffix, dropped = cursor.prefix, cursor.suffix, 0
    ids = fim_ids(tokenizer, prefix, suffix)
    if len(ids) > budget:
        if not window:
            raise UsageError(
                f"{cursor.path} takes {len(ids)} tokens of the {budget} that the context leaves for a prompt: "
                "add --window to use only what surrounds the cursor"
            )
        prefix, suffix = surroundings(tokenizer, prefix, suffix, budget)
        full, ids = len(ids), fim_ids(tokenizer, prefix, suffix)
        dropped = full - len(ids)
    if repo is None or dropped:
        return CompletionPrompt(ids, (), dropped)
    return _with_repository(tokenizer, cursor, budget, repo, ids)


def surroundings(tokenizer: Tokenizer, prefix: str, suffix: str, budget: int) -> tuple[str, str]:
    """The end of the prefix and the start of the suffix that fit into a prompt of so many tokens.

    What one side does not need the other gets. A character that the cut would break is left out. Raises UsageError if
    there is no room for either.
    """
    before, after = tokenizer.encode(prefix), tokenizer.encode(suffix)
    room = budget - len(fim_ids(tokenizer, "", "")) - 8  # a text cut inside a token may encode to a few more
    if room < 1:
        raise UsageError(f"a prompt of {budget} tokens is too short for a window: allow a longer context")
    num_after = min(len(after), max(room - len(before), int(room * (1 - _PREFIX_SHARE))))
    num_before = min(len(before), room - num_after)
    prefix, suffix = tokenizer.decode(before[len(before) - num_before :]), tokenizer.decode(after[:num_after])
    return prefix.lstrip("\ufffd"), suffix.rstrip("\ufffd")


def _with_repository(
    tokenizer: Tokenizer, cursor: Cursor, budget: int, repo: Path, alone: list[int]
) -> CompletionPrompt:
    files = RepositoryFiles.scan(repo)
    path = files.relative(cursor.path)
    room = budget - len(fim_ids(tokenizer, cursor.prefix, cursor.suffix, files.name, (), path))
    chosen: list[tuple[str, str]] = []
    for other in files.related(path, cursor.prefix + cursor.suffix)[:_MOST_CANDIDATES]:
        content = files.read(other)
        if not content.strip():
            continue
        cost = len(repository_ids(tokenizer, files.name, [(other, content)]))
        if cost <= room:
            chosen.insert(0, (other, content))  # the most related stands last, next to the cursor
            room -= cost
    if not chosen:
        return CompletionPrompt(alone)
    ids = fim_ids(tokenizer, cursor.prefix, cursor.suffix, files.name, chosen, path)
    return CompletionPrompt(ids, tuple(name for name, _ in chosen))


def read_text(path: Path) -> str:
    """A file's text with its line ends as they are. Raises UsageError for a binary file or one that is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text") from None
    if "\0" in text:
        raise UsageError(f"{path} is a binary file")
    return text
