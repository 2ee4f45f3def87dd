"""What a hostile command tries: each leaves nothing behind, and what became of it is told.

Each runs as the user of the tests and, where that is root, as a user without privileges as well. The tests look at the
effect, on the host where it can be seen there.
"""

import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
SOURCE = TESTS.parent / "src"
SECRET = "hunter2-of-the-host"
MIB = 1 << 20
LIMITS = {
    "memory": 256 * MIB,
    "processes": 200,
    "scratch": 64 * MIB,
    "disk": 64 * MIB,
    "output": 2 * MIB,
    "shown": 2000,
}
SYSTEM_PYTHON = "/usr/bin/python3"


class Machine:
    """A home directory with secrets, a workspace below it, and a shell in it that runs as `user`."""

    def __init__(self, base: Path, user: str | None) -> None:
        self.base, self.user = base, user
        self.home, self.workspace = base / "home", base / "home" / "my project é"
        for path, text in {
            ".ssh/id_ed25519": SECRET,
            ".aws/credentials": SECRET,
            ".netrc": SECRET,
            ".bash_history": SECRET,
            ".local/state/codemill/session.jsonl": SECRET,
            "precious.txt": "precious",
            "my project é/.env": SECRET,
            "my project é/main.py": "print('mine')\n",
            "my project é/.git/HEAD": "ref: refs/heads/main\n",
            "my project é/.git/config": "[core]\n",
            "my project é/.git/refs/heads/x": "",
            "my project é/.git/objects/x": "",
        }.items():
            (self.home / path).parent.mkdir(parents=True, exist_ok=True)
            (self.home / path).write_text(text)
        if user is not None:
            subprocess.run(["chown", "-R", user, str(base)], check=True)
        self._start()

    def _start(self) -> None:
        settings = {"limits": LIMITS}
        python = SYSTEM_PYTHON if self.user else sys.executable
        command = [python, "-B", str(TESTS / "sandbox" / "shell_driver.py"), str(self.workspace), json.dumps(settings)]
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            command = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "PYTHONPATH": str(SOURCE),
                "OPENAI_API_KEY": SECRET,
                "DATABASE_PASSWORD": SECRET,
            },
        )
        answer = self._answer()
        if "refused" in answer:
            self.close()
            pytest.skip(answer["refused"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the shell's process has ended"
        return json.loads(line)

    def run(self, command: str, **options: object) -> SimpleNamespace:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, "timeout": 20.0, **options}) + "\n")
        self.process.stdin.flush()
        return SimpleNamespace(**self._answer())

    def python(self, program: str, **options: object) -> SimpleNamespace:
        (self.workspace / "hostile.py").write_text(program)
        return self.run(f"{SYSTEM_PYTHON} hostile.py", **options)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0
        self.process.stdout.close()


def users() -> list[str | None]:
    return [None, "nobody"] if os.geteuid() == 0 else [None]


@pytest.fixture(scope="module", params=users(), ids=lambda user: user or "own")
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    base = tmp_path_factory.mktemp("machine")
    if request.param is not None:
        outside = Path(tempfile.gettempdir())
        for folder in takewhile(lambda each: each != outside, (base, *base.parents[:4])):
            folder.chmod(folder.stat().st_mode | 0o011)
        if not shutil.which("setpriv") or not Path(SYSTEM_PYTHON).exists():
            pytest.skip("no setpriv or no Python of the system to run as another user")
    made = Machine(base, request.param)
    yield made
    made.close()
    assert no_process_mentions("marker-of-the-tests")


