"""The commands that run in the session's namespaces: what each uses, when it has ended, and how all of it is ended.

A background command has a process namespace of its own within the session's: it is ended by ending its process 1. All
other processes are the foreground command's, those too that it has made daemons of.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from codemill.sandbox import watch
from codemill.sandbox.shell_types import MIB, ShellLimits

_GRACE = 0.5  # seconds between SIGTERM and SIGKILL
_PATIENCE = 2.0  # seconds in which the foreground's processes alone are to be ended; then all are
_MOST_NAMES = 5


@dataclass
class Job:
    """One command. pid: its shell, or process 1 of its namespace. status: where its end is told."""

    number: int
    pid: int
    status: int
    background: bool
    reason: str = ""
    detail: str = ""
    kill_at: float | None = None
    free_at_start: int = 0
    written_at_start: int = 0  # by children of this process that it has waited for
    namespace: str = field(default="")


class Jobs:
    """All that run. Empty when nothing does."""

    def __init__(self, limits: ShellLimits, workspace: str) -> None:
        self._limits, self._workspace = limits, workspace
        self._jobs: dict[int, Job] = {}

    def __bool__(self) -> bool:
        return bool(self._jobs)

    @property
    def foreground(self) -> Job | None:
        return next((job for job in self._jobs.values() if not job.background), None)

    def add(self, job: Job) -> None:
        job.free_at_start, job.written_at_start = _free_space(self._workspace), watch.written(["self"])
        if job.background:
            job.namespace = _namespace(job.pid)
        self._jobs[job.number] = job

    def stop(self, number: int, reason: str) -> None:
        """Ask it to end; the next looks see to it that it does."""
        job = self._jobs.get(number)
        if job is None or job.reason:
            return
        job.reason, job.kill_at = reason, time.monotonic() + _GRACE
        for pid in [job.pid] if job.background else self._foreground_pids():
            _signal(pid, signal.SIGTERM)

    def reap(self) -> None:
        """Wait for whoever has ended."""
        ended: dict[int, int] = {}
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = os.waitstatus_to_exitcode(found[1])
        for job in [each for each in self._jobs.values() if each.pid in ended]:
            self._finish(job, ended[job.pid])

    def look(self) -> None:
        """Hold what each uses against the limits."""
        groups = self._groups()
        if sum(map(len, groups.values())) > self._limits.processes and self._jobs:
            largest = max(groups, key=lambda number: len(groups[number]))
            self._exceed(self._jobs[largest], "processes", f"more than {self._limits.processes} processes")
        for number, pids in groups.items():
            job = self._jobs.get(number)
            if job is None:  # just ended
                continue
            if self._uses_too_much_memory(pids):
                self._exceed(job, "memory", f"more than {self._limits.memory / MIB:.0f} MiB of memory")
            elif self._fills_the_disk(job, pids):
                self._exceed(job, "disk", f"more than {self._limits.disk / MIB:.0f} MiB written to the disk")
            elif job.kill_at is not None and time.monotonic() > job.kill_at:
                self._kill(job)

    def _uses_too_much_memory(self, pids: list[int]) -> bool:
        limit = self._limits.memory
        return watch.memory(pids) > limit and watch.exact_memory(pids) > limit

    def _fills_the_disk(self, job: Job, pids: list[int]) -> bool:
        """Whether it has written more than it may, and the disk has so much less space: others write to it as well, and
        what is written may replace something."""
        limit = self._limits.disk
        if job.free_at_start - _free_space(self._workspace) <= limit:
            return False
        return watch.written(("self", *pids)) - job.written_at_start > limit

    def _exceed(self, job: Job, reason: str, detail: str) -> None:
        if not job.reason:
            job.reason, job.detail = reason, detail
        self._kill(job)

    def _kill(self, job: Job) -> None:
        if job.background:
            _signal(job.pid, signal.SIGKILL)  # and `reap` finishes it
            return
        _signal(job.pid, signal.SIGKILL)
        self._finish(job, None)

    def _finish(self, job: Job, exit_code: int | None) -> None:
        """End what is left of it, and tell."""
        left: list[str] = []
        if not job.background:
            left = [] if job.reason else self._left_running(job)
            if self._end_foreground(job):
                job.detail = f"{job.detail}; background commands had to be ended too".removeprefix("; ")
        del self._jobs[job.number]
        message = {"exit_code": exit_code, "reason": job.reason, "detail": job.detail, "left": left}
        with contextlib.suppress(BrokenPipeError):
            os.write(job.status, json.dumps(message).encode() + b"\n")
        os.close(job.status)

    def _left_running(self, job: Job) -> list[str]:
        names = [watch.name(pid) for pid in self._foreground_pids() if pid != job.pid]
        return [name for name in names if name][:_MOST_NAMES]

    def _end_foreground(self, job: Job) -> bool:
        """Kill all its processes, and wait for them -> whether background commands were killed with them."""
        if not any(each.background for each in self._jobs.values()):
            _signal(-1, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)
            return False
        deadline = time.monotonic() + _PATIENCE
        while pids := self._foreground_pids():
            if time.monotonic() > deadline:
                _signal(-1, signal.SIGKILL)
                return True
            self._freeze(pids)
            for pid in self._foreground_pids():
                _signal(pid, signal.SIGKILL)
            self._reap_others()
        return False

    def _freeze(self, pids: list[int]) -> None:
        """Stop them and those that they fork meanwhile: stopped processes take all places that there are in the end."""
        seen: set[int] = set()
        while new := set(pids) - seen:
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            seen |= new
            pids = self._foreground_pids()

    def _reap_others(self) -> None:
        """Wait for the foreground's processes that have ended, and for no background command's."""
        for pid in self._foreground_pids():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _foreground_pids(self) -> list[int]:
        pids = watch.processes()
        if not any(job.background for job in self._jobs.values()):
            return pids
        return [pid for pid in pids if not watch.is_nested(pid)]

    def _groups(self) -> dict[int, list[int]]:
        """Processes of each command, by its number."""
        foreground = self.foreground
        groups = {foreground.number: self._foreground_pids()} if foreground else {}
        others = list(self._background())
        if others:
            namespaces = {pid: _namespace(pid) for pid in watch.processes() if watch.is_nested(pid)}
            for job in others:
                groups[job.number] = [pid for pid, name in namespaces.items() if name == job.namespace]
        return groups

    def _background(self) -> Iterator[Job]:
        return (job for job in self._jobs.values() if job.background)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _free_space(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
