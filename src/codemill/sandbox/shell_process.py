"""Commands that the shell's server runs, seen from this side: their output and their end."""

import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from codemill.sandbox.shell_output import OutputKeeper
from codemill.sandbox.shell_types import ShellResult, ShellStatus

_PIECE = 1 << 16
Stop = Callable[[str], None]


class RunningCommand:
    """Reads what a command writes and how it ended. Closes both descriptors."""

    def __init__(self, output: int, status: int, keeper: OutputKeeper) -> None:
        self._output, self._status, self.keeper = output, status, keeper
        self._lines = b""
        self.pid: int | None = None
        self.end: dict[str, Any] | None = None
        self.started = time.monotonic()
        os.set_blocking(output, False)
        self._poller = select.poll()
        self._poller.register(output, select.POLLIN)
        self._poller.register(status, select.POLLIN)

    def read(self, seconds: float) -> str:
        """Wait for output or the end, at most so long -> complete lines that came."""
        ready = dict(self._poller.poll(seconds * 1000))
        text = self._take_output() if self._output in ready else ""
        if self._status in ready:
            self._take_status()
        return text

    def _take_output(self) -> str:
        try:
            data = os.read(self._output, _PIECE)
        except BlockingIOError:
            return ""
        if not data:
            self._poller.unregister(self._output)
        return self.keeper.feed(data)

    def _take_status(self) -> None:
        data = os.read(self._status, _PIECE)
        if not data:
            self.end = {"exit_code": None, "reason": "broken", "detail": "the sandbox ended"}
            return
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "pid" in message:
                self.pid = message["pid"]
            else:
                self.end = message

    def finish(self) -> tuple[str, ShellResult]:
        """After the end: what lay in the pipe still, and the result."""
        pieces = []
        while not self.keeper.is_full and select.select([self._output], [], [], 0)[0]:
            data = os.read(self._output, _PIECE)
            if not data:
                break
            pieces.append(self.keeper.feed(data))
        pieces.append(self.keeper.finish())
        result = self._result()
        self.close()
        return "".join(pieces), result

    def _result(self) -> ShellResult:
        end = self.end or {}
        code = end.get("exit_code")
        reason: ShellStatus = end.get("reason") or ("ok" if code == 0 else "failed")
        left = end.get("left") or []
        notes = [end.get("detail", "")]
        if left:
            notes.append(f"what it left running was ended: {', '.join(left)}")
        return ShellResult(
            exit_code=128 - code if code is not None and code < 0 else code,
            output=self.keeper.text(),
            status=reason,
            seconds=time.monotonic() - self.started,
            detail="; ".join(filter(None, notes)),
            whole_output=self.keeper.file,
        )

    def close(self) -> None:
        os.close(self._output)
        os.close(self._status)
        self.keeper.close()


class BackgroundProcess:
    """A command that goes on while others run. id: its process, by which other commands of the session know it.

    A thread of this process reads its output, so that it never waits for a reader.
    """

    def __init__(self, command: str, running: RunningCommand, stop: Stop, first: str = "") -> None:
        """first: what it has printed already."""
        self.command = command
        self.id = running.pid or 0
        self._running, self._stop = running, stop
        self._new = [first] if first else []
        self._lock = threading.Lock()
        self._result: ShellResult | None = None
        self._thread = threading.Thread(target=self._pump, daemon=True, name=f"output of {self.id}")
        self._thread.start()

    def _pump(self) -> None:
        running = self._running
        while running.end is None:
            self._add(running.read(1.0))
            if running.keeper.is_full:
                self._stop("output")
        text, result = running.finish()
        self._add(text)
        self._result = result

    def _add(self, text: str) -> None:
        with self._lock:
            if text:
                self._new.append(text)

    def read_new_output(self) -> str:
        """The lines that have come since the last call, however many."""
        with self._lock:
            text = "".join(self._new)
            self._new.clear()
        return text

    def poll(self) -> ShellResult | None:
        """How it ended; None while it runs."""
        return self._result

    def wait(self, seconds: float) -> ShellResult | None:
        """The same, after waiting at most so long."""
        self._thread.join(seconds)
        return self._result

    def stop(self) -> ShellResult | None:
        """End it and all its processes: SIGTERM, and SIGKILL half a second later."""
        self._stop("cancelled")
        return self.wait(5.0)
