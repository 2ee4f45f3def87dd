"""A shell for commands in a user's workspace, which they may write, while the rest of the host is read-only to them.

    with WorkspaceShell(Path("project")) as shell:
        result = shell.run("pytest -q")          # result.exit_code, result.output, result.status

No state is kept between commands but their files: `cd` and `export` end with the command. What a command leaves running
is ended when it ends; what shall go on is started with `start`. When the shell is closed nothing of it is left.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from codemill.errors import UsageError
from codemill.sandbox import channel
from codemill.sandbox.git_guard import GitGuard
from codemill.sandbox.shell_environment import command_environment
from codemill.sandbox.shell_output import OutputKeeper
from codemill.sandbox.shell_process import BackgroundProcess, RunningCommand
from codemill.sandbox.shell_types import ShellLimits, ShellResult
from codemill.sandbox.worker import IsolationError
from codemill.sandbox.workspace_plan import make_plan

_START_SECONDS = 60.0
_CANCEL_TICK = 0.05  # seconds in which a cancellation is seen
_LAST_PATIENCE = 15.0  # seconds for a command that was stopped to end; then the sandbox itself is ended
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class WorkspaceShell:
    """See the module. Commands in the foreground run one at a time, whichever threads ask for them.

    network: whether commands reach the network, and with it the host's own servers; without, they have a loopback of
    their own. writable: folders besides the workspace. hidden: paths besides the usual keys and tokens; see
    `workspace_secrets`. allowed_secrets: such paths that commands may read all the same.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        network: bool = False,
        writable: Sequence[Path] = (),
        hidden: Sequence[Path] = (),
        allowed_secrets: Sequence[Path] = (),
        limits: ShellLimits | None = None,
    ) -> None:
        """Raises UsageError for a folder that cannot be a workspace (the home directory, /), IsolationError where the
        host cannot isolate."""
        if not sys.platform.startswith("linux"):
            raise IsolationError(f"no isolation on {sys.platform}: commands can be run only on Linux")
        self.limits = limits or ShellLimits()
        self._network = network
        self._lock, self._send_lock = threading.Lock(), threading.Lock()
        self._count = 0
        self._background: list[BackgroundProcess] = []
        self.warnings: list[str] = []  # what was found when it was closed
        self._output_folder = Path(tempfile.mkdtemp(prefix="codemill-output-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: GitGuard | None = None
        try:
            readable = [self._output_folder, *interpreter_folders()]
            planned = make_plan(workspace, writable, hidden, allowed_secrets, readable, self.limits.scratch, network)
            self._plan, git = planned
            self.workspace = Path(self._plan.writable[0])
            self._guard = GitGuard(str(self.workspace), git)
            self._start_server()
        except BaseException:
            self.close()
            raise

    def _start_server(self) -> None:
        owner = self.workspace.stat()
        if os.geteuid() == 0:
            os.chown(self._output_folder, owner.st_uid, owner.st_gid)
        self._control, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        command = [sys.executable, "-s", "-P", "-B", "-m", "codemill.sandbox.shell_server", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                cwd="/",
                env={"PYTHONPATH": str(_PACKAGE_ROOT), "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
                start_new_session=True,  # Ctrl-C on the terminal is for us
            )
        settings = {"plan": self._plan.to_json(), "limits": asdict(self.limits)}
        self._control.settimeout(_START_SECONDS)
        try:
            channel.send(self._control, {**settings, "uid": owner.st_uid, "gid": owner.st_gid})
            answer, _ = channel.receive(self._control)
        except (channel.ChannelClosedError, TimeoutError):
            answer = {"refused": f"its server does not start: {self._last_words()}"}
        if "refused" in answer:
            raise IsolationError(f"this host cannot isolate commands ({answer['refused']}), so none is run")

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def run(
        self,
        command: str,
        *,
        cwd: Path | None = None,
        timeout: float = 120.0,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> ShellResult:
        """Run a command to its end. Raises IsolationError where no sandbox can be started.

        timeout: seconds. environment: variables besides the usual. cancel: ends the command when set. on_output: gets
        complete lines as they come.
        """
        with self._lock:
            running = self._send(command, cwd, environment, background=False)
            show = on_output or (lambda text: None)
            try:
                self._follow(running, timeout, show, cancel)
                rest, result = running.finish()
            except BaseException:  # interrupted: the command must not go on
                self._stop(self._count, "cancelled")
                running.close()
                raise
            if rest:
                show(rest)
            return self._with_warnings(result)

    def _follow(
        self, running: RunningCommand, timeout: float, show: Callable[[str], None], cancel: threading.Event | None
    ) -> None:
        number, stopped_at, deadline = self._count, None, running.started + timeout
        while running.end is None:
            now = time.monotonic()
            text = running.read(min(_CANCEL_TICK, max(0.0, deadline - now)) if stopped_at is None else _CANCEL_TICK)
            if text:
                show(text)
            if stopped_at is None and (reason := self._why_stop(running, deadline, cancel)):
                stopped_at = time.monotonic()
                self._stop(number, reason)
            elif stopped_at is not None and time.monotonic() > stopped_at + _LAST_PATIENCE:
                self._kill_server()

    @staticmethod
    def _why_stop(running: RunningCommand, deadline: float, cancel: threading.Event | None) -> str:
        if cancel is not None and cancel.is_set():
            return "cancelled"
        if time.monotonic() > deadline:
            return "timeout"
        return "output" if running.keeper.is_full else ""

    def _with_warnings(self, result: ShellResult) -> ShellResult:
        notes = self._guard.look() if self._guard is not None else []
        return replace(result, detail="; ".join(filter(None, [result.detail, *notes]))) if notes else result

    def start(
        self, command: str, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> BackgroundProcess:
        """Start a command that goes on in the background until it ends, is stopped, or the shell is closed. Raises
        IsolationError when the sandbox has ended."""
        with self._lock:
            running = self._send(command, cwd, environment, background=True)
            number = self._count
            first = ""
            while running.pid is None and running.end is None:
                first += running.read(1.0)
            process = BackgroundProcess(command, running, lambda reason: self._stop(number, reason), first)
            self._background.append(process)
            return process

    @property
    def processes(self) -> list[BackgroundProcess]:
        """The background commands that were started, those too that have ended."""
        return list(self._background)

    def _send(
        self, command: str, cwd: Path | None, environment: Mapping[str, str] | None, background: bool
    ) -> RunningCommand:
        if "\0" in command:
            raise UsageError("a command cannot contain a zero byte")
        if self._process is not None and self._process.poll() is not None:
            self._end_server()
            self._start_server()  # a new one, for a command that was told "broken" must not be the last
        self._count += 1
        message = {
            "number": self._count,
            "command": command,
            "cwd": str(self.workspace if cwd is None else self.workspace / cwd),
            "environment": {**command_environment(os.environ, self._network), **(environment or {})},
            "background": background,
        }
        output, output_writer = os.pipe2(os.O_CLOEXEC)
        status, status_writer = os.pipe2(os.O_CLOEXEC)
        file = self._output_folder / f"{self._count}.txt"
        running = RunningCommand(output, status, OutputKeeper(self.limits.shown, self.limits.output, file))
        owner = self.workspace.stat()
        try:
            if os.geteuid() == 0:
                os.fchown(output_writer, owner.st_uid, owner.st_gid)  # so that /dev/stderr can be opened
            self._transmit(message, [output_writer, status_writer])
        except BaseException:
            running.close()
            raise
        finally:
            os.close(output_writer)
            os.close(status_writer)
        return running

    def _transmit(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        if self._process is None:
            raise IsolationError("the shell is closed: open another one")
        try:
            with self._send_lock:
                socket.send_fds(self._control, [b"m"], descriptors)
                channel.send(self._control, message)
        except (OSError, channel.ChannelClosedError) as error:
            raise IsolationError(f"the sandbox has ended ({error}): open another one") from error

    def _stop(self, number: int, reason: str) -> None:
        try:
            self._transmit({"stop": number, "reason": reason})
        except IsolationError:
            return  # then it has ended already

    def _kill_server(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _end_server(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._control.close()  # the server ends by that, and has ended when everything in it has
            try:
                process.wait(_LAST_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._stderr.close()

    def close(self) -> None:
        """End everything that runs in it, and delete the files of long outputs."""
        self._end_server()
        for each in self._background:
            each.wait(5.0)
        if self._guard is not None:
            self.warnings += self._guard.look(is_last=True)
            self._guard = None
        shutil.rmtree(self._output_folder, ignore_errors=True)

    def __enter__(self) -> "WorkspaceShell":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interpreter_folders() -> list[Path]:
    """Where this Python lies: its virtual environment may be in a folder that commands do not see otherwise."""
    return [Path(sys.prefix), Path(sys.base_prefix), Path(sys.prefix).absolute()]
