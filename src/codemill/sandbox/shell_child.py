"""From a fork of the shell's server to a command."""

import os
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from codemill.sandbox import confinement, linux, workspace_root
from codemill.sandbox.shell_types import ShellLimits

_LONGEST_ARGUMENT = 100_000  # bytes; the kernel takes 128 KiB
_GRACE = 0.5  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Request:
    """A command that the parent wants run."""

    number: int
    command: str
    cwd: str
    environment: Mapping[str, str]
    background: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Request":
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})


def become_command(request: Request, output: int, limits: ShellLimits, program: bytes) -> NoReturn:
    """Give up every privilege, and become the shell that runs the command. program: the seccomp filter."""
    status = 126
    try:
        _attach(output)
        os.nice(limits.nice)
        confine(limits, program)
        confinement.restore_signals()
        os.chdir(request.cwd)
        _execute(request)
    except BaseException as error:  # noqa: BLE001 - there is nobody above to tell
        os.write(2, f"the command could not be started: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(status)


def _attach(output: int) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def confine(limits: ShellLimits, program: bytes) -> None:
    """No privileges, no way to get any, and limits."""
    confinement.set_limit(resource.RLIMIT_CORE, 0)
    confinement.set_limit(resource.RLIMIT_NOFILE, limits.open_files)
    confinement.set_limit(resource.RLIMIT_NPROC, limits.processes + 64)  # the watch tells of the limit itself
    confinement.set_limit(resource.RLIMIT_FSIZE, limits.disk)
    linux.drop_bounding_set()
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # or its own /proc/self is closed to it
    linux.install_filter(program, listen=False)


def _execute(request: Request) -> None:
    environment = dict(request.environment)
    if not os.access(environment.get("HOME", ""), os.R_OK | os.X_OK):
        environment["HOME"] = "/tmp"
    shell = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), "/bin/sh")
    arguments = [shell, "-c", request.command]
    if len(os.fsencode(request.command)) > _LONGEST_ARGUMENT:
        arguments = [shell, f"/tmp/command-{request.number}"]
        with open(arguments[1], "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(request.command)
    os.execve(shell, arguments, environment)


def fork_background(request: Request, output: int, limits: ShellLimits, program: bytes) -> int:
    """Run a command in a process namespace within the server's -> the process that is 1 in it. All the others there end
    when it does; it ends when none is left."""
    reader, writer = os.pipe()
    helper = os.fork()
    if helper == 0:
        _make_namespace(request, output, limits, program, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    os.waitpid(helper, 0)
    if not answer.isdigit():
        raise OSError(f"no process namespace: {answer.decode('utf-8', 'replace')}")
    return int(answer)


def _make_namespace(request: Request, output: int, limits: ShellLimits, program: bytes, writer: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        linux.unshare(linux.CLONE_NEWPID | linux.CLONE_NEWNS)
        first = os.fork()
        if first == 0:
            _be_first(request, output, limits, program)
        os.write(writer, str(first).encode())
    except BaseException as error:  # noqa: BLE001 - told to the server
        os.write(writer, str(error).encode("utf-8", "replace"))
    finally:
        os._exit(0)


def _be_first(request: Request, output: int, limits: ShellLimits, program: bytes) -> NoReturn:
    """Process 1 of a background command's namespace."""
    status = 126
    try:
        workspace_root.mount_nested_proc()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _terminate)
        signal.signal(signal.SIGALRM, _kill)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        main = os.fork()
        if main == 0:
            become_command(request, output, limits, program)
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        confine(limits, program)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        status = _wait_for_all(main)
    finally:
        os._exit(status)


def _terminate(number: int, frame: object) -> None:
    try:
        os.kill(-1, signal.SIGTERM)
    except ProcessLookupError:
        return
    signal.setitimer(signal.ITIMER_REAL, _GRACE)


def _kill(number: int, frame: object) -> None:
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_for_all(main: int) -> int:
    status = 0
    while True:
        try:
            pid, found = os.wait()
        except ChildProcessError:
            return status
        if pid == main:
            code = os.waitstatus_to_exitcode(found)
            status = code if code >= 0 else 128 - code
