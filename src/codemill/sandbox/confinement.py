"""How a process that has just been forked becomes the sandboxed one: limits, another user, no way back."""

import math
import os
import resource
import signal
from dataclasses import dataclass

from codemill.sandbox import linux
from codemill.sandbox.job import Limits

_STACK = 8 << 20


@dataclass(frozen=True)
class Identity:
    """Who the program runs as. `switch`: the process is root and has to become that user."""

    uid: int
    gid: int
    switch: bool


def prepare() -> None:
    """What a server can give up for all its programs at once, once it has built their root."""
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, _STACK), (resource.RLIMIT_MSGQUEUE, 0)):
        resource.setrlimit(kind, (value, value))
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)  # its files in /proc are root's then, though a program's user may be the same


def confine(identity: Identity, limits: Limits, address_space: int | None) -> None:
    """Give up everything that the program must not have. Called in the child, and nothing privileged works afterwards.

    address_space: bytes of virtual memory that the process may have, None for any. The seccomp filter is not installed
    here: the child has it from the server.
    """
    seconds = math.ceil(limits.cpu_seconds) + 1  # for each process; the sum over all of them is watched from outside
    set_limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    set_limit(resource.RLIMIT_NOFILE, limits.open_files)
    set_limit(resource.RLIMIT_NPROC, limits.processes)
    set_limit(resource.RLIMIT_FSIZE, limits.disk)
    if address_space is not None:
        set_limit(resource.RLIMIT_AS, address_space)
    if identity.switch:  # the change of user takes all capabilities with it
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    else:
        linux.drop_capabilities()
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # or its own /proc/self is closed to it; ptrace is refused anyway


def set_limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, or leave the host's where that is lower."""
    highest = resource.getrlimit(kind)[1]
    hard = soft if hard is None else hard
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    resource.setrlimit(kind, (soft, hard))


def attach(stdin: int, stdout: int, stderr: int, keep: int) -> None:
    """Make these descriptors the standard ones, in a session of its own, and close every other but `keep`."""
    os.setsid()
    for source, target in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def restore_signals() -> None:
    """What Python ignores for itself a command must not inherit as ignored."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
