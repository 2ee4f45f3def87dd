"""`run` as its users call it: every verdict, and what a program finds around it."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from codemill.errors import UsageError
from codemill.sandbox import STATUSES, Job, Limits, RunResult, SandboxPool, python_job, run


@pytest.fixture(autouse=True)
def isolated(pool: SandboxPool) -> None:
    """Skips where nothing can be isolated."""


def test_standard_input_and_output() -> None:
    result = run("import sys\nprint(input())\nprint('problem', file=sys.stderr)", stdin="hello\n")
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("ok", 0, "hello\n", "problem\n")
    assert result.completed
    assert 0 < result.cpu_seconds < 5


@pytest.mark.parametrize(
    ("source", "status", "exit_code"),
    [
        ("pass", "ok", 0),
        ("raise SystemExit", "ok", 0),
        ("import sys; sys.exit(7)", "failed", 7),
        ("import sys; sys.exit('why')", "failed", 1),
        ("1 / 0", "failed", 1),
        ("this is no Python", "failed", 1),
        ("import os; os.abort()", "failed", -6),
        ("import os; os._exit(3)", "failed", 3),
        ("while True: pass", "timeout", None),
        ("import time; time.sleep(99)", "timeout", None),
        ("'x' * 10**12", "memory", 1),
        ("import mmap; mmap.mmap(-1, 1 << 40)", "memory", 1),
        ("print('x' * 10**7)", "output limit", None),
        ("import socket; socket.socket()", "blocked", 1),
        ("open('/etc/hosts', 'w')", "blocked", 1),
        ("x = 1\0", "failed", 1),
        ("x = '\ud800'", "failed", 1),
        ("(" * 100_000 + ")" * 100_000, "failed", 1),
        ("", "ok", 0),
    ],
)
def test_verdicts(source: str, status: str, exit_code: int | None) -> None:
    result = run(source, timeout=0.5, wall_timeout=1.0, memory=256 << 20)
    assert result.status == status, result
    assert status in STATUSES
    if exit_code is not None:
        assert result.exit_code == exit_code
    assert bool(result.detail) == (status != "ok")


@pytest.mark.parametrize(
    ("source", "completed"),
    [
        ("x = 1", True),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("raise SystemExit(0)", False),
        ("import threading; threading.Thread(target=lambda: 1 / 0).start()", True),
    ],
)
def test_an_early_exit_has_not_reached_the_end(source: str, completed: bool) -> None:
    result = run(source)
    assert (result.status, result.completed) == ("ok", completed)


def test_tracebacks_show_the_program_and_nothing_else() -> None:
    result = run("def f():\n    return 1 / 0\nf()\n")
    assert result.stderr.count("File ") == 2
    assert 'File "/sandbox/work/main.py", line 2, in f\n    return 1 / 0' in result.stderr


def test_it_is_the_main_module() -> None:
    program = (
        "import inspect, __main__\ndef f(): pass\nif __name__ == '__main__':\n"
        "    print(__main__.f is f, inspect.getsource(f), __file__)\n"
    )
    assert run(program).stdout == "True def f(): pass\n /sandbox/work/main.py\n"


def test_threads_exit_functions_and_buffers_are_finished() -> None:
    program = (
        "import atexit, sys, threading, time\natexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nprint('main')\n"
    )
    assert run(program).stdout == "main\nthread\nlast\n"


def test_the_usual_libraries_work() -> None:
    program = (
        "import multiprocessing, subprocess, tempfile, numpy\n"
        "with multiprocessing.Pool(2) as pool:\n    print(pool.map(abs, [-1, -2]))\n"
        "print(subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout.strip())\n"
        "print(numpy.arange(3).sum(), open('/dev/stdin').read(), flush=True)\n"
        "open('/dev/stdout', 'w').write('there')\n"
    )
    result = run(program, stdin="x")
    assert result.stdout.split() == ["[1,", "2]", "hi", "3", "x", "there"], result.stderr


def test_time_zone_locale_and_hash_seed_are_pinned() -> None:
    program = "import locale, time\nprint(time.tzname, locale.getpreferredencoding(), hash('x'), {'b', 'a', 'c'})\n"
    first, second = run(program), run(program)
    assert first.stdout == second.stdout
    assert "UTC" in first.stdout


def test_random_numbers_differ_from_run_to_run() -> None:
    assert run("import random; print(random.random())").stdout != run("import random; print(random.random())").stdout


def test_a_library_that_was_replaced_in_one_run_is_whole_in_the_next() -> None:
    run("import math, builtins\nmath.sqrt = None\nbuiltins.print = None\nimport sys\nsys.modules.clear()\n")
    assert run("import math\nprint(math.sqrt(4))").stdout == "2.0\n"


def test_calls_from_several_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: run(f"print({n})"), range(40)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(40)]


def test_an_unknown_language() -> None:
    with pytest.raises(UsageError, match="klingon"):
        run("x", language="klingon")


def test_commands_stop_at_the_first_that_fails(pool: SandboxPool) -> None:
    commands = (("sh", "-c", "echo one > a"), ("sh", "-c", "cat a; exit 4"), ("sh", "-c", "echo three"))
    result = pool.run(Job(commands=commands))
    assert (result.status, result.exit_code, result.stdout) == ("failed", 4, "one\n")


def test_a_build_has_limits_of_its_own(pool: SandboxPool) -> None:
    slow = ("python3", "-c", "sum(range(100_000_000))")
    limits = Limits(cpu_seconds=0.15)
    assert pool.run(Job(commands=(slow,), limits=limits)).status == "timeout"
    result = pool.run(Job(build=(slow,), commands=(("true",),), limits=limits))
    assert result.status == "ok"
    assert result.cpu_seconds < 0.15
    result = pool.run(Job(build=(("false",),), commands=(("echo", "ran"),)))
    assert (result.status, result.detail, result.stdout) == ("failed", "in the build: exit status 1", "")


def test_a_command_that_is_not_there_is_the_harness_s_error(pool: SandboxPool) -> None:
    result = pool.run(Job(commands=(("no-such-compiler",),)))
    assert result.status == "harness error"
    assert "no-such-compiler" in result.detail or "No such file" in result.detail


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "x\0y"])
def test_files_of_a_job_stay_in_the_work_directory(path: str) -> None:
    with pytest.raises(UsageError, match="work directory"):
        Job(source=b"", files={path: b""})


@pytest.mark.parametrize("name", ["cpu_seconds", "wall_seconds", "memory", "output", "disk", "processes"])
def test_a_limit_must_be_positive(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Limits(**{name: 0})


def test_a_job_too_large_for_its_disk_is_an_error_of_the_harness(pool: SandboxPool) -> None:
    result: RunResult = pool.run(Job(source=b"", files={"x": bytes(9 << 20)}, limits=Limits(disk=8 << 20)))
    assert result.status == "harness error"
    assert pool.run(python_job("print(1)")).status == "ok"


def test_ten_megabytes_of_source() -> None:
    assert run("x = '" + "a" * 10_000_000 + "'\nprint(len(x))").stdout == "10000000\n"


def test_a_trivial_run_takes_milliseconds() -> None:
    run("pass")
    start = time.monotonic()
    for _ in range(20):
        run("pass")
    assert time.monotonic() - start < 5.0  # generous: a cold interpreter for each would take no less


def test_a_command_reads_its_own_copy_of_the_input(pool: SandboxPool) -> None:
    result = pool.run(Job(commands=(("cat",), ("cat",)), stdin=b"twice\n"))
    assert result.stdout == "twice\ntwice\n"


def test_the_interpreter_of_a_virtual_environment(pool: SandboxPool) -> None:
    assert pool.run(python_job("import sys; print(sys.prefix)")).stdout.strip() == sys.prefix


def test_what_a_run_time_tries_by_itself_is_not_held_against_the_program(pool: SandboxPool) -> None:
    program = b"import socket, sys\ntry:\n    socket.socket()\nexcept OSError:\n    sys.exit(1)\n"
    assert pool.run(Job(source=program)).status == "blocked"
    assert pool.run(Job(source=program, tolerated=("socket(family 2)",))).status == "failed"


def test_a_build_that_fails_has_failed(pool: SandboxPool) -> None:
    tries = ("python3", "-c", "import socket; socket.socket()")
    result = pool.run(Job(build=(tries,), commands=(("true",),)))
    assert (result.status, result.detail) == ("failed", "in the build: exit status 1")
    result = pool.run(Job(build=(("sh", "-c", f"{' '.join(map(repr, tries))} || true"),), commands=(("false",),)))
    assert result.status == "failed"


def test_what_a_build_made_and_cannot_be_started_has_failed(pool: SandboxPool) -> None:
    job = Job(build=(("sh", "-c", "echo text > main"),), commands=(("./main",),))
    result = pool.run(job)
    assert (result.status, result.exit_code) == ("failed", 126)


def test_only_the_program_itself_reports_its_end() -> None:
    assert run("import os, sys\nif os.fork():\n    os.wait()\n    sys.exit(0)\n").completed is False
    result = run("import os\nif os.fork() == 0:\n    raise MemoryError\nos.wait()\n")
    assert (result.status, result.completed) == ("ok", True)


def test_a_program_may_close_every_descriptor() -> None:
    assert run("import os\nos.closerange(3, 256)\nprint('fine')\n").stdout == "fine\n"


def test_an_input_that_does_not_fit_leaves_nothing_behind(pool: SandboxPool) -> None:
    for _ in range(50):
        assert pool.run(Job(source=b"", stdin=bytes(9 << 20), limits=Limits(disk=8 << 20))).status == "harness error"
    assert pool.run(python_job("print(1)")).stdout == "1\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_seconds", float("inf")),
        ("cpu_seconds", float("nan")),
        ("wall_seconds", 1e12),
        ("memory", 1e9),
        ("memory", 1 << 64),
        ("output", None),
    ],
)
def test_limits_that_are_none_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "print(1)"},
        {"source": b"", "stdin": "x"},
        {"source": b"", "files": {"a": "text"}},
        {"commands": ["echo", "hi"]},
        {"commands": ((),)},
    ],
)
def test_jobs_of_wrong_types_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"bytes|words"):
        Job(**fields)  # type: ignore[arg-type]
