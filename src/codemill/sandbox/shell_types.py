"""What a command of the workspace's shell may use, and how it ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIB = 1 << 20
# timeout, cancelled, memory, processes, disk and output: the command was ended for that reason. broken: the sandbox
# itself ended.
ShellStatus = Literal["ok", "failed", "timeout", "cancelled", "memory", "processes", "disk", "output", "broken"]


@dataclass(frozen=True)
class ShellLimits:
    """What one command may use. Sizes in bytes.

    memory: of all its processes together. processes: processes of all commands at a time. scratch: /tmp, /dev/shm and
    what is written to the home directory, for the whole session, in memory. disk: how much less free space the
    workspace's disk may have than at the command's start, and the size of one file. output: what is kept of it; `shown`
    characters are given back. nice: added to the scheduling priority's number.
    """

    memory: int = 4096 * MIB
    processes: int = 1024
    open_files: int = 4096
    scratch: int = 1024 * MIB
    disk: int = 4096 * MIB
    output: int = 64 * MIB
    shown: int = 30_000
    nice: int = 5


@dataclass(frozen=True)
class ShellResult:
    """How a command ended. exit_code: as a shell gives it, 128 + N for signal N; None where it did not come to one.

    output: standard output and error in the order in which they came, as a terminal would show them, the middle left
    out if it is long: then `whole_output` is the file that has all of it. detail: in words, what ended it and what it
    left running. seconds: of time.
    """

    exit_code: int | None
    output: str
    status: ShellStatus
    seconds: float
    detail: str = ""
    whole_output: Path | None = None