@pytest.fixture
def bystander(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host of the same user, with a secret in its environment."""
    user = pwd.getpwnam(machine.user).pw_uid if machine.user else None
    with subprocess.Popen(
        ["sleep", "60"], env={"CODEMILL_SECRET": SECRET, "PATH": "/usr/bin:/bin"}, user=user
    ) as process:
        yield process
        assert process.poll() is None, "a process of the host was ended"
        process.kill()


def no_process_mentions(text: str) -> bool:
    """Whether no process of the host has it in its command line, after a moment."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        if not any(text.encode() in line for line in lines):
            return True
        time.sleep(0.05)
    return False


def test_the_workspace_itself_can_be_written_and_belongs_to_its_owner(machine: Machine) -> None:
    result = machine.run("echo 'print(6 * 7)' > new.py && mkdir -p a/b && mv new.py a/b && cat a/b/new.py")
    assert (result.status, result.output) == ("ok", "print(6 * 7)\n")
    made = machine.workspace / "a/b/new.py"
    assert made.read_text() == "print(6 * 7)\n"
    assert made.stat().st_uid == machine.workspace.stat().st_uid


def test_deleting_the_home_directory(machine: Machine) -> None:
    result = machine.run('rm -rf ~/precious.txt ~/.ssh ~/.bash_history; rm -rf "$HOME"/.[a-z]*; rm -rf /usr/bin /etc')
    assert result.status == "failed"
    assert (machine.home / "precious.txt").read_text() == "precious"
    assert (machine.home / ".ssh/id_ed25519").exists()
    assert Path("/usr/bin/env").exists()


@pytest.mark.parametrize(
    "path",
    ["~/.ssh/id_ed25519", "~/.aws/credentials", "~/.bash_history", "~/.local/state/codemill/session.jsonl", ".env"],
)
def test_reading_keys(machine: Machine, path: str) -> None:
    result = machine.run(f"cat {path}; cat < {path}; cp {path} copy; grep -r hunter2 {path}; cat copy")
    assert result.status == "failed"
    assert "Permission denied" in result.output
    assert "hunter2" not in result.output


def test_searching_everything_for_secrets(machine: Machine) -> None:
    result = machine.run("grep -rIs hunter2-of-the-host ~ . /tmp /run --exclude=hostile.py; cat ~/.netrc; echo done")
    assert result.output == "done\n"
    assert (machine.workspace / ".env").read_text() == SECRET


def test_passwords_of_the_host(machine: Machine) -> None:
    assert "Permission denied" in machine.run("cat /etc/shadow").output


def test_the_environment_of_the_agent(machine: Machine, bystander: subprocess.Popen[bytes]) -> None:
    result = machine.run(f"env; cat /proc/*/environ /proc/{bystander.pid}/environ; cat /proc/$PPID/environ")
    assert SECRET not in result.output
    assert "Permission denied" in result.output


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_servers_of_the_host(machine: Machine, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        result = machine.run(f"echo x > /dev/{protocol}/127.0.0.1/{server.getsockname()[1]}")
        if kind == socket.SOCK_STREAM:
            assert result.status == "failed"
        assert not select.select([server], [], [], 0.05)[0]


def test_the_network_and_names(machine: Machine) -> None:
    program = (
        "import socket\n"
        "for address in ('1.1.1.1', '8.8.8.8', '169.254.169.254'):\n"
        "    try:\n        socket.create_connection((address, 80), 3)\n        print('REACHED')\n"
        "    except OSError as error:\n        print(error.strerror)\n"
        "try:\n    print('RESOLVED', socket.getaddrinfo('example.com', 80))\nexcept OSError:\n    print('no name')\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try:\n    s.sendto(b'query', ('8.8.8.8', 53))\n    print('SENT')\nexcept OSError:\n    print('no query')\n"
    )
    output = machine.python(program).output
    assert output.splitlines() == ["Network is unreachable"] * 3 + ["no name", "no query"]


def test_a_server_of_its_own_works(machine: Machine) -> None:
    program = (
        "import http.server, threading, urllib.request\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "print(urllib.request.urlopen(f'http://localhost:{server.server_port}/main.py').read().decode())\n"
    )
    assert "print('mine')" in machine.python(program).output


def test_a_fork_bomb(machine: Machine) -> None:
    result = machine.run("bomb() { bomb | bomb & }; bomb; sleep 15 # marker-of-the-tests")
    assert result.status in ("processes", "timeout")
    assert machine.run("echo fine; ps ax > /tmp/all; grep -c bas[h] /tmp/all").output == "fine\n1\n"


def test_a_faster_fork_bomb(machine: Machine) -> None:
    program = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    assert machine.python(program, timeout=5.0).status in ("processes", "timeout")
    assert machine.run("echo fine").output == "fine\n"


def test_a_memory_bomb(machine: Machine) -> None:
    result = machine.python("data = []\nwhile True:\n    data.append(bytearray(1 << 20))\n")
    assert result.status == "memory"
    assert "256 MiB" in result.detail


def test_memory_of_many_processes(machine: Machine) -> None:
    program = (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        data = bytearray(64 << 20)\n"
        "        for i in range(0, len(data), 4096):\n            data[i] = 1\n        time.sleep(9)\ntime.sleep(9)\n"
    )
    assert machine.python(program).status == "memory"


def test_filling_the_scratch(machine: Machine) -> None:
    result = machine.run("cat /dev/zero > /tmp/full; cat /dev/zero > ~/full; rm /tmp/full ~/full; echo still here")
    assert "No space left" in result.output
    assert "still here" in result.output
    assert not (machine.home / "full").exists()


def test_filling_the_disk(machine: Machine) -> None:
    one = machine.run("dd if=/dev/zero of=big bs=1M count=999")
    assert one.status != "ok"
    assert (machine.workspace / "big").stat().st_size <= LIMITS["disk"]
    many = machine.run("for i in $(seq 999); do head -c 1000000 /dev/zero > big$i; done")
    assert many.status == "disk"
    assert len(list(machine.workspace.glob("big*"))) < 900
    for path in machine.workspace.glob("big*"):
        path.unlink()


def test_writing_outside(machine: Machine) -> None:
    targets = ["/usr/x", "/etc/x", "/x", "/var/lib/x", "/opt/x", f"{machine.base}/x", "/dev/x", "/sys/x", "/proc/x"]
    result = machine.run("; ".join(f"echo x > '{path}'" for path in targets) + "; echo x > ~/x; echo x > ../y")
    assert result.output.count("Read-only file system") + result.output.count("No such file") >= len(targets) - 2
    for path in [*targets, machine.home / "x", machine.home / "y"]:
        assert not os.path.lexists(path), path


def test_escapes_through_links(machine: Machine) -> None:
    (machine.workspace / "out").symlink_to(machine.home)
    result = machine.run(
        "echo x > out/precious.txt; ln -s / root; echo x > root/etc/passwd; ln -f /etc/passwd hard;"
        "echo x >> hard; ln ~/precious.txt hard2; echo x >> hard2; cat out/.ssh/id_ed25519; cat root/etc/shadow"
    )
    assert result.status == "failed"
    assert SECRET not in result.output
    assert (machine.home / "precious.txt").read_text() == "precious"
    assert "root" in Path("/etc/passwd").read_text()
    (machine.workspace / "out").unlink()


@pytest.mark.parametrize(
    "command",
    [
        "sleep 50.5 &",
        "nohup sleep 50.5 > /dev/null 2>&1 &",
        "setsid sleep 50.5 &",
        "setsid -f sleep 50.5",
        "(setsid sh -c 'sleep 50.5 & exit' &); sleep 0.2",
        "trap '' TERM HUP INT; (trap '' TERM HUP INT; sleep 50.5) & disown -a; sleep 0.1",
    ],
)
def test_daemons(machine: Machine, command: str) -> None:
    start = time.monotonic()
    result = machine.run(command)
    assert time.monotonic() - start < 5
    assert result.status == "ok"
    assert "left running" in result.detail
    assert no_process_mentions("50.5")


def test_jobs_for_later(machine: Machine) -> None:
    machine.run(
        "echo 'touch /tmp/marker-of-the-tests' | at now; (crontab -l; echo '* * * * * touch ~/cron') | crontab -;"
        "mkdir -p ~/.config/systemd/user ~/.config/autostart; echo x > ~/.config/systemd/user/x.service;"
        "echo x > ~/.config/autostart/x.desktop; echo 'touch ~/x' >> ~/.bashrc; systemd-run --user touch ~/x"
    )
    for name in (".config/systemd/user/x.service", ".config/autostart/x.desktop", ".bashrc", "cron"):
        assert not (machine.home / name).exists()
    assert not any(Path("/var/spool/cron").glob("**/nobody"))


def test_signals_and_tracing(machine: Machine, bystander: subprocess.Popen[bytes]) -> None:
    pids = [bystander.pid, machine.process.pid, os.getpid()]
    program = (
        f"import ctypes, os, signal\nlibc = ctypes.CDLL(None, use_errno=True)\nfor pid in {pids}:\n"
        "    try:\n        os.kill(pid, signal.SIGKILL)\n        print('SIGNALLED')\n    except OSError as error:\n"
        "        print(error.strerror)\n"
        "    print(libc.ptrace(16, pid, 0, 0), ctypes.get_errno())\n"
        "    try:\n        open(f'/proc/{pid}/mem', 'r+b')\n        print('OPENED')\n"
        "    except OSError as error:\n        pass\n"
    )
    output = machine.python(program).output
    assert output.count("No such process") == 3
    assert output.count("-1 1\n") == 3


def test_the_sandbox_s_own_processes(machine: Machine) -> None:
    result = machine.run(
        "kill -9 1; kill -TERM 1; kill -INT 1; kill -9 -1; cat /proc/1/environ; ls /proc/1/root /proc/1/fd"
    )
    assert result.status == "failed"
    assert machine.run("ls -l /proc/1/root /proc/1/cwd /proc/1/fd/ 2>&1 | grep -c denied").output.strip() != "0"
    assert machine.run("echo alive").output == "alive\n"


@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs none /usr",
        "mount -o remount,rw /",
        "umount /etc/shadow",
        "umount -l ~/.ssh",
        "mount --bind / .",
        "mount -o remount,rw,bind .git/config",
        "unshare -Ur true",
        "unshare -m true",
        "unshare -p -f true",
        "nsenter -t 1 -m true",
        "chroot / true",
    ],
)
def test_mounts_and_namespaces(machine: Machine, command: str) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    assert machine.run(command).status == "failed"
    assert Path("/proc/self/mountinfo").read_text() == before
    assert "Permission denied" in machine.run("cat ~/.ssh/id_ed25519 /etc/shadow").output


