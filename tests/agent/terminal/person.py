"""A person at a terminal: types, and sees what a terminal shows."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
import pyte

RUNNER = Path(__file__).with_name("runner.py")
SOURCE = Path(__file__).resolve().parents[3] / "src"
ESC, CTRL_C, CTRL_D, ENTER, SHIFT_TAB, ALT_ENTER = "\x1b", "\x03", "\x04", "\r", "\x1b[Z", "\x1b\r"
SPINNER = re.compile("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
NORMAL = (
    (SPINNER, "⠿"),
    (re.compile(r"\d+ s\b"), "N s"),
    (re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}"), "SESSION"),
    (re.compile(r" · [\d.]+ tokens/s"), ""),
    (re.compile(r"\d[\d,]* tokens, \d+ %"), "N tokens, N %"),
)


class Person:
    """Starts the runner in a terminal of its own. raw: all that came; screen: what the terminal made of it."""

    def __init__(
        self,
        scenario: str,
        folder: Path,
        home: Path,
        columns: int = 80,
        rows: int = 24,
        pause: float = 0.005,
        program: Sequence[str] = (),
        **more: str,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=2000, ratio=0.001)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path]),
            "OMP_NUM_THREADS": "1",
            **more,
        }
        command, *arguments = program or (sys.executable, str(RUNNER), scenario, str(folder), str(pause))
        self.child = pexpect.spawn(command, arguments, env=environment, dimensions=(rows, columns), cwd=folder)
        self.child.delaybeforesend = self.child.delayafterclose = self.child.delayafterterminate = 0.01

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)

    def type(self, text: str) -> None:
        self.child.send(text)

    def say(self, text: str) -> None:
        """Type a line and send it."""
        self.type(text + ENTER)

    def look(self, seconds: float = 0.05) -> str:
        """Read what has come, for so long -> the text of the screen."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                data = self.child.read_nonblocking(65536, timeout=left)
            except pexpect.TIMEOUT:
                break
            except pexpect.EOF:
                break
            self.raw += data
            self._stream.feed(data)
        return self.text

    @property
    def text(self) -> str:
        """The window, without empty lines at its end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    @property
    def scrollback(self) -> str:
        """What has scrolled out, and the window."""
        old = [
            "".join(line[column].data for column in range(self.screen.columns)).rstrip()
            for line in self.screen.history.top
        ]
        return "\n".join([*old, self.text])

    def wait(self, what: str | Callable[[str], bool], seconds: float = 15.0) -> str:
        """Look until it is there."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = self.look(0.03)
            if what(text) if callable(what) else what in text:
                return text
        raise AssertionError(f"{what!r} did not come; the screen was:\n{self.text}")

    def wait_idle(self) -> str:
        """Look until the agent is done, and nothing moves."""
        return self.wait(lambda text: not SPINNER.search(text) and self.look(0.2) == text)

    def leave(self) -> int:
        """Ctrl-D -> the exit status."""
        self.type(CTRL_D)
        return self.ended()

    def ended(self) -> int:
        while self.child.isalive():
            self.look(0.05)
        self.look(0.05)
        return self.child.exitstatus if self.child.exitstatus is not None else -(self.child.signalstatus or 0)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)
        self.child.kill(signal.SIGWINCH)


def normal(text: str) -> str:
    """A screen without what is another each time."""
    for pattern, replacement in NORMAL:
        text = pattern.sub(replacement, text)
    return text + "\n"
