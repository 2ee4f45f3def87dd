"""Other builds of the library than the installed one, in part: `make neon` and `make sanitize` run all of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "builds" / "run.py"
# Every family of kernels, in every format.
SOME = "every_finite or extreme or between_two or every_variant or same_bits_in_any_company or every_byte or positive"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RUN, *arguments], capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64-static") is None,
    reason="needs g++-aarch64-linux-gnu and qemu-user-static",
)
def test_kernels_for_aarch64_in_an_emulator() -> None:
    done = run("neon", "tests/kernels", "tests/models/test_fused.py", "-k", SOME)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("setarch") is None, reason="needs g++ and setarch")
def test_the_thread_pool_has_no_races() -> None:
    done = run("threads")
    if "cannot find -ltsan" in done.stderr or "personality" in done.stderr or "FATAL: ThreadS" in done.stderr:
        pytest.skip("ThreadSanitizer does not run here")
    assert done.returncode == 0, done.stderr[-5000:]
    assert "no races" in done.stdout
