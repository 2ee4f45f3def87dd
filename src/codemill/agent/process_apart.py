"""Work on what a stranger wrote, in a process beside this one: it may take for ever, and only a process can end."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codemill.agent.stops import Interrupted
from codemill.errors import CodemillError

START_SECONDS = 30.0
TICK = 0.05  # seconds in which a cancellation is seen
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class TooSlow(Exception):
    """It was ended."""


def answers_of(module: str, request: Any, cancel: threading.Event, seconds: float) -> Iterator[Any]:
    """Have a module of this package, run as a program, read `request` as JSON -> the values that it writes, one a line.

    seconds: the most from one to the next. Raises TooSlow, Interrupted, CodemillError if no process can be started.
    """
    process = _start(module)
    try:
        _ask(process, request)
        yield from _answers(process, cancel, seconds)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _start(module: str) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PYTHONPATH": str(_PACKAGE_ROOT), "PYTHONUTF8": "1"},
            start_new_session=True,  # Ctrl-C on the terminal is for us
        )
    except OSError as error:
        raise CodemillError(f"no process can be started: {error.strerror}") from error


def _ask(process: "subprocess.Popen[bytes]", request: Any) -> None:
    assert process.stdin is not None
    try:
        with process.stdin as file:
            file.write(json.dumps(request).encode())
    except BrokenPipeError:
        raise CodemillError("a process beside this one does not start") from None


def _answers(process: "subprocess.Popen[bytes]", cancel: threading.Event, seconds: float) -> Iterator[Any]:
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if cancel.is_set():
            raise Interrupted("stopped")
        if time.monotonic() > deadline:
            raise TooSlow
        if not select.select([descriptor], [], [], TICK)[0]:
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            break
        deadline = time.monotonic() + seconds
        *lines, rest = (rest + data).split(b"\n")
        yield from map(json.loads, lines)
    if process.wait() != 0:
        raise TooSlow  # it has a limit of its own