def test_other_processes_roots(machine: Machine) -> None:
    result = machine.run(
        "for p in /proc/[0-9]*; do ls -d $p/root/. && cat $p/root/etc/shadow; done;cat /proc/1/root/etc/shadow"
    )
    assert "root:" not in result.output
    assert "Permission denied" in result.output


def test_hooks_and_settings_of_git(machine: Machine) -> None:
    git = machine.workspace / ".git"
    result = machine.run(
        "echo evil > .git/hooks/pre-commit; mkdir .git/hooks; echo evil >> .git/config; mv .git old; rm -rf .git/hooks;"
        "mv .git/config .git/x; ln -sf /tmp/evil .git/config; echo ../evil > .git/commondir; git config core.pager evil"
    )
    assert result.status == "failed"
    assert git.is_dir()
    assert not (machine.workspace / "old").exists()
    assert list((git / "hooks").iterdir()) == []
    assert (git / "config").read_text() == "[core]\n"
    assert not (git / "commondir").exists()
    assert "commondir" in result.detail
    assert machine.run("echo x > .git/refs/heads/y").status == "ok"


def test_devices(machine: Machine) -> None:
    result = machine.run(
        "ls /dev/sd* /dev/vd* /dev/nvme* /dev/mem /dev/kmsg /dev/fuse /dev/kvm; mknod disk b 254 0; head -c 1 disk;"
        "mknod mem c 1 1; head -c 1 mem; echo x > /dev/kmsg; dd if=/dev/zero of=/dev/vda bs=512 count=1"
    )
    assert result.status == "failed"
    assert "/dev/vda\n" not in result.output
    assert not (machine.workspace / "disk").exists()


