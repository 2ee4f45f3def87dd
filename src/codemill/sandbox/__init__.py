"""Runs untrusted code and says what happened.

    from codemill.sandbox import run
    result = run("print(input())", stdin="hello")      # result.status == "ok", result.stdout == "hello\\n"

Each program runs as a process without privileges, in namespaces of its own: it sees a read-only system, a new and
size-capped folder to work in, no network and no process but its own; a system call filter refuses the rest. Limits hold
for CPU time, time, memory, output, disk, processes and descriptors. When a run is over nothing of it is left.

What this does not cover: errors in the Linux kernel itself, which the program shares with the host; side channels, such
as timing; and a program that sets out to lie about itself: `completed` is reported from the process in which it runs.
Where the host cannot isolate, nothing runs at all, unless the caller says `unsafe=True`.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codemill.sandbox.job import Job, Limits, python_job
    from codemill.sandbox.pool import SandboxPool
    from codemill.sandbox.result import STATUSES, RunResult, Status
    from codemill.sandbox.worker import IsolationError

__all__ = ["STATUSES", "IsolationError", "Job", "Limits", "RunResult", "SandboxPool", "Status", "python_job", "run"]

_EXPORTS = {
    **dict.fromkeys(("Job", "Limits", "python_job"), "codemill.sandbox.job"),
    **dict.fromkeys(("STATUSES", "RunResult", "Status"), "codemill.sandbox.result"),
    "SandboxPool": "codemill.sandbox.pool",
    "IsolationError": "codemill.sandbox.worker",
}


def run(
    source: str,
    language: str = "python",
    stdin: str = "",
    timeout: float | None = None,
    memory: int | None = None,
    wall_timeout: float | None = None,
    files: Mapping[str, bytes] | None = None,
    unsafe: bool = False,
) -> "RunResult":
    """Run a program in a sandbox that is started on the first call and kept. Safe to call from several threads.

    timeout: seconds of CPU time; `wall_timeout` of time, by default two more. memory: bytes, of all its processes.
    None is what the language usually needs: 10 s and 1 GiB for Python. A compiler has limits of its own. files: path in
    the work directory -> content. Raises UsageError for an unknown language, CodemillError where its toolchain is
    missing, IsolationError where the host cannot isolate.
    """
    from codemill.errors import CodemillError
    from codemill.sandbox.languages import find_language, language_job, missing
    from codemill.sandbox.shared import shared_pool

    found = find_language(language)
    if lacks := missing(found):
        raise CodemillError(lacks)
    usual = found.limits
    limits = replace(
        usual,
        cpu_seconds=usual.cpu_seconds if timeout is None else timeout,
        wall_seconds=wall_timeout,
        memory=usual.memory if memory is None else memory,
    )
    return shared_pool(unsafe).run(language_job(found, source, limits, stdin, files))


def __getattr__(name: str) -> Any:
    # On first use: the server imports this package too, and what it does not need its programs would inherit.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
