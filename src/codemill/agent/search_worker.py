"""Searches in a process of its own, since only a process can be ended: a pattern may take for ever.

    python -m codemill.agent.search_worker

It is started by `search_process`: it reads one JSON object, and writes one JSON list a line, each a place: [] at the
beginning, [file] when it begins with a file, [file, line, text] for a line that matches, [file, true] for a name that
does. A pattern that is none is a JSON string, which says why.
"""

import json
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codemill.agent.plain_file import read_plain

MAX_BYTES = 2 << 20  # larger files are data
MAX_LINE = 300  # characters of a line that are told
LONGEST = 10_000  # characters of a line that are looked at
CPU_SECONDS = 120  # if nobody is left to end it
MEMORY = 2 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    request = json.load(sys.stdin)
    _tell([])
    search = _match_names if request["is_glob"] else _search_files
    try:
        for place in search(request["pattern"], request["files"]):
            _tell(place)
    except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        _tell(str(error) or type(error).__name__)


def _tell(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _match_names(pattern: str, names: Sequence[str]) -> Iterator[list[Any]]:
    from pathspec import PathSpec

    spec = PathSpec.from_lines("gitignore", [pattern])
    for file, name in enumerate(names):
        if file % 100 == 0:
            yield [file]
        if spec.match_file(name):
            yield [file, True]


def _search_files(pattern: str, paths: Sequence[str]) -> Iterator[list[Any]]:
    compiled = re.compile(pattern)
    for file, path in enumerate(paths):
        yield [file]
        for number, line in enumerate(_lines(Path(path)), 1):
            if compiled.search(line[:LONGEST]):
                yield [file, number, line[:MAX_LINE]]


def _lines(path: Path) -> list[str]:
    """Of a file of text; nothing of others."""
    try:
        data = read_plain(path, MAX_BYTES)
    except OSError:
        return []
    if len(data) > MAX_BYTES or b"\0" in data:
        return []
    return data.decode("utf-8", "replace").splitlines()


if __name__ == "__main__":
    main()
