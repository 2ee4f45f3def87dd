"""The sandbox, for suites that judge by running."""

from collections.abc import Iterator

import pytest

from codemill.eval.suite import Run
from codemill.sandbox.pool import SandboxPool
from codemill.sandbox.worker import IsolationError


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Runs jobs in isolation; tests that need it are skipped where the host has none."""
    try:
        pool = SandboxPool(workers=2)
    except IsolationError as error:
        pytest.skip(str(error))
    with pool:
        yield pool.run
