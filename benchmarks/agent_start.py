"""How long `codemill agent` takes until its prompt stands, in a pseudo-terminal as a person has it.

    python benchmarks/agent_start.py [--rounds 10] [--output benchmarks/results/agent_start.json]

Medians of seconds from the start of the process to its first picture, before a model is loaded or a server is asked,
and of seconds from Ctrl-D to its end. The server is one that never answers.
"""

import argparse
import json
import os
import platform
import pty
import select
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

LONGEST = 30.0  # seconds without a sign
PROMPT, CTRL_D = b"default", b"\x04"  # the status line is part of the first picture


def read(terminal: int) -> bytes:
    """What the process has written; nothing at its end. Raises TimeoutError if it does not go on."""
    if not select.select([terminal], [], [], LONGEST)[0]:
        raise TimeoutError(f"nothing came for {LONGEST:g} s")
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def start(home: str, arguments: list[str]) -> tuple[float, float]:
    """Seconds to the prompt, and from Ctrl-D to the end."""
    begin = time.perf_counter()
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(HOME=home, TERM="xterm-256color")
        os.chdir(Path(home) / "project")
        os.execv(sys.executable, [sys.executable, "-m", "codemill", "agent", *arguments])
    seen = b""
    while PROMPT not in seen:
        data = read(terminal)
        if not data:
            raise RuntimeError(f"it has ended: {seen.decode(errors='replace')}")
        seen += data
    drawn = time.perf_counter()
    os.write(terminal, CTRL_D)
    while read(terminal):
        pass
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        raise RuntimeError(f"it ended with status {status}")
    os.close(terminal)
    return drawn - begin, time.perf_counter() - drawn


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as home, socket.socket() as silent:
        (Path(home) / "project").mkdir()
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, arguments in {"embedded model": [], "--endpoint": ["--endpoint", server]}.items():
            start(home, arguments)  # what Python compiles is not measured
            rounds = [start(home, arguments) for _ in range(options.rounds)]
            times = [seconds for seconds, _ in rounds]
            ends = [seconds for _, seconds in rounds]
            figures[name] = {
                "prompt": round(statistics.median(times), 3),
                "prompt, slowest": round(max(times), 3),
                "end": round(statistics.median(ends), 3),
            }
            print(f"{name:<16} {json.dumps(figures[name])}")
    if options.output:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        report = {"machine": machine, "rounds": options.rounds, "seconds": figures}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
