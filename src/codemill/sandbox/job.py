"""What is to be run: a program with its files, standard input and limits. No code of this module runs anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from codemill.errors import UsageError

MIB = 1 << 20
MOST_SECONDS = 1_000_000
MOST_UNITS = 1 << 60


@dataclass(frozen=True)
class Limits:
    """What a run may use. Bytes and seconds.

    cpu_seconds: CPU time of all its processes together. wall_seconds: how long it may take, time spent waiting for a
    busy CPU not counted; None is `cpu_seconds` and two seconds more. memory: of all processes and their files together.
    output: of each of stdout and stderr. disk: everything it writes. processes: processes and threads at a time.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float | None = None
    memory: int = 1024 * MIB
    output: int = MIB
    disk: int = 64 * MIB
    processes: int = 64
    open_files: int = 256

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "wall_seconds"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value <= MOST_SECONDS):
                raise UsageError(f"{name} = {value!r}: a limit must be above 0, and at most {MOST_SECONDS} seconds")
        for name in ("memory", "output", "disk", "processes", "open_files"):
            value = getattr(self, name)
            if not (isinstance(value, int) and 0 < value <= MOST_UNITS):
                raise UsageError(f"{name} = {value!r}: a limit must be a whole number above 0, and below 2**60")

    @property
    def wall(self) -> float:
        """The wall limit in seconds, the default put in."""
        return self.cpu_seconds + 2.0 if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True)
class Job:
    """One run: either Python `source`, or `commands` run one after the other until one fails.

    build: commands that run before, such as a compiler, under `build_limits`: a program's limits are its own.
    tolerated: refused system calls that do not make a failure "blocked", because its run-time tries them by itself.
    files: path relative to the work directory -> content, written before the run. collect: patterns (`fnmatch`) of
    files to bring back, `*` crosses folders. environment: variables added to the sandbox's own few.
    """

    source: bytes | None = None
    commands: tuple[tuple[str, ...], ...] = ()
    build: tuple[tuple[str, ...], ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    collect: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tolerated: tuple[str, ...] = ()
    limits: Limits = Limits()
    build_limits: Limits = Limits()

    def __post_init__(self) -> None:
        if (self.source is None) == (not self.commands):
            raise UsageError("a job is either Python source or a list of commands")
        contents = {"source": self.source or b"", "stdin": self.stdin, **self.files}
        for name, content in contents.items():
            if not isinstance(content, bytes):
                raise UsageError(f"{name}: a job takes bytes, not {type(content).__name__}")
        for command in (*self.commands, *self.build):
            if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
                raise UsageError(f"{command!r}: a command is a sequence of words")
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise UsageError(f"{name!r}: a file of a job needs a path inside the work directory")


def python_job(
    source: str, stdin: str = "", limits: Limits = Limits(), files: Mapping[str, bytes] | None = None
) -> Job:
    """A job that runs Python source in the warm interpreter. Lone surrogates and NUL bytes are its own problem."""
    return Job(source=to_bytes(source), stdin=to_bytes(stdin), files=dict(files or {}), limits=limits)


def to_bytes(text: str) -> bytes:
    """UTF-8, with lone surrogates as the bytes that no decoder takes: whatever a model wrote can be handed over."""
    return text.encode("utf-8", "surrogatepass")
