"""A sandbox for the tests, or a reason why there is none."""

import sys
from collections.abc import Callable, Iterator

import pytest

from codemill.sandbox import IsolationError, Job, Limits, RunResult, SandboxPool

RunSource = Callable[..., RunResult]
LIMITS = Limits(cpu_seconds=1.0, wall_seconds=2.0, memory=256 << 20, disk=16 << 20, output=1 << 16, processes=24)


@pytest.fixture(scope="session")
def pool() -> Iterator[SandboxPool]:
    """One worker with isolation."""
    try:
        made = SandboxPool(workers=1)
    except IsolationError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture(params=["warm", "command"])
def run_python(pool: SandboxPool, request: pytest.FixtureRequest) -> RunSource:
    """Runs Python source: forked from the warm interpreter, and as a command."""

    def run(source: str, limits: Limits = LIMITS, **job: object) -> RunResult:
        if request.param == "warm":
            return pool.run(Job(source=source.encode(), limits=limits, **job))  # type: ignore[arg-type]
        files = {"main.py": source.encode(), **job.pop("files", {})}  # type: ignore[dict-item]
        return pool.run(Job(commands=((sys.executable, "main.py"),), files=files, limits=limits, **job))  # type: ignore[arg-type]

    return run
