"""The sandbox of an evaluation, started when the first program is to run: some suites run none."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from codemill.sandbox.job import Job
from codemill.sandbox.pool import SandboxPool
from codemill.sandbox.result import RunResult

_PINNED = ("TZ=", "LANG=", "LC_ALL=", "PYTHONHASHSEED=")
_SHOW_ENVIRONMENT = b"import os\nfor name, value in sorted(os.environ.items()):\n    print(f'{name}={value}')\n"


class LazyPool:
    """A SandboxPool that starts late. `run` may be called from several threads."""

    def __init__(self, workers: int, unsafe: bool = False, preload: Sequence[str] = ()) -> None:
        self._settings = (workers, unsafe, tuple(preload))
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._pool: SandboxPool | None = None

    def run(self, job: Job) -> RunResult:
        """Run one job. Raises CodemillError where the host cannot isolate it."""
        with self._lock:
            if self._pool is None:
                workers, unsafe, preload = self._settings
                self._pool = self._stack.enter_context(SandboxPool(workers, unsafe, preload))
        return self._pool.run(job)

    def abort(self) -> None:
        """End all runs at once; see `SandboxPool.abort`."""
        if self._pool is not None:
            self._pool.abort()

    def environment(self) -> dict[str, str]:
        """The variables that could change a verdict, as the programs saw them; empty if none ran."""
        if self._pool is None:
            return {}
        lines = self._pool.run(Job(source=_SHOW_ENVIRONMENT)).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if line.startswith(_PINNED))

    def __enter__(self) -> "LazyPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
