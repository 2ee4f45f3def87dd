"""Commands in a user's workspace: what works in it, and how they end. What hostile ones try: tests/agent."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codemill.errors import UsageError
from codemill.sandbox import IsolationError
from codemill.sandbox.shell_output import OutputKeeper, as_shown
from codemill.sandbox.shell_types import ShellLimits
from codemill.sandbox.workspace_shell import WorkspaceShell

Open = Callable[..., WorkspaceShell]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    (folder / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return folder


@pytest.fixture
def open_shell(home: Path) -> Iterator[Open]:
    """Opens a shell; in the project of the home directory where nothing else is said."""
    made: list[WorkspaceShell] = []

    def open_one(workspace: Path | None = None, **options: object) -> WorkspaceShell:
        try:
            made.append(WorkspaceShell(workspace or home / "project", **options))  # type: ignore[arg-type]
        except IsolationError as error:
            pytest.skip(str(error))
        return made[-1]

    yield open_one
    for shell in made:
        shell.close()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_output_and_exit_status(open_shell: Open) -> None:
    result = open_shell().run("echo a; echo b >&2; echo c; cat; exit 7")
    assert (result.status, result.exit_code, result.output) == ("failed", 7, "a\nb\nc\n")
    assert 0 < result.seconds < 5


def test_a_signal_gives_the_shell_s_status(open_shell: Open) -> None:
    assert open_shell().run("kill -SEGV $$").exit_code == 128 + signal.SIGSEGV
    assert open_shell().run("no-such-program").exit_code == 127


def test_no_state_but_the_files(open_shell: Open) -> None:
    shell = open_shell()
    shell.run("echo kept > file; echo too > /tmp/file; export X=1; cd /")
    assert shell.run("pwd; echo [$X]; cat file /tmp/file").output == f"{shell.workspace}\n[]\nkept\ntoo\n"


def test_another_folder_and_variables(open_shell: Open, home: Path) -> None:
    (home / "project/sub").mkdir()
    shell = open_shell()
    assert shell.run("pwd; echo $A", cwd=Path("sub"), environment={"A": "1"}).output == f"{home}/project/sub\n1\n"
    missing = shell.run("pwd", cwd=Path("missing"))
    assert missing.status == "failed"
    assert "No such file" in missing.output


def test_the_environment_has_no_keys(open_shell: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    monkeypatch.setenv("LC_TOKEN", "hunter2")
    monkeypatch.setenv("ANYTHING", "hunter2")
    monkeypatch.setenv("VIRTUAL_ENV", "/venv")
    output = open_shell().run("env").output
    assert "hunter2" not in output
    assert "VIRTUAL_ENV=/venv\n" in output
    assert "TERM=dumb\n" in output


def test_python_sees_an_edit_of_the_same_size_in_the_same_second(open_shell: Open, home: Path) -> None:
    shell, module = open_shell(), home / "project" / "sums.py"
    for sign in "-+":
        module.write_text(f"print(3 {sign} 2)\n")
        os.utime(module, (1_700_000_000, 1_700_000_000))
        output = shell.run("python3 -c 'import sums'").output
    assert output == "5\n"


def test_a_time_limit_and_what_came_until_then(open_shell: Open) -> None:
    result = open_shell().run("echo begun; sleep 60", timeout=0.3)
    assert (result.status, result.output) == ("timeout", "begun\n")
    assert result.seconds < 3


def test_a_program_may_clean_up_when_its_time_is_over(open_shell: Open) -> None:
    result = open_shell().run("trap 'echo cleaned; exit 3' TERM; sleep 60 & wait", timeout=0.3)
    assert (result.status, result.exit_code, result.output) == ("timeout", 3, "cleaned\n")


def test_cancellation(open_shell: Open) -> None:
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    result = open_shell().run("sleep 60", cancel=cancel)
    assert result.status == "cancelled"
    assert result.seconds < 3


def test_output_is_shown_while_it_comes(open_shell: Open) -> None:
    came: list[tuple[float, str]] = []
    start = time.monotonic()
    open_shell().run(
        "echo one; sleep 0.5; echo two; printf three",
        on_output=lambda text: came.append((time.monotonic() - start, text)),
    )
    assert "".join(text for _, text in came) == "one\ntwo\nthree"
    assert came[0][0] < 0.4


def test_long_output_is_cut_and_kept(open_shell: Open) -> None:
    shell = open_shell(limits=ShellLimits(shown=3000))
    result = shell.run("seq 100000")
    assert result.status == "ok"
    assert len(result.output) < 3200
    assert result.output.startswith("1\n2\n3\n")
    assert result.output.endswith("99999\n100000\n")
    assert "lines," in result.output
    assert result.whole_output is not None
    assert result.whole_output.read_text() == "".join(f"{n}\n" for n in range(1, 100001))
    assert shell.run(f"grep -c 77 {result.whole_output}").exit_code == 0
    shell.close()
    assert not result.whole_output.exists()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m\x1b]0;title\x07 \x1b(Bx", "red x"),
        ("10%\r50%\r100%", "100%"),
        ("done\r", "done"),
        ("abc\x08\x08de", "ade"),
        ("a\x00b\tc", "ab\tc"),
        ("é\x9b", "é"),
    ],
)
def test_lines_are_as_a_terminal_shows_them(line: str, shown: str) -> None:
    assert as_shown(line) == shown


def test_bytes_that_are_no_text_and_pieces(tmp_path: Path) -> None:
    keeper = OutputKeeper(100, 1000, tmp_path / "file")
    pieces = [keeper.feed(bytes([byte])) for byte in "aé\nb\udcffc\n\nd".encode("utf-8", "surrogateescape")]
    assert "".join(pieces) == "aé\nb\ufffdc\n\n"
    assert keeper.finish() == "d"
    assert keeper.text() == "aé\nb\ufffdc\n\nd"
    assert keeper.file is None


def test_a_command_longer_than_the_kernel_takes(open_shell: Open) -> None:
    result = open_shell().run(f"cat <<'E' | wc -c\n{'x' * 300_000}\nE\n")
    assert result.output.strip() == "300001"


def test_a_zero_byte_is_refused(open_shell: Open) -> None:
    with pytest.raises(UsageError, match="zero byte"):
        open_shell().run("echo \0")


def test_what_is_left_running_is_told(open_shell: Open) -> None:
    result = open_shell().run("sleep 77 & sleep 0.3; exec true")
    assert result.status == "ok"
    assert result.detail == "what it left running was ended: sleep"


def test_programs_that_open_pseudo_terminals(open_shell: Open) -> None:
    program = "import os, pty; m, s = pty.openpty(); os.write(s, b'x'); print(os.isatty(s), os.read(m, 1))"
    assert open_shell().run(f'python3 -c "{program}"').output == "True b'x'\n"


# Background


def test_a_background_command(open_shell: Open) -> None:
    shell = open_shell()
    process = shell.start("echo begun; for i in $(seq 100); do sleep 0.05; echo $i; done")
    wait_until(lambda: process.read_new_output().startswith("begun\n"))
    assert process.poll() is None
    assert shell.processes == [process]
    wait_until(lambda: process.read_new_output())
    result = process.stop()
    assert result is not None
    assert result.status == "cancelled"
    assert shell.run("pgrep -c sleep").exit_code == 1


def test_a_server_in_the_background_is_reached_and_outlives_commands(open_shell: Open) -> None:
    shell = open_shell()
    process = shell.start("exec python3 -m http.server 8123 --bind 127.0.0.1")
    try_it = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8123/\").status)'"
    wait_until(lambda: shell.run(try_it).output == "200\n")
    assert shell.run("sleep 50 & true").status == "ok"
    assert shell.run("kill -9 $(pgrep sleep)").status == "failed"
    assert shell.run(try_it).output == "200\n"
    assert process.poll() is None


def test_a_background_command_is_ended_by_its_number(open_shell: Open) -> None:
    shell = open_shell()
    process = shell.start("trap 'echo bye; exit 5' TERM; while true; do sleep 0.05; done")
    time.sleep(0.2)
    assert shell.run(f"kill {process.id}").status == "ok"
    result = process.wait(5)
    assert result is not None
    assert (result.status, result.exit_code) == ("failed", 5)
    assert result.output.endswith("bye\n")


def test_a_background_command_that_ends_by_itself(open_shell: Open) -> None:
    result = open_shell().start("echo a; exit 4").wait(5)
    assert result is not None
    assert (result.status, result.exit_code, result.output) == ("failed", 4, "a\n")


def test_a_hostile_command_beside_a_background_one(open_shell: Open) -> None:
    shell = open_shell(limits=ShellLimits(processes=200))
    process = shell.start("while true; do sleep 0.1; done")
    result = shell.run("bomb() { bomb | bomb & }; bomb; sleep 20", timeout=15)
    assert result.status in ("processes", "timeout")
    assert shell.run("setsid sleep 60.75 & sleep 0.1; echo fine").output == "fine\n"
    assert process.poll() is None or "background" in result.detail
    assert shell.run("pgrep -f 60.7[5]").exit_code == 1


def test_closing_ends_everything(open_shell: Open) -> None:
    shell = open_shell()
    process = shell.start("setsid sleep 61.125 & setsid sh -c 'trap \"\" TERM; sleep 61.125; true' & wait")
    time.sleep(0.2)
    shell.close()
    assert process.poll() is not None
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"61.125" in line for line in lines)
    with pytest.raises(IsolationError, match="closed"):
        shell.run("true")


def test_a_sandbox_that_breaks_down_is_told_and_replaced(open_shell: Open) -> None:
    shell = open_shell()
    assert shell._process is not None
    threading.Timer(0.2, shell._process.kill).start()
    assert shell.run("sleep 30").status == "broken"
    assert shell.run("echo again").output == "again\n"


# The file system


def test_the_home_directory_is_readable_and_writes_go_nowhere(open_shell: Open, home: Path) -> None:
    (home / ".gitconfig").write_text("[user]\nname = Ada\n")
    shell = open_shell()
    assert (
        shell.run("git config user.name; mkdir -p ~/.cache/x; echo 1 >> ~/.gitconfig; touch ~/.cache/x/y").exit_code
        == 0
    )
    assert shell.run("ls ~/.cache/x; tail -1 ~/.gitconfig").output == "y\n1\n"
    assert (home / ".gitconfig").read_text() == "[user]\nname = Ada\n"
    assert not (home / ".cache").exists()


@pytest.mark.parametrize("name", ["with space", "ümläut", "co,mma:co\\lon", "quote'\"$x"])
def test_names_of_workspaces(open_shell: Open, home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home / name))
    (home / name / "project").mkdir(parents=True)
    shell = open_shell(home / name / "project")
    assert shell.run("echo a > b; echo c > ~/d; cat b ~/d; pwd").output == f"a\nc\n{home / name / 'project'}\n"
    assert (home / name / "project/b").read_text() == "a\n"


def test_a_workspace_behind_a_link(open_shell: Open, home: Path) -> None:
    (home.parent / "link").symlink_to(home / "project")
    shell = open_shell(home.parent / "link")
    assert shell.workspace == home / "project"
    assert shell.run(f"echo a > {home.parent}/link/b; cat b").output == "a\n"
    assert (home / "project/b").exists()


def test_a_workspace_outside_the_home_directory_and_another_writable_folder(open_shell: Open, tmp_path: Path) -> None:
    for name in ("elsewhere", "more", "closed"):
        (tmp_path / name).mkdir()
    shell = open_shell(tmp_path / "elsewhere", writable=[tmp_path / "more"])
    assert shell.run(f"echo a > b && echo c > {tmp_path}/more/d").status == "ok"
    shell.run(f"mkdir -p {tmp_path}/closed; echo c > {tmp_path}/closed/d")
    assert (tmp_path / "more/d").exists()
    assert not (tmp_path / "closed/d").exists()


@pytest.mark.parametrize("folder", ["", "..", "/", "/tmp", "/usr", "~/no-such"])
def test_folders_that_are_no_workspace(home: Path, folder: str) -> None:
    with pytest.raises(UsageError):
        WorkspaceShell(home / folder)


def test_a_hidden_folder_is_no_workspace(home: Path) -> None:
    (home / ".ssh/x").mkdir(parents=True)
    with pytest.raises(UsageError, match="hidden"):
        WorkspaceShell(home / ".ssh/x")


def test_secrets_of_the_workspace(open_shell: Open, home: Path) -> None:
    project = home / "project"
    for name in (".env", ".env.local", ".env.example", "a/id_rsa", "a/server.key", "own.txt", "b.pem"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("secret")
    (project / "a/tracked.pem").write_text("tracked")
    subprocess.run("git init -q && git add a/tracked.pem .env", shell=True, cwd=project, check=True)
    shell = open_shell(hidden=[project / "own.txt"], allowed_secrets=[project / "b.pem"])
    output = shell.run("for f in .env .env.* a/* own.txt b.pem; do echo $f $(cat $f 2>&1); done").output
    denied = {line.split()[0] for line in output.splitlines() if "Permission denied" in line}
    assert denied == {".env", ".env.local", "a/id_rsa", "a/server.key", "own.txt"}
    shell.run("rm -rf .env a")
    assert (project / ".env").read_text() == "secret"


def test_secrets_that_come_after_the_start(open_shell: Open, home: Path) -> None:
    """What holds: commands read them, since they may have made them themselves; the next shell hides them."""
    project = home / "project"
    shell = open_shell()
    (project / ".env").write_text("secret")
    assert shell.run("cat .env; echo KEY=1 > b.env.local; cat b.env.local").output == "secretKEY=1\n"
    assert "Permission denied" in open_shell().run("cat .env").output


@pytest.mark.parametrize("network", [False, True])
def test_servers_of_the_host_s_loopback(open_shell: Open, network: bool) -> None:
    """What holds: with the network come the host's own servers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = open_shell(network=network).run(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached")
    assert ("reached" in result.output) is network


