"""A process's peak memory, and a new start of counting it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from codemill.bench.worker import forget_peak, peak_memory
block = bytearray(64 << 20)
del block
before = peak_memory()
forget_peak()
print(before, peak_memory())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system cannot forget a peak")
def test_a_peak_is_forgotten() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 60 << 20
