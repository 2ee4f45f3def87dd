"""Running without isolation: limits and verdicts hold all the same."""

import pytest

from codemill.sandbox import Job, Limits, SandboxPool, python_job

LIMITS = Limits(cpu_seconds=1.0, wall_seconds=2.0, memory=512 << 20, output=1 << 16)


@pytest.mark.parametrize(
    ("source", "status", "completed"),
    [
        ("print(input())", "ok", True),
        ("import sys; sys.exit(0)", "ok", False),
        ("1 / 0", "failed", False),
        ("while True: pass", "timeout", False),
        ("import time; time.sleep(60)", "timeout", False),
        ("'x' * 10**12", "memory", False),
        ("print('x' * 10**6)", "output limit", False),
        ("x = 1\0", "failed", False),
    ],
)
def test_verdicts(source: str, status: str, completed: bool) -> None:
    with SandboxPool(workers=1, unsafe=True) as pool:
        result = pool.run(python_job(source, stdin="in", limits=LIMITS))
    assert (result.status, result.completed) == (status, completed), result


def test_children_end_with_the_run() -> None:
    program = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('done')\n"
    with SandboxPool(workers=1, unsafe=True) as pool:
        result = pool.run(python_job(program, limits=LIMITS))
    assert (result.status, result.stdout) == ("ok", "done\n")
    assert result.wall_seconds < 5


def test_commands_builds_and_files() -> None:
    job = Job(build=(("sh", "-c", "cat a/b > c"),), commands=(("cat", "c"),), files={"a/b": b"text"}, collect=("c",))
    with SandboxPool(workers=1, unsafe=True) as pool:
        result = pool.run(job)
        assert (result.status, result.stdout, result.files) == ("ok", "text", {"c": b"text"})
        assert pool.run(Job(commands=(("no-such-program",),))).status == "harness error"
