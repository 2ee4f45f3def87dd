"""One job from its first process to its last: started, watched, ended. Runs in the sandbox's server, its process 1."""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence

from codemill.sandbox import root, seccomp, watch
from codemill.sandbox.birth import be_born
from codemill.sandbox.confinement import Identity
from codemill.sandbox.job import MIB, Job, Limits
from codemill.sandbox.result import RunResult, Status

_SECOND_LOOK = 0.003
_TICK = 0.025  # seconds between looks at what the processes use
_PATIENCE = 10  # times its wall limit that a run may take on a machine that gives it no CPU
_MOST_REPORT = 4096
_MOST_REFUSED = 20
_OUTPUTS = ("stdout", "stderr", "report")


class Supervisor:
    """Runs the commands of one job, one after the other, under limits that hold for all of them together.

    Everything that the job started has ended when `run` returns.
    """

    def __init__(self, job: Job, identity: Identity, listener: int, control: socket.socket) -> None:
        self.job, self.identity, self.listener, self.control = job, identity, listener, control
        self.outputs = {name: bytearray() for name in _OUTPUTS}
        self.refused: dict[str, None] = {}
        self.main_pid = 0
        self.exit_code: int | None = None
        self.limit: tuple[Status, str] | None = None  # the limit that ended the run
        self.building = False

        self._begin(job.build_limits if job.build else job.limits)

    def _begin(self, limits: Limits) -> None:
        """From here on these limits hold, and nothing of them is used up."""
        self.limits = limits
        self.caps = {"stdout": limits.output, "stderr": limits.output, "report": _MOST_REPORT}
        self.start = time.monotonic()
        self.deadline = self.start + limits.wall
        self.reaped_cpu = self.waited = 0.0
        self.seen_cpu = self.lost_cpu = 0.0
        self.cpu_fell = False
        self.peak_memory = 0

    def run(self) -> None:
        """Run it all; `result` then tells how it went."""
        self.building = True
        if not self._run_each(self.job.build):
            return
        self.building = False
        self.refused = {}
        self._begin(self.job.limits)
        self._run_each(self.job.commands or (None,))

    def _run_each(self, commands: Sequence[tuple[str, ...] | None]) -> bool:
        """One after the other, until one ends badly -> whether none did."""
        for command in commands:
            self._run_process(command)
            if self.exit_code != 0 or self.limit:
                return False
        return True

    def _run_process(self, command: tuple[str, ...] | None) -> None:
        """One process and all its children."""
        with contextlib.ExitStack() as stack:
            readers: dict[int, str] = {}
            with contextlib.ExitStack() as given:
                writers = {}
                for name in _OUTPUTS:
                    reader, writers[name] = _pipe(name)
                    stack.callback(os.close, reader)
                    given.callback(os.close, writers[name])
                    readers[reader] = name
                    os.set_blocking(reader, False)
                    os.fchown(writers[name], self.identity.uid, self.identity.gid)  # so that /dev/stderr can be opened
                stdin = self._standard_input()
                given.callback(os.close, stdin)
                self.exit_code = None
                self.main_pid = os.fork()
                if self.main_pid == 0:
                    be_born(self.identity, self.job, self.limits, command, stdin, writers)
            self._watch(readers)
            self._end_all()
            self._drain(readers)

    def _standard_input(self) -> int:
        """A descriptor at the start of a file without a name: nobody has to write while the program reads."""
        if not self.job.stdin:
            return os.open(os.devnull, os.O_RDONLY)
        descriptor = os.open(root.BASE, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(self.job.stdin)
        os.fchown(descriptor, self.identity.uid, self.identity.gid)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def _watch(self, readers: dict[int, str]) -> None:
        """Serve and look until the main process ends or a limit is reached."""
        handle = os.pidfd_open(self.main_pid)
        actions: dict[int, Callable[[int], object]] = dict.fromkeys(readers, lambda fd: self._read(fd, readers[fd]))
        actions[self.listener] = self._refuse
        poller = select.poll()
        for descriptor in (*actions, handle):
            poller.register(descriptor, select.POLLIN)
        poller.register(self.control, select.POLLRDHUP)
        try:
            self._serve(poller, actions, handle)
        finally:
            os.close(handle)

    def _serve(self, poller: select.poll, actions: dict[int, Callable[[int], object]], handle: int) -> None:
        next_look = time.monotonic() + _TICK
        while self.limit is None:
            ready = dict(poller.poll(max(0.0, next_look - time.monotonic()) * 1000))
            if self.control.fileno() in ready:
                os._exit(1)  # nobody waits for the result; everything here ends with process 1
            for descriptor, event in ready.items():
                if event & select.POLLIN and descriptor in actions:
                    at_end = actions[descriptor](descriptor) == 0
                else:
                    at_end = descriptor != handle
                if at_end:  # or it would be ready for ever, and keep a lone core from the program
                    poller.unregister(descriptor)
            if handle in ready:
                return
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + _TICK

    def _read(self, descriptor: int, name: str) -> int | None:
        """Take a piece of output -> its length, 0 at the end, None if there is none just now. What exceeds the limit is
        dropped and ends the run."""
        try:
            piece = os.read(descriptor, 1 << 16)
        except BlockingIOError:  # a writer that is on its way to nobody
            return None
        room = self.caps[name] - len(self.outputs[name])
        self.outputs[name] += piece[:room]
        if len(piece) > room and name != "report":
            self.limit = self.limit or ("output limit", f"more than {self.caps[name]} bytes on {name}")
        return len(piece)

    def _drain(self, readers: dict[int, str]) -> None:
        """What lay in the pipes when the last writer ended."""
        for reader, name in readers.items():
            while self._read(reader, name):
                pass

    def _refuse(self, listener: int) -> None:
        name = seccomp.refuse_reported_call(listener)
        if name is not None and len(self.refused) < _MOST_REFUSED:
            self.refused[name] = None

    def _look(self) -> None:
        """Hold what all processes use against the limits."""
        self._reap_orphans()
        pids = watch.processes()
        self.limit = self.limit or self._memory_limit(pids) or self._time_limit(pids)

    def _memory_limit(self, pids: list[int]) -> tuple[Status, str] | None:
        files, limit = root.scratch_used(), self.limits.memory
        used = watch.memory(pids) + files
        if used > limit:
            used = watch.exact_memory(pids) + files
        if used > limit:  # a child that has not become its own program yet is counted with its parent's memory
            time.sleep(_SECOND_LOOK)
            used = min(used, watch.exact_memory(watch.processes()) + root.scratch_used())
        self.peak_memory = max(self.peak_memory, used)
        return ("memory", f"more than {limit / MIB:.0f} MiB") if used > limit else None

    def _time_limit(self, pids: list[int]) -> tuple[Status, str] | None:
        limits, now = self.limits, time.monotonic()
        if self._cpu_seconds(pids) > limits.cpu_seconds:
            return ("timeout", f"more than {limits.cpu_seconds:g} s of CPU time")
        if now > self.deadline:
            self.waited = max(self.waited, watch.waited_seconds(pids))
            taken = now - self.start
            if taken - self.waited > limits.wall or taken > _PATIENCE * limits.wall:
                return ("timeout", f"more than {limits.wall:g} s")
            self.deadline = self.start + limits.wall + self.waited
        return None

    def _cpu_seconds(self, pids: list[int]) -> float:
        """CPU time so far. Children whose parent does not wait for them take theirs along: a sum that has fallen, and
        is still lower at the next look (a child may have been between two accounts), was higher for good."""
        total = self.reaped_cpu + watch.cpu_seconds(pids)
        fell = total < self.seen_cpu
        if fell and self.cpu_fell:
            self.lost_cpu += self.seen_cpu - total
            fell = False
        if not fell:
            self.seen_cpu = total
        self.cpu_fell = fell
        return self.seen_cpu + self.lost_cpu

    def _reap_orphans(self) -> None:
        """Wait for what was left to us and has ended. The main process keeps its place: its end is still to be seen."""
        for pid in watch.processes():
            if pid != self.main_pid:
                self._reap(pid, os.WNOHANG)

    def _end_all(self) -> None:
        """Kill whatever still runs, and wait for it. The signal reaches all of this namespace but ourselves."""
        status = self._reap(self.main_pid, os.WNOHANG)
        self.exit_code = None if status is None else os.waitstatus_to_exitcode(status)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        while self._reap(-1, 0) is not None:
            pass

    def _reap(self, pid: int, options: int) -> int | None:
        """Wait for a process -> its status; None if there is none to wait for."""
        try:
            done, status, used = os.wait4(pid, options)
        except ChildProcessError:
            return None
        if not done:
            return None
        self.reaped_cpu += used.ru_utime + used.ru_stime
        self.peak_memory = max(self.peak_memory, 1024 * used.ru_maxrss if pid != self.main_pid else 0)
        return status

    def result(self, files: dict[str, bytes]) -> RunResult:
        """The verdict."""
        report = self.outputs["report"].decode("utf-8", "replace").removeprefix("started\n")
        completed = report.startswith("completed") or (bool(self.job.commands) and self.exit_code == 0)
        status, detail = self.limit or self._own_end(report)
        if self.building and status != "ok":
            detail = f"in the build: {detail}"
        return RunResult(
            status=status,
            exit_code=self.exit_code,
            stdout=self.outputs["stdout"].decode("utf-8", "replace"),
            stderr=self.outputs["stderr"].decode("utf-8", "replace"),
            completed=completed and status == "ok",
            detail=detail,
            refused=tuple(self.refused),
            cpu_seconds=self.reaped_cpu + self.lost_cpu,
            wall_seconds=time.monotonic() - self.start,
            waited_seconds=self.waited,
            memory=self.peak_memory,
            files=files,
        )

    def _own_end(self, report: str) -> tuple[Status, str]:
        """The verdict on a program that ended without being stopped."""
        kind, _, text = report.strip().partition(" ")
        if self.outputs["report"].startswith(b"broken"):  # later words come from a process that the program controls
            return "harness error", text
        if self.exit_code == 0:
            return "ok", ""
        if kind == "memory":
            return "memory", f"no more memory at {self.limits.memory / MIB:.0f} MiB"
        if self.exit_code == -signal.SIGXCPU:
            return "timeout", f"more than {self.limits.cpu_seconds:g} s of CPU time"
        refused = [name for name in self.refused if name not in self.job.tolerated]
        if not self.building and (refused or kind == "blocked" or self.exit_code == -signal.SIGSYS):
            return "blocked", f"the sandbox refused {', '.join(refused) or text or 'a system call'}"
        return "failed", _end_in_words(self.exit_code)


def _end_in_words(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-exit_code).name}"
        return f"killed by signal {-exit_code}"
    return f"exit status {exit_code}"


def _pipe(name: str) -> tuple[int, int]:
    """Both ends for an output. Reports go through a socket: a pipe can be opened again through /proc, and read."""
    if name != "report":
        return os.pipe2(os.O_CLOEXEC)
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()
