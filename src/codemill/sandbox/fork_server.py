"""The sandbox's server: a warm Python interpreter, process 1 of its own namespaces, that forks a process for each job.

    python -m codemill.sandbox.fork_server DESCRIPTOR SETTINGS

It is started by `worker`, with one end of a socket pair as DESCRIPTOR and SETTINGS as JSON. Two processes come of it:
the first only waits, since a process namespace begins with a child; the second is the server and ends when the socket
does.
"""

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codemill.sandbox import channel, confinement, files, linux, root, seccomp
from codemill.sandbox.birth import warm_up
from codemill.sandbox.confinement import Identity
from codemill.sandbox.job import Job
from codemill.sandbox.result import RunResult
from codemill.sandbox.supervision import Supervisor

_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
_FIRST_UID = 1_000_000_000  # far from every account; each server has its own, because process limits count by user
_WARM = (
    *(
        "array bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq"
    ).split(),
    *("inspect io itertools json math operator os pathlib random re statistics string struct sys textwrap").split(),
    *("time traceback typing threading").split(),
)


def main(argv: Sequence[str]) -> int:
    """Isolate, then serve. What keeps it from that is told over the socket."""
    control = socket.socket(fileno=int(argv[0]))
    settings = json.loads(argv[1])
    os.environ.pop("PYTHONPATH", None)  # it was for finding this module
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a handler would let a program of the same user end the server by it
    warm_up((*_WARM, *settings["preload"]))
    try:
        identity = _enter_namespaces()
    except OSError as error:
        channel.send(control, {"refused": f"no namespaces: {error}"})
        return 1
    server = os.fork()
    if server:
        control.close()
        os.waitpid(server, 0)
        return 0
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)
    try:
        below_tmp = root.enter(settings["readable"], identity.uid, identity.gid)
        confinement.prepare()
        listener = linux.install_filter(seccomp.filter_program())
    except OSError as error:
        channel.send(control, {"refused": f"no file system of its own: {error}"})
        return 1
    channel.send(control, {"ready": True})
    Server(control, identity, listener, below_tmp).serve()
    return 0


def _enter_namespaces() -> Identity:
    """New namespaces for the next child -> who its programs will be.

    Root switches to a user that nobody else is. Anyone else, or a root that may not make namespaces (in a container),
    makes a user namespace first.
    """
    if os.geteuid() == 0:
        try:
            linux.unshare(_NAMESPACES)
            uid = _FIRST_UID + os.getpid()
            return Identity(uid, uid, switch=True)
        except PermissionError:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(_NAMESPACES | linux.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return Identity(uid, gid, switch=False)


@dataclass(frozen=True)
class Server:
    """Takes jobs from `control` one after the other. listener: where refused system calls are reported. below_tmp: see
    `root.enter`."""

    control: socket.socket
    identity: Identity
    listener: int
    below_tmp: Mapping[str, str]

    def serve(self) -> None:
        """Until the other side is gone."""
        gc.collect()
        gc.disable()
        gc.freeze()  # a collection would write to pages that all children share
        while True:
            try:
                job = channel.receive_job(self.control)
            except channel.ChannelClosedError:
                return
            channel.send_result(self.control, self._run(job))

    def _run(self, job: Job) -> RunResult:
        uid, gid = self.identity.uid, self.identity.gid
        disk = max(job.limits.disk, job.build_limits.disk if job.build else 0)
        root.mount_scratch(disk, uid, gid, self.below_tmp)
        try:
            own = {} if job.source is None else {"main.py": job.source}
            files.write_files({**own, **job.files}, uid, gid)
            supervisor = Supervisor(job, self.identity, self.listener, self.control)
            supervisor.run()
            return supervisor.result(files.collect(job.collect))
        except Exception as error:  # noqa: BLE001 - one job must not end the server for those after it
            return RunResult("harness error", detail=f"the job's files or processes: {error}")
        finally:
            root.unmount_scratch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