def test_settings_of_the_kernel(machine: Machine) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text(), Path("/proc/sys/kernel/pid_max").read_text()
    result = machine.run("echo '|/tmp/x' > /proc/sys/kernel/core_pattern; echo b > /proc/sysrq-trigger; hostname evil")
    assert result.status == "failed"
    assert before == (Path("/proc/sys/kernel/core_pattern").read_text(), Path("/proc/sys/kernel/pid_max").read_text())


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_unix_sockets_of_the_host(tmp_path_factory: pytest.TempPathFactory, abstract: bool) -> None:
    """Those that listen when the shell is opened, wherever they lie: Docker's, a key agent's, a data base's."""
    base = tmp_path_factory.mktemp("sockets")
    with socket.socket(socket.AF_UNIX) as server:
        address = f"\0codemill-test-{os.getpid()}" if abstract else str(base / "home/docker.sock")
        (base / "home").mkdir()
        server.bind(address)
        server.listen()
        made = Machine(base, None)
        result = made.python(f"import socket\nsocket.socket(socket.AF_UNIX).connect({address!r})\nprint('CONNECTED')")
        made.close()
        assert result.status == "failed"
        assert "CONNECTED" not in result.output
        assert not select.select([server], [], [], 0.05)[0]


def test_sockets_of_services(machine: Machine) -> None:
    result = machine.run("ls -A /run | grep -v '^$'; ls /var/run/docker.sock /run/docker.sock /run/dbus /run/systemd")
    assert result.status == "failed"
    assert result.output.count("No such file") == 4


