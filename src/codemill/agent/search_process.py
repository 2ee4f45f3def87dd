"""Matches patterns that a model wrote: in a process beside this one, which ends when it takes too long."""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from codemill.agent.output import plain_name
from codemill.agent.process_apart import TooSlow, answers_of
from codemill.agent.tool import ToolError

SECONDS = 5.0  # for one file, of at most 2 MiB
WORKER = "codemill.agent.search_worker"


def match_names(pattern: str, names: Sequence[str], cancel: threading.Event | None = None) -> list[int]:
    """Which names a pattern as of .gitignore matches. Raises ToolError for one that is none, or takes too long;
    Interrupted."""
    return [file for file, *rest in _search(pattern, names, cancel, is_glob=True) if rest]


def search_files(
    pattern: str, paths: Sequence[str], cancel: threading.Event | None = None
) -> Iterator[tuple[int, int, str]]:
    """Lines that a regular expression matches: which file, which line, and its beginning. Raises as `match_names`."""
    for file, *rest in _search(pattern, paths, cancel, is_glob=False):
        if rest:
            yield file, *rest


def _search(pattern: str, names: Sequence[str], cancel: threading.Event | None, is_glob: bool) -> Iterator[list[Any]]:
    request, at = {"pattern": pattern, "files": list(names), "is_glob": is_glob}, -1
    try:
        for answer in answers_of(WORKER, request, cancel or threading.Event(), SECONDS):
            if isinstance(answer, str):
                raise _wrong(pattern, answer, is_glob)
            if answer:
                at = answer[0]
                yield answer
    except TooSlow:
        raise _too_slow(pattern, names[at] if at >= 0 else "", is_glob) from None


def _wrong(pattern: str, why: str, is_glob: bool) -> ToolError:
    if is_glob:
        return ToolError(f"{pattern!r} is no glob pattern: {why}")
    return ToolError(f"{pattern!r} is no regular expression ({why}): write \\ before ( [ * + ? . to mean them")


def _too_slow(pattern: str, name: str, is_glob: bool) -> ToolError:
    where = f" in {plain_name(os.path.basename(name))}" if name else ""
    hint = "use fewer *" if is_glob else "a repetition within a repetition, such as (a+)+, does that: write it without"
    return ToolError(f"the pattern {pattern!r} was stopped, since it takes too long{where}: {hint}")
