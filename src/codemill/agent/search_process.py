"""Matches patterns that a model wrote: in a process beside this one, which ends when it takes too long."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codemill.agent.output import plain_name
from codemill.agent.stops import Interrupted
from codemill.agent.tool import ToolError
from codemill.errors import CodemillError

SECONDS = 5.0  # for one file, of at most 2 MiB
START_SECONDS = 30.0
TICK = 0.05  # seconds in which a cancellation is seen
COMMAND = (sys.executable, "-s", "-P", "-B", "-m", "codemill.agent.search_worker")
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


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
    process = _start()
    try:
        _ask(process, {"pattern": pattern, "files": list(names), "is_glob": is_glob})
        yield from _answers(process, pattern, names, cancel or threading.Event(), is_glob)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _start() -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PYTHONPATH": str(_PACKAGE_ROOT), "PYTHONUTF8": "1"},
            start_new_session=True,  # Ctrl-C on the terminal is for us
        )
    except OSError as error:
        raise CodemillError(f"no process can be started for a search: {error.strerror}") from error


def _ask(process: "subprocess.Popen[bytes]", request: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        with process.stdin as file:
            file.write(json.dumps(request).encode())
    except BrokenPipeError:
        raise CodemillError("the process for a search does not start") from None


def _answers(
    process: "subprocess.Popen[bytes]", pattern: str, names: Sequence[str], cancel: threading.Event, is_glob: bool
) -> Iterator[list[Any]]:
    assert process.stdout is not None
    descriptor, rest, at = process.stdout.fileno(), b"", -1
    deadline = time.monotonic() + START_SECONDS
    while True:
        if cancel.is_set():
            raise Interrupted("stopped")
        if time.monotonic() > deadline:
            raise _too_slow(pattern, names[at] if at >= 0 else "", is_glob)
        if not select.select([descriptor], [], [], TICK)[0]:
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            break
        deadline = time.monotonic() + SECONDS
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if isinstance(answer, str):
                raise _wrong(pattern, answer, is_glob)
            if answer:
                at = answer[0]
                yield answer
    if process.wait() != 0:
        raise _too_slow(pattern, names[at] if at >= 0 else "", is_glob)  # it has a limit of its own


def _wrong(pattern: str, why: str, is_glob: bool) -> ToolError:
    if is_glob:
        return ToolError(f"{pattern!r} is no glob pattern: {why}")
    return ToolError(f"{pattern!r} is no regular expression ({why}): write \\ before ( [ * + ? . to mean them")


def _too_slow(pattern: str, name: str, is_glob: bool) -> ToolError:
    where = f" in {plain_name(os.path.basename(name))}" if name else ""
    hint = "use fewer *" if is_glob else "a repetition within a repetition, such as (a+)+, does that: write it without"
    return ToolError(f"the pattern {pattern!r} was stopped, since it takes too long{where}: {hint}")
