"""What happened in a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "failed", "timeout", "memory", "output limit", "blocked", "harness error"]
STATUSES: tuple[Status, ...] = ("ok", "failed", "timeout", "memory", "output limit", "blocked", "harness error")


@dataclass(frozen=True)
class RunResult:
    """The verdict on a run and what it left.

    status: "ok" (exit status 0), "failed" (any other, or a signal of its own doing), "timeout" (CPU or wall limit),
    "memory", "output limit", "blocked" (it failed because the sandbox refused what it did), "harness error" (the
    sandbox itself failed: says nothing about the program).
    exit_code: negative for a signal, as in `subprocess`; None if it never ended by itself.
    completed: Python source was executed to its last line, not left early by an exit; for commands, exit status 0.
    stdout, stderr: what was written up to the limit, bytes that are not UTF-8 replaced. detail: one line on why the
    status is not "ok". refused: system calls that the sandbox refused. files: what the job asked to bring back.
    cpu_seconds, memory: used by all processes together, not by a build; memory is the peak in bytes, sampled.
    waited_seconds: how long the run was ready to compute but had no CPU: above 0 on a loaded machine.
    """

    status: Status
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    completed: bool = False
    detail: str = ""
    refused: tuple[str, ...] = ()
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    waited_seconds: float = 0.0
    memory: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)
