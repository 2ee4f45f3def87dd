"""What a hostile program tries, one test a promise.

Each looks at the effect, on the host where it can be seen there, and not only at the verdict.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codemill.sandbox import Job, RunResult, SandboxPool
from sandbox.conftest import LIMITS, RunSource

SECRET = "hunter2-of-the-host"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host, with a secret in its environment."""
    with subprocess.Popen(["sleep", "60"], env={"CODEMILL_SECRET": SECRET, "PATH": os.environ["PATH"]}) as process:
        yield process
        assert process.poll() is None, "a process of the host was ended"
        process.kill()


def arrived(server: socket.socket) -> bool:
    return bool(select.select([server], [], [], 0.05)[0])


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_no_network(run_python: RunSource, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        program = (
            f"import socket\ns = socket.socket(socket.AF_INET, {int(kind)})\n"
            f"s.connect(('127.0.0.1', {server.getsockname()[1]}))\ns.send(b'x')\n"
        )
        result = run_python(program)
        assert result.status == "blocked"
        assert result.refused == ("socket(family 2)",)
        assert not arrived(server)


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_no_unix_sockets_of_the_host(run_python: RunSource, tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        address = f"\0codemill-test-{os.getpid()}" if abstract else str(tmp_path / "socket")
        server.bind(address)
        server.listen()
        result = run_python(f"import socket\nsocket.socket(socket.AF_UNIX).connect({address!r})\n")
        assert result.status == "failed"
        assert not arrived(server)


def test_unix_sockets_of_its_own_work(run_python: RunSource) -> None:
    result = run_python("import asyncio\nasyncio.run(asyncio.sleep(0))\nprint('done')\n")
    assert (result.status, result.stdout) == ("ok", "done\n")


def test_a_fork_bomb_is_contained(pool: SandboxPool, run_python: RunSource) -> None:
    result = run_python("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n")
    assert result.status == "timeout"
    assert num_processes(pool) == 0


def test_the_number_of_processes_is_limited(run_python: RunSource) -> None:
    program = (
        "import os, signal\nn = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            signal.pause()\n"
        "        n += 1\nexcept OSError:\n    print(n)\n"
    )
    assert 0 < int(run_python(program).stdout) < LIMITS.processes


def test_threads_count_as_processes(run_python: RunSource) -> None:
    program = (
        "import threading, time\n"
        "for n in range(100):\n    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
    )
    assert "can't start new thread" in run_python(program).stderr


def test_memory_of_one_process(run_python: RunSource) -> None:
    result = run_python("data = []\nwhile True:\n    data.append(bytearray(1 << 20))\n")
    assert result.status == "memory"
    assert result.memory < 2 * LIMITS.memory


def test_memory_of_many_processes_together(run_python: RunSource) -> None:
    program = (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        data = bytearray(64 << 20)\n"
        "        for i in range(0, len(data), 4096):\n            data[i] = 1\n        time.sleep(9)\ntime.sleep(9)\n"
    )
    assert run_python(program).status == "memory"


def test_pages_shared_after_a_fork_count_once(run_python: RunSource) -> None:
    program = (
        "import os, time\ndata = bytearray(100 << 20)\nfor i in range(0, len(data), 4096):\n    data[i] = 1\n"
        "for _ in range(4):\n    if os.fork() == 0:\n        time.sleep(0.3)\n        os._exit(0)\n"
        "for _ in range(4):\n    os.wait()\n"
    )
    assert run_python(program).status == "ok"


def test_cpu_time(run_python: RunSource) -> None:
    result = run_python("while True:\n    pass\n")
    assert result.status == "timeout"
    assert "CPU" in result.detail
    assert 0.9 < result.cpu_seconds < 1.6


def test_cpu_time_of_all_processes_together(run_python: RunSource) -> None:
    program = "import os\nfor _ in range(3):\n    os.fork()\nwhile True:\n    pass\n"
    result = run_python(program, replace(LIMITS, wall_seconds=30.0))
    assert result.status == "timeout"
    assert result.cpu_seconds < 3.0


def test_sleep(run_python: RunSource) -> None:
    start = time.monotonic()
    result = run_python("import time\ntime.sleep(600)\n")
    assert (result.status, result.detail) == ("timeout", "more than 2 s")
    assert time.monotonic() - start < 10


def test_a_program_that_ignores_every_signal(run_python: RunSource) -> None:
    program = (
        "import signal, time\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    time.sleep(1)\n"
    )
    assert run_python(program).status == "timeout"


def test_one_big_file(run_python: RunSource) -> None:
    result = run_python("with open('big', 'wb') as f:\n    while True:\n        f.write(bytes(1 << 20))\n")
    assert result.status == "failed"
    assert "No space left" in result.stderr or "File too large" in result.stderr


def test_many_files_of_moderate_size(run_python: RunSource) -> None:
    program = (
        "import shutil\ntry:\n    for n in range(200):\n"
        "        with open(f'{n}', 'wb') as f:\n            f.write(bytes(1 << 20))\n"
        "except OSError as error:\n    print(n, error.errno)\n"
    )
    written, errno = map(int, run_python(program).stdout.split())
    assert (written << 20) <= LIMITS.disk
    assert errno == 28


def test_many_empty_files(run_python: RunSource) -> None:
    result = run_python("for n in range(10**6):\n    open(f'{n}', 'w').close()\n", replace(LIMITS, cpu_seconds=9.0))
    assert "No space left" in result.stderr


def test_the_next_run_finds_an_empty_folder(run_python: RunSource) -> None:
    run_python("open('/tmp/left', 'w').close()\nopen('/dev/shm/left', 'w').close()\nopen('left', 'w').close()\n")
    result = run_python("import os\nprint('left' in os.listdir('/tmp'), os.listdir('/dev/shm'), os.listdir('.'))\n")
    assert result.stdout == "False [] ['main.py']\n"  # /tmp may hold the interpreter, if that lies below the host's


@pytest.mark.parametrize("path", ["/usr/x", "/etc/passwd", "/dev/x", "/proc/sys/kernel/hostname", "/x"])
def test_nothing_outside_the_work_directory_can_be_written(run_python: RunSource, path: str) -> None:
    result = run_python(f"open({path!r}, 'w').write('x')\n")
    assert result.status in ("blocked", "failed")
    assert result.exit_code == 1


def test_no_file_of_the_host_can_be_written(run_python: RunSource, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("as it was")
    assert run_python(f"open({str(target)!r}, 'w').write('x')\n").status == "failed"
    assert target.read_text() == "as it was"


def test_files_of_the_host_are_not_there(run_python: RunSource, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    paths = ["/etc/shadow", str(tmp_path / "secret"), str(Path.home() / ".bashrc"), "/var/log", "/boot", "/root/.ssh"]
    result = run_python(f"import os\nprint([path for path in {paths} if os.path.lexists(path)])\n")
    assert result.stdout == "[]\n"


def test_the_home_directory_holds_nothing(run_python: RunSource) -> None:
    result = run_python("import os\nprint(os.listdir(os.path.expanduser('~')))\n")
    assert result.stdout == "[]\n"


def test_no_environment_of_the_host(
    run_python: RunSource, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEMILL_SECRET", SECRET)
    program = (
        "import glob, os\nfound = [dict(os.environ)]\nfor path in glob.glob('/proc/*/environ'):\n    try:\n"
        "        found.append(open(path).read())\n    except OSError:\n        pass\nprint(found)\n"
    )
    result = run_python(program)
    assert result.status == "ok"
    assert SECRET not in result.stdout
    assert "'PYTHONPATH'" not in result.stdout  # as a variable: where the package lies is no secret


def test_no_process_of_the_host_is_seen(run_python: RunSource) -> None:
    result = run_python("import os\nprint(sorted(int(n) for n in os.listdir('/proc') if n.isdigit())[:-1])\n")
    assert result.stdout == "[1]\n"


def test_no_signal_reaches_the_host(run_python: RunSource, bystander: subprocess.Popen[bytes]) -> None:
    program = (
        "import os, signal\nfor pid in [*range(1, os.getpid()), *range(os.getpid() + 1, 70000)]:\n    try:\n"
        "        os.kill(pid, signal.SIGKILL)\n        print(pid)\n    except OSError:\n        pass\n"
    )
    reached = run_python(program).stdout.split()
    assert reached in ([], ["1"])  # process 1 is the sandbox's own and takes no signal from inside
    assert run_python("print('still there')\n").stdout == "still there\n"


def test_its_server_survives_a_signal_to_everybody(pool: SandboxPool, run_python: RunSource) -> None:
    program = (
        "import os\nfor pid in (1, -1):\n    try:\n        os.kill(pid, 9)\n    except PermissionError:\n        pass\n"
    )
    assert run_python(program).status in ("ok", "failed")
    assert run_python("print('still there')\n").stdout == "still there\n"


@pytest.mark.parametrize("number", [2, 3, 15, 19])
def test_its_server_heeds_no_signal_of_a_program(run_python: RunSource, number: int) -> None:
    program = (
        f"import os, time\ntry:\n    os.kill(1, {number})\nexcept OSError:\n    pass\ntime.sleep(0.1)\nprint('on')\n"
    )
    assert run_python(program).stdout == "on\n"


@pytest.mark.parametrize("text", ["broken by the harness", "started\nbroken by the harness"])
def test_a_program_cannot_blame_the_harness(pool: SandboxPool, text: str) -> None:
    program = (
        "import os\nfor descriptor in range(3, 20):\n    try:\n"
        f"        os.write(descriptor, {text!r}.encode())\n    except OSError:\n        pass\nos._exit(125)\n"
    )
    assert pool.run(Job(source=program.encode(), limits=LIMITS)).status == "failed"


def test_a_program_cannot_take_its_report_back(pool: SandboxPool) -> None:
    program = (
        "import os\nfor n in range(3, 40):\n    try:\n"
        "        r = os.open(f'/proc/self/fd/{n}', os.O_RDONLY | os.O_NONBLOCK)\n        os.read(r, 100)\n"
        "        os.write(n, b'broken by me')\n    except OSError:\n        pass\nos._exit(1)\n"
    )
    job = Job(source=program.encode(), limits=LIMITS)
    assert {pool.run(job).status for _ in range(60)} == {"failed"}


def test_a_name_of_a_process_in_any_bytes(run_python: RunSource) -> None:
    program = (
        "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff', 0, 0, 0)\ntime.sleep(0.2)\nraise SystemExit(1)\n"
    )
    assert run_python(program).status == "failed"


def test_memory_of_a_process_whose_first_thread_has_ended(run_python: RunSource) -> None:
    program = (
        "import ctypes, os, threading, time\n"
        "def fill():\n    data = [bytearray(b'x' * (1 << 20)) for _ in range(200)]\n    time.sleep(30)\n"
        "for _ in range(2):\n    if os.fork() == 0:\n        threading.Thread(target=fill).start()\n"
        "        ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\ntime.sleep(30)\n"
    )
    assert run_python(program).status == "memory"


def test_limits_of_the_server_cannot_be_changed(pool: SandboxPool, run_python: RunSource) -> None:
    result = run_python("import resource\nresource.prlimit(1, resource.RLIMIT_NOFILE, (8, 8))\n")
    assert (result.status, result.refused) == ("blocked", ("prlimit64",))
    assert run_python("import resource\nprint(resource.prlimit(0, resource.RLIMIT_NOFILE)[0])\n").status == "ok"


def test_cpu_time_of_children_that_nobody_waits_for(run_python: RunSource) -> None:
    program = (
        "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfor _ in range(30):\n"
        "    if os.fork() == 0:\n        while time.process_time() < 0.3:\n            pass\n        os._exit(0)\n"
        "    time.sleep(0.4)\n"
    )
    result = run_python(program, replace(LIMITS, wall_seconds=20.0))
    assert (result.status, "CPU" in result.detail) == ("timeout", True)


def test_deep_folders_do_not_break_the_collection(run_python: RunSource) -> None:
    program = (
        "import os\nopen('top', 'w').close()\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n"
        "open('bottom', 'w').close()\n"
    )
    result = run_python(program, collect=("top", "*bottom"))
    assert (result.status, list(result.files)) == ("ok", ["top"])


def test_huge_sparse_files_stay_behind(run_python: RunSource) -> None:
    program = (
        "import os\nfor n in range(500):\n    with open(f'{n}.bin', 'wb') as f:\n        f.truncate(15 << 20)\n"
        "with open('small.bin', 'wb') as f:\n    f.write(b'x')\n"
    )
    start = time.monotonic()
    result = run_python(program, collect=("*.bin",))
    assert result.status == "ok"
    assert sum(map(len, result.files.values())) <= 64 << 20
    assert result.files["small.bin"] == b"x"
    assert time.monotonic() - start < 10


def test_a_descriptor_in_flight_does_not_hold_the_run_up(run_python: RunSource) -> None:
    program = (
        "import socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [1, 2, a.fileno(), b.fileno()])\n"
        "print('sent')\n"
    )
    result = run_python(program)
    assert (result.status, result.stdout) == ("ok", "sent\n")


CALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("ptrace", "libc.ptrace(16, 1, 0, 0)"),
        ("process_vm_readv", "libc.process_vm_readv(1, None, 0, None, 0, 0)"),
        ("unshare", "libc.unshare(0x10000000)"),
        ("setns", "libc.setns(0, 0)"),
        ("chroot", "libc.chroot(b'.')"),
        ("keyctl", "libc.syscall(250 if os.uname().machine == 'x86_64' else 219, 0, 0)"),
        ("shmget", "libc.shmget(0, 4096, 0o1600)"),
        ("reboot", "libc.reboot(0)"),
    ],
)
def test_a_refused_system_call(run_python: RunSource, name: str, call: str) -> None:
    result = run_python(f"{CALL}result = {call}\nprint(result, ctypes.get_errno())\nraise SystemExit(1)\n")
    assert result.stdout == "-1 1\n"
    assert (result.status, result.refused) == ("blocked", (name,))


@pytest.mark.parametrize("call", ["libc.mount(b'x', b'/tmp', b'tmpfs', 0, None)", "libc.umount2(b'/sandbox', 2)"])
def test_no_mounts(run_python: RunSource, call: str) -> None:
    assert run_python(f"{CALL}print({call}, ctypes.get_errno())\n").stdout == "-1 1\n"


def test_no_namespace_through_clone(run_python: RunSource) -> None:
    number = "56 if os.uname().machine == 'x86_64' else 220"
    result = run_python(f"{CALL}print(libc.syscall({number}, 0x10000011, 0, 0, 0, 0))\nraise SystemExit(1)\n")
    assert (result.stdout, result.refused) == ("-1\n", ("clone(new namespace)",))


def test_no_privileges(run_python: RunSource) -> None:
    result = run_python("import os\nprint(os.getresuid(), open('/proc/self/status').read())\n")
    assert "NoNewPrivs:\t1" in result.stdout
    assert "Seccomp:\t2" in result.stdout
    assert result.stdout.count("0000000000000000") >= 3  # inheritable, permitted, effective
    if os.geteuid() == 0:
        assert not result.stdout.startswith("(0,"), "a mapped root is still root: process limits would not hold"


def test_a_setuid_program_gains_nothing(run_python: RunSource) -> None:
    program = "import subprocess\nprint(subprocess.run(['/usr/bin/su', '-c', 'id'], capture_output=True).returncode)\n"
    assert run_python(program).stdout != "0\n"


def test_links_lead_nowhere(run_python: RunSource, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    program = f"import os\nos.symlink({str(tmp_path / 'secret')!r}, 'a')\nprint(open('a').read())\n"
    result = run_python(program)
    assert result.status == "failed"
    assert SECRET not in result.stdout


def test_links_are_not_followed_when_files_are_brought_back(run_python: RunSource) -> None:
    program = (
        "import os\nos.symlink('/etc/passwd', 'link')\nos.symlink('/proc/1/environ', 'environ')\n"
        "os.symlink('/usr', 'folder')\nos.mkfifo('pipe')\nos.mkdir('sub')\nopen('sub/real', 'w').write('x')\n"
        "os.link('sub/real', 'hard')\n"
    )
    result = run_python(program, collect=("*",))
    assert set(result.files) - {"main.py"} == {"sub/real", "hard"}


def test_a_gigabyte_of_output(run_python: RunSource) -> None:
    start = time.monotonic()
    result = run_python("import sys\nfor _ in range(1024):\n    sys.stdout.write('x' * (1 << 20))\n")
    assert result.status == "output limit"
    assert len(result.stdout) == LIMITS.output
    assert time.monotonic() - start < 5


def test_output_on_stderr_counts_too(run_python: RunSource) -> None:
    result = run_python("import sys\nsys.stderr.write('x' * 100000)\n")
    assert (result.status, len(result.stderr)) == ("output limit", LIMITS.output)


def test_a_child_does_not_outlive_its_parent(pool: SandboxPool, run_python: RunSource) -> None:
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n"
        "    os._exit(0)\nprint('gone')\n"
    )
    start = time.monotonic()
    result = run_python(program)
    assert (result.status, result.stdout) == ("ok", "gone\n")
    assert time.monotonic() - start < 5, "waited for the orphan"
    assert num_processes(pool) == 0


def test_descriptors_are_limited(run_python: RunSource) -> None:
    result = run_python("import os\ndescriptors = []\nwhile True:\n    descriptors.append(os.open('/dev/null', 0))\n")
    assert "Too many open files" in result.stderr


def test_nothing_of_all_this_is_left(pool: SandboxPool, run_python: RunSource) -> None:
    for program in ("import os\nos.fork()\nopen('x', 'w').close()\n", "while True:\n    pass\n"):
        run_python(program)
        assert num_processes(pool) == 0
        assert "/sandbox" not in Path(f"/proc/{server_pid(pool)}/mounts").read_text()


def test_the_server_ends_with_its_owner(tmp_path: Path) -> None:
    script = (
        "from codemill.sandbox import SandboxPool, python_job\n"
        "from sandbox.test_payloads import server_pid\npool = SandboxPool(workers=1)\n"
        "print(server_pid(pool), flush=True)\npool.run(python_job('import time\\ntime.sleep(600)'))\n"
    )
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tests)}) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def server_pid(pool: SandboxPool) -> int:
    """The server of the pool's only worker, as the host numbers it."""
    worker = pool._idle.queue[-1]
    (child,) = Path(f"/proc/{worker._process.pid}/task/{worker._process.pid}/children").read_text().split()
    return int(child)


def num_processes(pool: SandboxPool) -> int:
    """Processes in the sandbox besides its server."""
    pid = server_pid(pool)
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_a_job_sees_the_files_and_input_it_was_given(pool: SandboxPool) -> None:
    program = b"import sys\nprint(open('a/b.txt').read(), sys.stdin.read())\nopen('out/c.bin', 'wb').write(bytes(3))\n"
    job = Job(source=program, files={"a/b.txt": b"text", "out/x": b""}, stdin=b"input", collect=("out/*",))
    result: RunResult = pool.run(job)
    assert result.stdout == "text input\n"
    assert result.files == {"out/c.bin": bytes(3), "out/x": b""}
