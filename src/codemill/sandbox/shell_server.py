"""The shell's server: process 1 of the session's namespaces, which starts commands, watches them, and ends them.

    python -m codemill.sandbox.shell_server DESCRIPTOR

It is started by `workspace_shell` with one end of a socket pair as DESCRIPTOR, over which come the settings first, then
a message for each command, with two descriptors: where its output goes, and where its end is told, a line of JSON each.
Two processes come of it: the first only waits, since a process namespace begins with a child.
"""

import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from codemill.sandbox import channel, linux, seccomp, workspace_root
from codemill.sandbox.shell_child import Request, become_command, fork_background
from codemill.sandbox.shell_jobs import Job, Jobs
from codemill.sandbox.shell_types import ShellLimits
from codemill.sandbox.workspace_plan import RootPlan

_NAMESPACES = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
_TICK, _IDLE_TICK = 0.025, 0.1  # seconds between looks: while a command runs; while only background ones do
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def main(argv: Sequence[str]) -> int:
    """Isolate, then serve. What keeps it from that is told over the socket."""
    control = socket.socket(fileno=int(argv[0]))
    settings, _ = channel.receive(control)
    plan, limits = RootPlan.from_json(settings["plan"]), ShellLimits(**settings["limits"])
    try:
        _enter_namespaces(settings["uid"], settings["gid"], plan.network)
    except OSError as error:
        channel.send(control, {"refused": f"no namespaces: {error}"})
        return 1
    server = os.fork()
    if server:
        control.close()
        os.waitpid(server, 0)
        return 0
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if not plan.network:
            _bring_up_loopback()
        workspace_root.enter(plan, limits.processes)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    except OSError as error:
        channel.send(control, {"refused": f"no file system of its own: {error}"})
        return 1
    channel.send(control, {"ready": True})
    ShellServer(control, plan, limits).serve()
    return 0


def _enter_namespaces(uid: int, gid: int, network: bool) -> None:
    """New namespaces for the next child. Root first becomes the owner of the workspace, and has no more rights then
    than any user: in a user namespace nobody has, outside it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(_NAMESPACES | (0 if network else linux.CLONE_NEWNET))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _bring_up_loopback() -> None:
    """Programs may talk to servers that they start themselves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


class ShellServer:
    """Takes commands from `control`: one in the foreground at a time, and any number in the background."""

    def __init__(self, control: socket.socket, plan: RootPlan, limits: ShellLimits) -> None:
        self._control, self._limits = control, limits
        self._program = seccomp.filter_program(seccomp.INTERNET, report=False)
        self._jobs = Jobs(limits, plan.writable[0])
        self._wake, wake_writer = socket.socketpair()
        wake_writer.setblocking(False)
        signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
        self._wake_writer = wake_writer  # or it would be closed
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        """Until the other side is gone; everything here ends with process 1."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        next_look = time.monotonic()
        while True:
            ready = dict(poller.poll(self._patience(next_look)))
            if self._wake.fileno() in ready:
                self._wake.recv(4096)
            if self._control.fileno() in ready and not self._take_message():
                return
            self._jobs.reap()
            if self._jobs and time.monotonic() >= next_look:
                taken = -time.monotonic()
                self._jobs.look()
                taken += time.monotonic()
                next_look = time.monotonic() + max(_TICK if self._jobs.foreground else _IDLE_TICK, 4 * taken)

    def _patience(self, next_look: float) -> float | None:
        return max(0.0, next_look - time.monotonic()) * 1000 if self._jobs else None

    def _take_message(self) -> bool:
        """One message -> False if there will be no more."""
        try:
            first, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
            if not first:
                return False
            message, _ = channel.receive(self._control)
        except (channel.ChannelClosedError, OSError):
            return False
        if "stop" in message:
            self._jobs.stop(message["stop"], message["reason"])
        else:
            self._start(Request.from_json(message), *descriptors)
        return True

    def _start(self, request: Request, output: int, status: int) -> None:
        try:
            pid = self._fork(request, output)
        except OSError as error:
            _tell(status, {"exit_code": None, "reason": "broken", "detail": str(error)})
            os.close(status)
            return
        finally:
            os.close(output)
        job = Job(request.number, pid, status, request.background)
        self._jobs.add(job)
        if request.background:
            _tell(status, {"pid": pid})

    def _fork(self, request: Request, output: int) -> int:
        if request.background:
            return fork_background(request, output, self._limits, self._program)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become_command(request, output, self._limits, self._program)
        return pid


def _tell(status: int, message: dict[str, Any]) -> None:
    try:
        os.write(status, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