def test_huge_output(machine: Machine) -> None:
    result = machine.run("yes")
    assert result.status == "output"
    assert len(result.output) < 2 * LIMITS["shown"]
    assert "left out" in result.output
    assert result.whole_output is not None


def test_ignoring_every_signal(machine: Machine) -> None:
    result = machine.run("trap '' TERM INT HUP QUIT; while true; do sleep 1; done", timeout=0.5)
    assert result.status == "timeout"
    assert result.seconds < 5


def test_typing_into_a_terminal(machine: Machine) -> None:
    program = (
        "import fcntl, os\nfor name in ('/dev/tty', '/dev/console', '/dev/tty1', '/dev/pts/0'):\n"
        "    try:\n        fcntl.ioctl(os.open(name, os.O_RDWR), 0x5412, b'x')\n        print('TYPED')\n"
        "    except OSError as error:\n        print(error.strerror)\n"
        "for number in range(3):\n    print(os.isatty(number))\n"
    )
    output = machine.python(program).output
    assert "TYPED" not in output
    assert "True" not in output


def test_privileges_of_programs(machine: Machine) -> None:
    result = machine.run("grep -E 'CapEff|CapBnd|CapPrm|NoNewPrivs' /proc/self/status; sudo -n id; su -c id")
    assert result.output.count("0000000000000000") == 3
    assert "NoNewPrivs:\t1" in result.output
    assert "uid=0(root)" not in result.output.replace("NoNewPrivs", "") or machine.user is None


def test_many_open_files(machine: Machine) -> None:
    program = (
        "files = []\ntry:\n    while True:\n        files.append(open('/dev/null'))\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    assert machine.python(program).output == "Too many open files\n"


def test_a_shell_that_is_killed_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = Machine(tmp_path_factory.mktemp("killed"), None)
    assert made.process.stdin is not None
    assert made.process.stdout is not None
    made.process.stdin.write(json.dumps({"command": "setsid sleep 60.25 & sleep 60.25"}) + "\n")
    made.process.stdin.flush()
    time.sleep(0.5)
    assert not no_process_mentions_now("60.25")
    made.process.send_signal(signal.SIGKILL)
    made.process.wait()
    made.process.stdin.close()
    made.process.stdout.close()
    assert no_process_mentions("60.25")


def no_process_mentions_now(text: str) -> bool:
    return not any(text.encode() in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