def test_git_works_and_its_hooks_are_closed(open_shell: Open, home: Path) -> None:
    project = home / "project"
    (home / ".gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.org\n")
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=project, check=True)
    shell = open_shell()
    result = shell.run(
        "echo a > b && git add b && git commit -qm c && git checkout -qb d && git stash list && git log --format=%s"
    )
    assert (result.status, result.output) == ("ok", "c\n")
    assert shell.run("echo x > .git/hooks/post-commit").status == "failed"
    assert shell.run("git config core.hooksPath x").status == "failed"
    log = subprocess.run(["git", "log", "--format=%s %an"], cwd=project, capture_output=True, text=True, check=True)
    assert log.stdout == "c Ada\n"


def test_a_linked_worktree(open_shell: Open, home: Path) -> None:
    project = home / "project"
    (home / ".gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.org\n")
    setup = "git init -q -b main && git commit -q --allow-empty -m a && git worktree add -q ../tree"
    subprocess.run(setup, shell=True, cwd=project, check=True)
    shell = open_shell(home / "tree")
    result = shell.run("echo a > b && git add b && git commit -qm second && git log --format=%s")
    assert (result.status, result.output) == ("ok", "second\na\n")
    assert shell.run("echo x > ../project/.git/hooks/post-commit").status == "failed"
    assert shell.run("echo x >> ../project/.git/config").status == "failed"
    assert shell.run("echo x > ../project/x; echo x > .git").status == "failed"
    assert not (project / "x").exists()
    assert (home / "tree/.git").read_text().startswith("gitdir:")


