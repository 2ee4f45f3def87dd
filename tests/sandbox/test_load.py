"""The same verdicts on a busy machine: limits count what a program uses, not what others take from it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from codemill.sandbox import Limits, SandboxPool, python_job

LIMITS = Limits(cpu_seconds=0.8, wall_seconds=1.5, memory=256 << 20)
BUSY = "import time\nwhile time.process_time() < 0.4:\n    pass\n"
PROGRAMS = {
    BUSY: "ok",
    "import time\ntime.sleep(0.4)\n": "ok",
    f"import os\nif os.fork() == 0:\n    exec({BUSY!r})\n    os._exit(0)\nos.wait()\n": "ok",
    "while True:\n    pass\n": "timeout",
    "import time\ntime.sleep(60)\n": "timeout",
    "assert False": "failed",
    "data = bytearray(1 << 30)": "memory",
}


@contextmanager
def heavy_load() -> Iterator[None]:
    """Four processes a core that do nothing but compute."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def check_verdicts(pool: SandboxPool, rounds: int) -> None:
    jobs = [python_job(source, limits=LIMITS) for source in PROGRAMS]
    with heavy_load():
        for _ in range(rounds):
            results = list(pool.map(jobs))
            assert [result.status for result in results] == list(PROGRAMS.values()), results


def test_verdicts_do_not_change_under_load(pool: SandboxPool) -> None:
    check_verdicts(pool, rounds=1)


@pytest.mark.slow
def test_five_rounds_under_heavy_load() -> None:
    with SandboxPool(workers=2) as both:
        check_verdicts(both, rounds=5)
