"""Many runs at a time: a pool of workers behind one interface, isolated or, where the user insists, not."""

import os
import queue
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from codemill.errors import CodemillError
from codemill.sandbox.job import Job
from codemill.sandbox.result import RunResult
from codemill.sandbox.unsafe import UnsafeWorker
from codemill.sandbox.worker import Worker


class Runner(Protocol):
    """Something that runs one job at a time."""

    def run(self, job: Job) -> RunResult:
        """Run it; the verdict is in the result, never in an exception."""

    def kill(self) -> None:
        """End its run at once, from any thread."""

    def close(self) -> None:
        """End everything."""


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SandboxPool:
    """Runs jobs from any number of threads, at most `workers` (default: one a core) at a time.

    unsafe: run without isolation, with limits only. preload, readable: see `Worker`. Workers start when they are first
    needed. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        workers: int | None = None,
        unsafe: bool = False,
        preload: Sequence[str] = (),
        readable: Sequence[str | Path] = (),
    ) -> None:
        """Raises IsolationError where the host cannot isolate a program and `unsafe` is not set: it fails closed."""
        self.num_workers = workers or num_cores()
        self._make = (lambda: UnsafeWorker()) if unsafe else (lambda: Worker(preload, readable))
        self._idle: queue.LifoQueue[Runner | None] = queue.LifoQueue()
        for _ in range(self.num_workers - 1):
            self._idle.put(None)  # a place where a worker may be started
        self._busy: set[Runner] = set()
        self._aborted = self._closed = False
        self._owner = os.getpid()
        self._idle.put(self._make())

    def run(self, job: Job) -> RunResult:
        """Run one job, when a worker is free. Raises CodemillError in a forked child, and after `close`."""
        if self._closed or self._owner != os.getpid():
            raise CodemillError("this sandbox is closed, or belongs to the process that this one was forked from")
        worker = self._idle.get()
        try:
            worker = worker or self._make()
            self._busy.add(worker)
            if self._aborted:
                return RunResult("harness error", detail="interrupted")
            return worker.run(job)
        finally:
            if worker is not None:
                self._busy.discard(worker)
            self._idle.put(worker)

    def abort(self) -> None:
        """End all runs at once: those that are going on, and all that would begin, come back as "harness error"."""
        self._aborted = True
        for worker in list(self._busy):
            worker.kill()

    def map(self, jobs: Iterable[Job]) -> Iterator[RunResult]:
        """Run all jobs -> their results in the same order."""
        with ThreadPoolExecutor(self.num_workers) as threads:
            yield from threads.map(self.run, jobs)

    def close(self) -> None:
        """End all workers; in a forked child nothing. Runs that are still going on must have come back."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        for _ in range(self.num_workers):
            worker = self._idle.get()
            if worker is not None:
                worker.close()

    def __enter__(self) -> "SandboxPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
