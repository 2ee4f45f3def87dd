"""Workers and pools when something goes wrong with them, and where nothing can be isolated."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from codemill.errors import CodemillError
from codemill.sandbox import Job, Limits, SandboxPool, python_job
from codemill.sandbox.worker import Worker, interpreter_paths
from sandbox.test_payloads import server_pid

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(autouse=True)
def isolated(pool: SandboxPool) -> None:
    """Skips where nothing can be isolated."""


def test_it_fails_closed() -> None:
    """Inside a sandbox no further one can be made: nothing is run there, and the error says what would run."""
    program = (
        f"import sys\nsys.path.insert(0, {str(SOURCE)!r})\nfor name in list(sys.modules):\n"
        "    if name.startswith('codemill'):\n        del sys.modules[name]\n"
        "from codemill.sandbox import IsolationError, SandboxPool\n"
        "try:\n    SandboxPool(workers=1)\nexcept IsolationError as error:\n    print(error)\n"
    )
    with Worker(readable=[SOURCE]) as worker:
        result = worker.run(python_job(program))
    assert "cannot isolate" in result.stdout, result
    assert "--unsafe" in result.stdout


def test_what_may_be_read_can_be_read_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "file").write_text("text")
    (tmp_path / "other").write_text("secret")
    program = (
        f"import os\nos.chdir({str(tmp_path)!r})\nprint(open('given/file').read(), os.listdir('.'))\n"
        "open('/tmp/x', 'w').close()\nopen('given/x', 'w')\n"
    )
    with Worker(readable=[tmp_path / "given"]) as worker:
        result = worker.run(python_job(program))
    assert result.stdout == "text ['given']\n"
    assert result.status == "blocked"


def test_a_server_that_is_killed_gives_an_error_and_the_next_job_a_new_one() -> None:
    with SandboxPool(workers=1) as pool:
        pid = server_pid(pool)
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        result = pool.run(python_job("import time; time.sleep(5)", limits=Limits(cpu_seconds=9)))
        assert result.status == "harness error"
        assert "broke down" in result.detail
        assert pool.run(python_job("print('again')")).stdout == "again\n"


def test_an_interrupted_call_does_not_mix_up_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker() as worker:
        with monkeypatch.context() as patched:
            patched.setattr("codemill.sandbox.channel.receive_result", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                worker.run(python_job("print('first')"))
        assert worker.run(python_job("print('second')")).stdout == "second\n"


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_closing_a_pool_ends_its_servers() -> None:
    with SandboxPool(workers=2) as pool:
        list(pool.map([python_job("pass")] * 4))
        pids = [server_pid(pool)]
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_results_come_in_the_order_of_the_jobs() -> None:
    with SandboxPool(workers=2) as pool:
        jobs = [python_job(f"import time; time.sleep({0.2 if n == 0 else 0}); print({n})") for n in range(6)]
        assert [result.stdout for result in pool.map(jobs)] == [f"{n}\n" for n in range(6)]


def test_preloaded_modules_are_there() -> None:
    with Worker(preload=("wave", "no_such_module")) as worker:
        assert worker.run(python_job("import sys; print('wave' in sys.modules)")).stdout == "True\n"


def test_a_user_without_privileges_is_isolated_too() -> None:
    """The checks of `codemill sandbox --check` as another user, with the system's Python."""
    python = "/usr/bin/python3"
    command = [python, "-c", "import codemill.sandbox.check, sys; sys.exit(sys.version_info < (3, 11))"]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    environment = {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]}
    probe = subprocess.run(command, env=environment, capture_output=True, cwd="/")
    if probe.returncode != 0:
        pytest.skip(f"no Python 3.11 for another user here: {probe.stderr.decode()[-200:]}")
    command[-1] = (
        "from codemill.sandbox import SandboxPool\nfrom codemill.sandbox.check import check\n"
        "with SandboxPool(workers=1) as pool:\n"
        "    print([finding.promise.name for finding in check(pool.run) if not finding.holds])\n"
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
    if "cannot isolate" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout == "[]\n", done.stderr


def test_the_interpreter_s_folders_are_found() -> None:
    for path in interpreter_paths():
        assert Path(path).is_dir()
        assert not path.startswith("/usr")
    if not sys.prefix.startswith("/usr"):
        assert any(sys.prefix == path or sys.prefix.startswith(path + "/") for path in interpreter_paths())


def test_a_worker_takes_commands_and_python_in_turn() -> None:
    with Worker() as worker:
        for _ in range(3):
            assert worker.run(Job(commands=(("echo", "a"),))).stdout == "a\n"
            assert worker.run(python_job("print('b')")).stdout == "b\n"


def test_a_closed_pool_refuses_and_a_forked_child_cannot_use_its_parent_s() -> None:
    pool = SandboxPool(workers=1)
    pool.close()
    pool.close()
    with pytest.raises(CodemillError, match="closed"):
        pool.run(python_job("pass"))
    with SandboxPool(workers=1) as mine:
        pid = os.fork()
        if pid == 0:
            try:
                mine.run(python_job("pass"))
            except CodemillError:
                mine.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert mine.run(python_job("print(1)")).stdout == "1\n"
