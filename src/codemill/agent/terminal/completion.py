"""Completes slash commands and `@path`."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

MAX_PATHS = 50
FRESH_SECONDS = 5.0  # so long a list of files is not made anew


class PromptCompleter(Completer):
    """commands: (name, what it does). files: gives the paths of the workspace, which may take a while."""

    def __init__(self, commands: Sequence[tuple[str, str]], files: Callable[[], Sequence[str]]) -> None:
        self._commands = commands
        self._files = files
        self._paths: Sequence[str] = ()
        self._read = float("-inf")

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        if before.startswith("/") and not any(character.isspace() for character in before):
            yield from self._complete_command(before)
            return
        word = before[max(before.rfind(" "), before.rfind("\n")) + 1 :]
        if word.startswith("@"):
            yield from self._complete_path(word[1:])

    def _complete_command(self, typed: str) -> Iterable[Completion]:
        for name, help_text in self._commands:
            if name.startswith(typed):
                yield Completion(name, -len(typed), display_meta=help_text)

    def _complete_path(self, typed: str) -> Iterable[Completion]:
        for path in match_paths(self._listed(), typed)[:MAX_PATHS]:
            yield Completion(f'@"{path}"' if " " in path else f"@{path}", -len(typed) - 1, display=path)

    def _listed(self) -> Sequence[str]:
        if time.monotonic() - self._read > FRESH_SECONDS:
            self._paths, self._read = self._files(), time.monotonic()
        return self._paths


def match_paths(paths: Sequence[str], typed: str) -> list[str]:
    """Paths that begin with what was typed, then those whose name does, then those that contain it."""
    wanted = typed.lower()
    ranked = [(rank, path) for path in paths if (rank := _rank(path, wanted)) is not None]
    return [path for _, path in sorted(ranked, key=lambda found: (found[0], found[1].count("/"), found[1]))]


def _rank(path: str, wanted: str) -> int | None:
    lower = path.lower()
    if lower.startswith(wanted):
        return 0
    if lower.rstrip("/").rpartition("/")[2].startswith(wanted):
        return 1
    return 2 if wanted in lower else None


def with_folders(paths: Iterable[str]) -> list[str]:
    """The paths and the folders above them."""
    found: dict[str, None] = {}
    for path in paths:
        for parent in reversed(Path(path).parents):
            if parent.parts:
                found[f"{parent.as_posix()}/"] = None
        found[path] = None
    return list(found)
