"""A worker: one server process, and the handle by which this process gives it jobs."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from codemill.errors import CodemillError
from codemill.sandbox import channel, root
from codemill.sandbox.job import Job
from codemill.sandbox.result import RunResult

_START_SECONDS = 60.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
# Of the server, and so of every program in it.
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": root.HOME,
    "TMPDIR": root.TMP,
    "USER": "sandbox",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class IsolationError(CodemillError):
    """This host cannot isolate a program, so none was run."""


class Worker:
    """One server. Runs one job at a time; not for several threads at once.

    preload: Python modules that the programs find loaded. readable: paths of the host that programs may read besides
    the system's and the interpreter's own.
    """

    def __init__(self, preload: Sequence[str] = (), readable: Sequence[str | Path] = ()) -> None:
        """Raises IsolationError where the host does not offer what isolation needs."""
        self._settings = json.dumps(
            {
                "preload": list(preload),
                "readable": [*interpreter_paths(), *(str(Path(each).absolute()) for each in readable)],
            }
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket
        self._start()

    def _start(self) -> None:
        if not sys.platform.startswith("linux"):
            raise IsolationError(f"no isolation on {sys.platform}: the sandbox needs Linux (--unsafe runs without it)")
        self._channel, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        command = [sys.executable, "-s", "-P", "-B", "-m", "codemill.sandbox.fork_server", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                [*command, self._settings],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                cwd="/",
                env={**_ENVIRONMENT, "PYTHONPATH": str(_PACKAGE_ROOT)},
                start_new_session=True,  # Ctrl-C on the terminal is for us
            )
        self._channel.settimeout(_START_SECONDS)
        try:
            header, _ = channel.receive(self._channel)
        except (channel.ChannelClosedError, TimeoutError):
            header = {"refused": f"its server does not start: {self._last_words()}"}
        if "refused" in header:
            self.close()
            raise IsolationError(
                f"this host cannot isolate programs ({header['refused']}): --unsafe runs without isolation"
            )

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def run(self, job: Job) -> RunResult:
        """Run one job. A server that breaks down gives a "harness error", and the next job gets a new one."""
        if self._process is None:
            self._start()
        self._channel.settimeout(60 + 12 * (job.limits.wall + job.build_limits.wall))
        try:
            channel.send_job(self._channel, job)
            return channel.receive_result(self._channel)
        except (channel.ChannelClosedError, TimeoutError, ValueError, KeyError) as error:
            words = self._last_words()
            self.close()
            return RunResult("harness error", detail=f"the sandbox broke down ({error or 'no answer'}): {words}")
        except BaseException:
            self.close()  # interrupted: an answer that comes later must not be taken for that of the next job
            raise

    def kill(self) -> None:
        """End the server at once, whichever thread its run belongs to: that run comes back as a "harness error"."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the server and everything in it."""
        if self._process is None:
            return
        self._channel.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()
        self._process = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interpreter_paths() -> list[str]:
    """Folders that this interpreter needs: the installation, a virtual environment, and site-packages elsewhere."""
    candidates = [sys.base_prefix, sys.prefix, *(path for path in sys.path if path.endswith("-packages"))]
    found: list[str] = []
    for path in sorted(
        {os.path.realpath(each) for each in candidates} | {os.path.abspath(each) for each in candidates}
    ):
        if os.path.isdir(path) and not any(path == each or path.startswith(each + "/") for each in found):
            found.append(path)
    return [path for path in found if path != "/" and not path.startswith("/usr/") and path != "/usr"]
