"""Which of the sandbox's promises hold on this host: each is tried, none is taken from the configuration."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from codemill.sandbox.job import MIB, Job, Limits, python_job
from codemill.sandbox.result import RunResult

_LIMITS = Limits(cpu_seconds=1.0, wall_seconds=1.5, memory=192 * MIB, disk=8 * MIB, output=64 * 1024, processes=16)


@dataclass(frozen=True)
class Promise:
    """One promise: a program that tries to break it prints "contained" or is stopped with the status `stopped_as`."""

    name: str
    means: str
    program: str
    stopped_as: str | None = None


@dataclass(frozen=True)
class Finding:
    """Whether a promise held, and what happened."""

    promise: Promise
    holds: bool
    observed: str


def _attempt(statement: str, imports: str = "os") -> str:
    """A program that says "contained" if `statement` raises OSError."""
    return f"import {imports}\ntry:\n    {statement}\nexcept OSError:\n    print('contained')\n"


_CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_BOMB = """import os, signal
children = 0
try:
    while children < 200:
        if os.fork() == 0:
            signal.pause()
        children += 1
except OSError:
    print("contained")
"""
_FILL = """import os
written = 0
try:
    while written < 64:
        with open(f"{written}.bin", "wb") as file:
            file.write(bytes(1 << 20))
        written += 1
except OSError:
    print("contained")
"""
_MEMORY_OF_ALL = """import os, time
for _ in range(8):
    if os.fork() == 0:
        data = bytearray(64 << 20)
        for i in range(0, len(data), 4096):
            data[i] = 1
        time.sleep(5)
time.sleep(5)
"""
_PROCESSES = """import os
seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print("contained" if set(seen) <= {1, os.getpid()} else seen)
"""
_IDENTITY = """import os
status = open("/proc/self/status").read()
bare = all(line.split()[1].strip("0") == "" for line in status.splitlines() if line.startswith(("CapEff", "CapPrm")))
print("contained" if bare and "NoNewPrivs:\\t1" in status and os.getuid() != 0 else status)
"""
_HOME = """import os
found = [path for path in ("/etc/shadow", "/etc/ssh", "/root/.ssh", "/root/.bashrc", "/var/log", "/var/lib", "/boot")
         if os.path.exists(path)]
print("contained" if not found else found)
"""
_ENVIRONMENT = """import os
try:
    open("/proc/1/environ").read()
except OSError:
    print("contained" if len(os.environ) < 20 else dict(os.environ))
"""

PROMISES = (
    Promise("no network", "network namespace, seccomp", _attempt("socket.socket(socket.AF_INET)", "socket")),
    Promise(
        "no sockets of the host",
        "network namespace, own root",
        _attempt("socket.socket(socket.AF_UNIX).connect('/run/systemd/private')", "socket"),
    ),
    Promise("no processes of the host", "process namespace", _PROCESSES),
    Promise(
        "no tracing", "seccomp", f"{_CALL}print('contained' if libc.ptrace(16, 1, 0, 0) == -1 else 'attached to 1')\n"
    ),
    Promise(
        "no new namespaces",
        "seccomp",
        f"{_CALL}print('contained' if libc.unshare(0x10000000) == -1 else 'a user namespace')\n",
    ),
    Promise("no privileges", "own user, no capabilities, no_new_privs", _IDENTITY),
    Promise("no files of the host", "own root", _HOME),
    Promise("no environment of the host", "cleared, own /proc", _ENVIRONMENT),
    Promise("the system is read-only", "read-only mounts", _attempt("open('/usr/codemill', 'w')")),
    Promise("disk limit", "size-capped tmpfs", _FILL),
    Promise("process limit", "RLIMIT_NPROC", _BOMB),
    Promise("descriptor limit", "RLIMIT_NOFILE", _attempt("[os.open('/dev/null', 0) for _ in range(5000)]")),
    Promise("memory limit of a process", "RLIMIT_AS", "data = bytearray(1 << 30)\n", "memory"),
    Promise("memory limit of all processes", "watched every 25 ms", _MEMORY_OF_ALL, "memory"),
    Promise("CPU time limit", "watched every 25 ms, RLIMIT_CPU", "while True:\n    pass\n", "timeout"),
    Promise("time limit", "watched every 25 ms", "import time\ntime.sleep(60)\n", "timeout"),
    Promise("output limit", "pipes read up to it", "while True:\n    print('x' * 1000)\n", "output limit"),
)


def check(run: Callable[[Job], RunResult]) -> Iterator[Finding]:
    """Try every promise, and last that nothing of all this is left in the sandbox."""
    for promise in PROMISES:
        result = run(python_job(promise.program, limits=_LIMITS))
        holds = result.status == promise.stopped_as or (
            promise.stopped_as is None and result.stdout.strip().endswith("contained")
        )
        observed = "" if holds else (result.detail or result.stdout or result.stderr).strip()[:200]
        yield Finding(promise, holds, observed)
    yield _nothing_left(run)


def _nothing_left(run: Callable[[Job], RunResult]) -> Finding:
    promise = Promise("nothing outlives a run", "everything killed, tmpfs unmounted", _LEAVE)
    run(python_job(promise.program, limits=_LIMITS))
    result = run(python_job(_LOOK, limits=_LIMITS))
    return Finding(promise, result.stdout.strip() == "contained", result.stdout.strip()[:200])


_LEAVE = """import os, time
for folder in (".", "/tmp", "/dev/shm", os.environ["HOME"]):
    open(os.path.join(folder, "left"), "w").close()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
"""
_LOOK = f"""{_PROCESSES.replace("print(", "processes = (")}
import os
files = [f for f in (".", "/tmp", "/dev/shm", os.environ["HOME"]) if os.path.exists(os.path.join(f, "left"))]
print("contained" if processes == "contained" and not files else (processes, files))
"""