def test_a_git_file_that_claims_another_folder(open_shell: Open, home: Path) -> None:
    other = home / "other"
    (other / "worktrees/x").mkdir(parents=True)
    (other / "HEAD").write_text("ref: x")
    (other / "worktrees/x/commondir").write_text("../..")
    (other / "worktrees/x/gitdir").write_text(f"{home}/somewhere/.git")
    (home / "project/.git").write_text(f"gitdir: {other}/worktrees/x")
    open_shell().run(f"echo x > {other}/HEAD; echo x > {other}/new")
    assert (other / "HEAD").read_text() == "ref: x"
    assert not (other / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
def test_root_in_another_user_s_workspace(open_shell: Open, home: Path) -> None:
    project, nobody = home / "project", pwd.getpwnam("nobody")
    for folder in (home, *home.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    os.chown(project, nobody.pw_uid, nobody.pw_gid)
    shell = open_shell()
    result = shell.run("id -u; touch mine; mkdir -p a; ls -A ~ >/dev/null; echo $?")
    assert result.output.splitlines()[0] == str(nobody.pw_uid)
    assert (project / "mine").stat().st_uid == nobody.pw_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_mount_within_the_workspace(open_shell: Open, home: Path) -> None:
    inner = home / "project/inner"
    inner.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(inner)]).returncode:
        pytest.skip("no mounts here")
    try:
        assert open_shell().run("echo a > inner/b && cat inner/b").output == "a\n"
        assert (inner / "b").read_text() == "a\n"
    finally:
        subprocess.run(["umount", "-l", str(inner)], check=True)


def test_where_nothing_can_be_isolated_nothing_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(IsolationError, match="only on Linux"):
        WorkspaceShell(home / "project")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_host_that_refuses_namespaces(home: Path) -> None:
    """In a user namespace whose number of further ones is limited to none."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom codemill.sandbox.workspace_shell import WorkspaceShell\n"
        f"try:\n    WorkspaceShell(Path({str(home / 'project')!r})).run('touch ran')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec /usr/bin/python3 -c "$0"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limit, program]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "IsolationError" not in done.stdout and done.returncode:
        pytest.skip(done.stderr[-200:])
    assert "IsolationError this host cannot isolate commands" in done.stdout
    assert not (home / "project/ran").exists()


def test_a_command_costs_little(open_shell: Open) -> None:
    shell = open_shell()
    times = [shell.run("true").seconds for _ in range(10)]
    assert sorted(times)[len(times) // 2] < 0.1  # about 6 ms on an idle machine
