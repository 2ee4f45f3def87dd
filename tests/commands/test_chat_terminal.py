"""`codemill chat` as a process of its own on a terminal, stopped by real signals."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = "import sys; from codemill.cli import main; sys.exit(main())"
SECONDS = 60


class Terminal:
    """A process whose standard streams are a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, pattern: str) -> str:
        """Read until the new output matches; it is consumed up to the end of the match."""
        deadline = time.monotonic() + SECONDS
        while (match := re.search(pattern, self.seen, re.DOTALL)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode("utf-8", "replace")
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(model_directory: Path, tmp_path: Path) -> Iterator[Terminal]:
    # Room for answers of several seconds: on a busy machine a signal takes its time.
    folder = shutil.copytree(model_directory, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8000}))
    terminal = Terminal("chat", "--model", str(folder), "--max-tokens", "4000")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.wait_for(r"/reset.*\n> ")
    terminal.type("Hello.")
    terminal.wait_for(r"Hello\.\r\n.{5}")  # the echo, and the answer's beginning
    terminal.process.send_signal(signal.SIGINT)
    stopped = terminal.wait_for(r"\(stopped\).*\n> ")
    assert "generated" not in stopped
    time.sleep(0.5)  # the prompt stands a moment before readline listens to signals
    terminal.process.send_signal(signal.SIGINT)  # at the prompt it only clears the line
    terminal.wait_for(r"\n> ")
    terminal.type("And now?")
    answered = terminal.wait_for(r"tokens/s\]\r\n> ")
    assert "4000 generated" in answered
    assert "error" not in answered
    terminal.type("/exit")
    assert terminal.process.wait(SECONDS) == 0


def test_the_end_of_input_ends_it(terminal: Terminal) -> None:
    terminal.wait_for(r"\n> ")
    os.write(terminal.master, b"\x04")
    assert terminal.process.wait(SECONDS) == 0
