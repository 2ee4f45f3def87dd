"""Running a job without isolation: limits, a process group and a folder of its own, and no more.

The program can read what its user can read, reach the network, and write anywhere: only for code that one would run
oneself. For hosts without the Linux features of the sandbox, and only where the user says `--unsafe`.
"""

import contextlib
import fnmatch
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from codemill.sandbox.job import Job
from codemill.sandbox.result import RunResult, Status

_COMPLETED = "completed"
# Runs the program, then leaves a file that says that its last line was reached.
_RUN_PYTHON = f"import runpy; runpy.run_path('main.py', run_name='__main__'); open('../{_COMPLETED}', 'w').close()"
_POLL = 0.02


class UnsafeWorker:
    """Runs one job at a time as an ordinary process of this user. Linux and macOS."""

    def __init__(self) -> None:
        self._killed = threading.Event()

    def run(self, job: Job) -> RunResult:
        """Run it. `refused` stays empty: nothing is refused."""
        with tempfile.TemporaryDirectory(prefix="codemill-", ignore_cleanup_errors=True) as folder:
            work = Path(folder, "work")
            own = {} if job.source is None else {"main.py": job.source}
            for name, content in {**own, **job.files}.items():
                path = work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            work.mkdir(exist_ok=True)
            result = RunResult("ok")
            for command in job.build:
                result = _Process(replace(job, limits=job.build_limits), command, work, self._killed).result()
                if result.status != "ok":
                    return replace(result, detail=f"in the build: {result.detail}")
            for command in job.commands or ((sys.executable, "-s", "-c", _RUN_PYTHON),):
                result = _Process(job, command, work, self._killed).result()
                if result.status != "ok":
                    break
            return result

    def kill(self) -> None:
        """End what runs at once, whichever thread it belongs to: it comes back as a "harness error"."""
        self._killed.set()

    def close(self) -> None:
        """Nothing outlives a run."""


class _Process:
    def __init__(self, job: Job, command: tuple[str, ...], work: Path, killed: threading.Event) -> None:
        self.job, self.work, self.killed = job, work, killed
        self.start = time.monotonic()
        self.limit: tuple[Status, str] | None = None
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(work), "TMPDIR": str(work), **_PINNED}
        try:
            self.process = subprocess.Popen(
                command,
                cwd=work,
                env=environment | dict(job.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=self._limit_resources,
            )
        except OSError as error:
            self.limit = ("harness error", f"cannot execute {command[0]}: {error.strerror}")
            self.outputs = [b"", b""]
            self.exit_code, self.cpu = None, 0.0
            return
        self.outputs = self._communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.exit_code = self.process.returncode

    def _limit_resources(self) -> None:
        limits = self.job.limits
        seconds = int(limits.cpu_seconds) + 1
        wanted = {
            resource.RLIMIT_CPU: seconds,
            resource.RLIMIT_FSIZE: limits.disk,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: limits.open_files,
        }
        if self.job.source is not None:
            wanted[resource.RLIMIT_AS] = limits.memory
        for kind, value in wanted.items():
            with contextlib.suppress(ValueError, OSError):
                # One second between SIGXCPU, which tells the reason, and SIGKILL.
                resource.setrlimit(kind, (value, value + 1 if kind == resource.RLIMIT_CPU else value))

    def _communicate(self) -> list[bytes]:
        """Feed and read in threads until the process ends or a limit is reached."""
        buffers = [bytearray(), bytearray()]
        streams = (self.process.stdout, self.process.stderr)
        threads = [threading.Thread(target=self._feed, daemon=True)]
        threads += [
            threading.Thread(target=self._read, args=pair, daemon=True) for pair in zip(streams, buffers, strict=True)
        ]
        for thread in threads:
            thread.start()
        while self.process.poll() is None and self.limit is None:
            if time.monotonic() - self.start > self.job.limits.wall:
                self.limit = ("timeout", f"more than {self.job.limits.wall:g} s")
            if self.killed.is_set():
                self.limit = ("harness error", "interrupted")
            time.sleep(_POLL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for thread in threads:
            thread.join(timeout=1.0)
        return [bytes(buffer) for buffer in buffers]

    def _feed(self) -> None:
        stdin = self.process.stdin
        with contextlib.suppress(OSError):
            if stdin is not None:
                stdin.write(self.job.stdin)
                stdin.close()

    def _read(self, stream: IO[bytes], buffer: bytearray) -> None:
        for piece in _pieces(stream):
            room = self.job.limits.output - len(buffer)
            buffer += piece[:room]
            if len(piece) > room:
                self.limit = self.limit or ("output limit", f"more than {self.job.limits.output} bytes")
                return

    def result(self) -> RunResult:
        stdout, stderr = (output.decode("utf-8", "replace") for output in self.outputs)
        status, detail = self.limit or self._own_end(stderr)
        done = self.exit_code == 0 if self.job.commands else (self.work.parent / _COMPLETED).exists()
        return RunResult(
            status=status,
            exit_code=self.exit_code,
            stdout=stdout,
            stderr=stderr,
            completed=done and status == "ok",
            detail=detail,
            cpu_seconds=self.cpu,
            wall_seconds=time.monotonic() - self.start,
            files=dict(self._collect()),
        )

    def _own_end(self, stderr: str) -> tuple[Status, str]:
        if self.exit_code == 0:
            return "ok", ""
        if self.exit_code == -signal.SIGXCPU:
            return "timeout", f"more than {self.job.limits.cpu_seconds:g} s of CPU time"
        if self.job.source is not None and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
            return "memory", "MemoryError"
        return "failed", f"exit status {self.exit_code}"

    def _collect(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.work.rglob("*")) if self.job.collect else ():
            name = path.relative_to(self.work).as_posix()
            if path.is_file() and not path.is_symlink() and any(fnmatch.fnmatchcase(name, p) for p in self.job.collect):
                yield name, path.read_bytes()


_PINNED = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    with contextlib.suppress(OSError, ValueError):
        while piece := os.read(stream.fileno(), 1 << 16):
            yield piece
