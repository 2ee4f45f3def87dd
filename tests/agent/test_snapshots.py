"""Snapshots of folders: a state that is brought back is the same to the last byte and mode."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from codemill.agent import snapshot_ignored, snapshot_reader, snapshot_scan
from codemill.agent.snapshot_store import Stat
from codemill.agent.snapshots import Snapshots
from codemill.errors import CodemillError, UsageError


def picture(root: Path) -> dict[str, tuple]:
    """All that is in a folder, but for Git's own: kind, mode and content by path."""
    found = {}
    for place, folders, names in os.walk(root):
        if ".git" in folders:
            folders.remove(".git")
        for name in (*folders, *names):
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                found[os.path.relpath(path, root)] = ("link", 0, os.readlink(path))
            elif stat.S_ISREG(mode):
                found[os.path.relpath(path, root)] = ("file", stat.S_IMODE(mode), Path(path).read_bytes())
            else:
                found[os.path.relpath(path, root)] = ("other", stat.S_IMODE(mode), b"")
    return found


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b", *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "src/a.py").write_text("a = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


@pytest.fixture
def snapshots(tmp_path: Path, root: Path) -> Snapshots:
    return Snapshots(tmp_path / "state/snapshots", root)


def test_everything_comes_back(root, snapshots):
    (root / "empty").mkdir()
    (root / "nothing.txt").touch()
    (root / "link").symlink_to("src/a.py")
    (root / "broken").symlink_to("/nowhere")
    (root / "folder-link").symlink_to("src")
    Path(os.fsdecode(os.fsencode(root) + b"/odd \xff\nname")).write_bytes(bytes(range(256)))
    (root / "private").write_text("x")
    (root / "private").chmod(0o400)
    before = picture(root)
    first = snapshots.take()

    subprocess.run(
        "rm -rf src empty nothing.txt link private; mkdir -p new/deep; echo 1 > new/deep/x", shell=True, cwd=root
    )
    subprocess.run(
        "mkdir nothing.txt; echo 2 > src; ln -s run.sh link; chmod 600 run.sh; rm broken", shell=True, cwd=root
    )
    after = picture(root)
    done = snapshots.restore(first)
    assert picture(root) == before
    assert done.skipped == {}
    assert {"new/deep/x", "new/deep", "new"} <= set(done.removed)
    assert {"empty", "src/a.py", "private"} <= set(done.recreated)
    assert {"run.sh", "link", "src", "nothing.txt"} <= set(done.changed)
    snapshots.restore(done.present)
    assert picture(root) == after


def test_the_same_state_is_the_same_snapshot(root, snapshots):
    first = snapshots.take("a")
    assert snapshots.take("b") == first
    (root / "src/a.py").write_text("a = 2\n")
    second = snapshots.take("c")
    assert [(change.path, change.verb) for change in snapshots.diff(first, second)] == [("src/a.py", "changed")]
    (root / "run.sh").chmod(0o644)
    (root / "new").write_text("")
    (root / "src/a.py").unlink()
    found = [(change.path, change.verb) for change in snapshots.diff(second)]
    assert sorted(found) == [("new", "added"), ("run.sh", "mode"), ("src/a.py", "removed")]


def test_a_snapshot_that_is_not_there(snapshots):
    with pytest.raises(UsageError, match="there is no snapshot abc"):
        snapshots.restore("abc")


def test_a_file_that_changes_within_a_tick_of_the_clock_is_noticed(root, snapshots, monkeypatch):
    """The same size, times and inode, since two writes fall into one tick of a slow clock: only the content differs."""
    tick, path = time.time_ns(), root / "src/a.py"
    slow = lambda found: Stat(found.st_size, tick, tick, found.st_ino)  # noqa: E731
    monkeypatch.setattr(snapshot_reader, "_stat", slow)
    path.write_text("a = 1\n")
    first = snapshots.take()
    path.write_text("b = 1\n")
    assert snapshots.take() != first


def test_a_file_with_a_faked_time_is_noticed(root, snapshots):
    path = root / "src/a.py"
    os.utime(path, ns=(10**18, 10**18))
    first = snapshots.take()
    path.write_text("b = 1\n")
    os.utime(path, ns=(10**18, 10**18))
    assert snapshots.take() != first


def test_only_what_changed_is_read(root, snapshots, monkeypatch):
    monkeypatch.setattr(snapshot_reader, "RACY", 0)
    time.sleep(0.02)
    snapshots.take()
    (root / "new").write_text("1")
    read = []
    original = snapshot_reader._read
    monkeypatch.setattr(snapshot_reader, "_read", lambda path: (read.append(path), original(path))[1])
    snapshots.take()
    assert read == [f"{root}/new"]


class TestIgnored:
    def test_what_is_built_stays_as_it_is(self, root, snapshots):
        git(root, "init", "-q")
        (root / ".gitignore").write_text("*.o\nbuild/\n")
        for name in ("build", "node_modules"):
            (root / name).mkdir()
            (root / name / "x").write_text("1")
        (root / "a.o").write_text("1")
        first = snapshots.take()
        for name in ("a.o", "build/x", "node_modules/x", "b.o"):
            (root / name).write_text("2")
        assert snapshots.diff(first) == []
        assert snapshots.restore(first).skipped == {}
        assert (root / "b.o").read_text() == "2"
        assert (root / "build/x").read_text() == "2"

    def test_small_ignored_files_come_back(self, root, snapshots):
        git(root, "init", "-q")
        (root / ".gitignore").write_text("*.db\nlocal/\n.env\nnew/\n")
        (root / "local/deep").mkdir(parents=True)
        for name in ("a.db", ".env", "local/x", "local/deep/y", "src/b.db"):
            (root / name).write_text("1")
        (root / "local/link").symlink_to("x")
        before = picture(root)
        first = snapshots.take()
        subprocess.run(
            "rm -r local .env; echo 2 > a.db; chmod 600 src/b.db; mkdir new; touch new/x c.db", shell=True, cwd=root
        )
        assert {change.path for change in snapshots.diff(first)} >= {
            "a.db",
            ".env",
            "local",
            "local/x",
            "new/x",
            "c.db",
        }
        changed = picture(root)
        done = snapshots.restore(first)
        assert picture(root) == before
        snapshots.restore(done.present)
        assert picture(root) == changed

    def test_large_ignored_files_are_told_of_when_they_changed(self, root, snapshots, monkeypatch):
        monkeypatch.setattr(snapshot_ignored, "MAX_BYTES", 10)
        monkeypatch.setattr(snapshot_ignored, "MAX_IN_FOLDER", 4)
        git(root, "init", "-q")
        (root / ".gitignore").write_text("*.db\ndata/\nmany/\n")
        (root / "data").mkdir()
        (root / "many").mkdir()
        for name in ("a.db", "same.db", "data/large"):
            (root / name).write_text("1" * 20)
        for number in range(5):
            (root / f"many/{number}").write_text("1")
        (root / "data/small").write_text("1")
        first = snapshots.take()
        for name in ("a.db", "data/large", "data/small", "many/0"):
            (root / name).write_text("2" * 30 if name != "data/small" else "2")
        done = snapshots.restore(first)
        assert sorted(done.skipped) == ["a.db", "data/large"]
        assert "it has changed since" in done.skipped["a.db"]
        assert (root / "a.db").read_text() == "2" * 30
        assert (root / "data/small").read_text() == "1"
        assert (root / "many/0").read_text() == "2" * 30

    def test_there_is_room_for_so_much(self, root, snapshots, monkeypatch):
        monkeypatch.setattr(snapshot_ignored, "MAX_COUNT", 2)
        git(root, "init", "-q")
        (root / ".gitignore").write_text("*.db\n")
        for name in ("a.db", "b.db", "c.db"):
            (root / name).write_text("1")
        first = snapshots.take()
        for name in ("a.db", "b.db", "c.db"):
            (root / name).write_text("2")
        assert list(snapshots.restore(first).skipped) == ["c.db"]
        assert [(root / name).read_text() for name in ("a.db", "b.db", "c.db")] == ["1", "1", "2"]

    def test_a_folder_that_grew_too_large_meanwhile(self, root, snapshots, monkeypatch):
        monkeypatch.setattr(snapshot_ignored, "MAX_IN_FOLDER", 4)
        git(root, "init", "-q")
        (root / ".gitignore").write_text("data/\n")
        (root / "data").mkdir()
        (root / "data/0").write_text("1")
        first = snapshots.take()
        for number in range(9):
            (root / f"data/{number}").write_text("2")
        done = snapshots.restore(first)
        assert (root / "data/0").read_text() == "1"
        assert (root / "data/8").read_text() == "2"
        snapshots.restore(done.present)
        assert (root / "data/0").read_text() == "2"

    def test_rules_count_without_a_repository(self, root, snapshots):
        (root / ".gitignore").write_text("*.o\n")
        first = snapshots.take()
        (root / "a.o").write_text("1")
        assert snapshots.diff(first) == []

    def test_sources_in_a_folder_called_build(self, root, snapshots):
        git(root, "init", "-q")
        (root / "build").mkdir()
        (root / "build/x.py").write_text("1")
        first = snapshots.take()
        (root / "build/x.py").write_text("2")
        snapshots.restore(first)
        assert (root / "build/x.py").read_text() == "1"

    def test_a_folder_in_which_all_files_are_ignored_is_not_ignored_itself(self, root, snapshots):
        git(root, "init", "-q")
        (root / ".gitignore").write_text("*.o\n")
        (root / "out").mkdir()
        (root / "out/a.o").write_text("1")
        first = snapshots.take()
        (root / "out/new.c").write_text("1")
        snapshots.restore(first)
        assert picture(root / "out") == {"a.o": ("file", 0o644, b"1")}

    def test_a_root_that_is_ignored_by_a_repository_around_it(self, root, snapshots):
        git(root.parent, "init", "-q")
        (root.parent / ".gitignore").write_text("*\n")
        first = snapshots.take()
        (root / "src/a.py").write_text("2")
        snapshots.restore(first)
        assert (root / "src/a.py").read_text() == "a = 1\n"

    def test_a_folder_of_a_repository(self, root, snapshots):
        git(root.parent, "init", "-q")
        (root.parent / ".gitignore").write_text("*.o\nstate\n")
        (root / "a.o").write_text("1")
        first = snapshots.take()
        (root / "a.o").write_text("2")
        (root / "src/a.py").write_text("2")
        snapshots.restore(first)
        assert ((root / "a.o").read_text(), (root / "src/a.py").read_text()) == ("2", "a = 1\n")

    def test_what_the_agent_is_about_to_change_is_kept(self, root, snapshots):
        git(root, "init", "-q")
        (root / ".gitignore").write_text("*.o\nbuild/\n")
        (root / "build").mkdir()
        for name in ("a.o", "build/x", "b.o"):
            (root / name).write_text("1")
        first = snapshots.take()
        snapshots.take(changing=[root / "a.o", root / "build/x", root / "build/new", root / "new.o"])
        for name in ("a.o", "build/x", "build/new", "new.o", "b.o"):
            (root / name).write_text("2")
        changed = picture(root)
        done = snapshots.restore(first)
        assert [(root / name).read_text() for name in ("a.o", "build/x", "b.o")] == ["1", "1", "2"]
        assert not (root / "new.o").exists()
        assert not (root / "build/new").exists()
        snapshots.restore(done.present)
        assert picture(root) == changed
        subprocess.run(["rm", "-r", root / "build"])
        snapshots.restore(first)
        assert (root / "build/x").read_text() == "1"

    def test_a_file_that_is_ignored_by_now(self, root, snapshots):
        git(root, "init", "-q")
        (root / "a.log").write_text("1")
        first = snapshots.take()
        (root / "a.log").write_text("2")
        (root / ".gitignore").write_text("*.log\n")
        done = snapshots.restore(first)
        assert (root / "a.log").read_text() == "1"
        snapshots.restore(done.present)
        assert (root / "a.log").read_text() == "2"

    def test_a_file_that_was_ignored_then(self, root, snapshots):
        git(root, "init", "-q")
        (root / ".gitignore").write_text("*.log\nbuild/\n")
        (root / "build").mkdir()
        (root / "build/x").write_text("1")
        (root / "a.log").write_text("1")
        first = snapshots.take()
        (root / ".gitignore").write_text("")
        (root / "new.log").write_text("1")
        done = snapshots.restore(first)
        assert (root / "a.log").read_text() == "1"
        assert (root / "build/x").read_text() == "1"
        assert done.removed == ["new.log"]

    def test_a_repository_in_the_repository(self, root, snapshots):
        git(root, "init", "-q")
        (root / "inner").mkdir()
        git(root / "inner", "init", "-q")
        (root / "inner/.gitignore").write_text("*.tmp\n")
        (root / "inner/x").write_text("1")
        first = snapshots.take()
        for name in ("x", "a.tmp"):
            (root / "inner" / name).write_text("2")
        snapshots.restore(first)
        assert ((root / "inner/x").read_text(), (root / "inner/a.tmp").read_text()) == ("1", "2")

    def test_a_submodule_and_a_linked_worktree(self, root, snapshots, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        for folder in (other, root):
            git(folder, "init", "-q", "-b", "main")
            (folder / "x").write_text("1")
            git(folder, "add", "x")
            git(folder, "commit", "-qm", "x")
        git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "sub")
        git(root, "worktree", "add", "-q", "tree")
        (root / "sub/.gitignore").write_text("*.o\n")
        before, pointers = picture(root), [(root / name / ".git").read_bytes() for name in ("sub", "tree")]
        first = snapshots.take()
        for name in ("sub", "tree"):
            for inner, text in (("x", "2"), ("new", "2"), ("a.o", "2")):
                (root / name / inner).write_text(text)
        snapshots.restore(first)
        (root / "sub/a.o").unlink()  # ignored in the one, and not in the other
        assert picture(root) == before
        subprocess.run(["rm", "-r", root / "tree/x", root / "sub/x"], check=True)
        snapshots.restore(first)
        assert picture(root) == before
        assert [(root / name / ".git").read_bytes() for name in ("sub", "tree")] == pointers
        assert git(root / "tree", "status", "--porcelain", "x") == ""

    def test_a_workspace_that_is_a_linked_worktree(self, root, tmp_path):
        git(root, "init", "-q", "-b", "main")
        git(root, "add", ".")
        git(root, "commit", "-qm", "x")
        git(root, "worktree", "add", "-q", str(tmp_path / "tree"))
        tree = tmp_path / "tree"
        (tree / ".gitignore").write_text("*.o\n")
        snapshots, before = Snapshots(tmp_path / "state2", tree), picture(tree)
        first = snapshots.take()
        (tree / "src/a.py").write_text("2")
        (tree / "a.o").write_text("2")
        snapshots.restore(first)
        (tree / "a.o").unlink()
        assert picture(tree) == before


def test_the_users_repository_is_not_touched(root, snapshots, monkeypatch):
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (root / ".git").rglob("*") if path.is_file()
    }
    first = snapshots.take()
    (root / "src/a.py").write_text("2")
    snapshots.restore(first)
    after = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (root / ".git").rglob("*") if path.is_file()
    }
    assert before == after


def test_a_clone_that_was_made_since_keeps_its_history(root, snapshots):
    first = snapshots.take()
    (root / "clone").mkdir()
    git(root / "clone", "init", "-q")
    (root / "clone/x").write_text("1")
    done = snapshots.restore(first)
    assert (root / "clone/.git/HEAD").exists()
    assert not (root / "clone/x").exists()
    assert "not empty" in done.skipped["clone"]


class TestLarge:
    @pytest.fixture(autouse=True)
    def small_limits(self, monkeypatch):
        monkeypatch.setattr(snapshot_reader, "MAX_BYTES", 1000)
        monkeypatch.setattr(snapshot_reader, "MAX_LARGE", 5000)

    def test_a_large_file_is_left_out_and_named(self, root, snapshots):
        (root / "data").write_bytes(bytes(2000))
        first = snapshots.take()
        assert list(snapshots.skipped) == ["data"]
        (root / "data").write_bytes(bytes(2001))
        (root / "made").write_bytes(bytes(2001))
        done = snapshots.restore(first)
        assert (root / "data").stat().st_size == 2001
        assert (root / "made").exists()
        assert done.removed == []

    def test_a_file_that_grew_is_kept_before_it_is_put_back(self, root, snapshots):
        first = snapshots.take()
        (root / "src/a.py").write_bytes(bytes(3000))
        done = snapshots.restore(first)
        assert (root / "src/a.py").read_text() == "a = 1\n"
        snapshots.restore(done.present)
        assert (root / "src/a.py").stat().st_size == 3000

    def test_a_file_that_grew_too_large_to_be_kept_is_not_overwritten(self, root, snapshots):
        first = snapshots.take()
        (root / "src/a.py").write_bytes(bytes(6000))
        done = snapshots.restore(first)
        assert (root / "src/a.py").stat().st_size == 6000
        assert "too large" in done.skipped["src/a.py"]


def test_what_is_no_file_is_left_alone(root, snapshots):
    os.mkfifo(root / "pipe")
    first = snapshots.take()
    assert "pipe" in snapshots.skipped
    (root / "src/a.py").unlink()
    os.mkfifo(root / "src/a.py")
    done = snapshots.restore(first)
    assert stat.S_ISFIFO((root / "src/a.py").stat().st_mode)
    assert "src/a.py" in done.skipped
    assert (root / "pipe").exists()


def test_a_folder_that_became_a_link_is_not_followed(root, snapshots, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.py").write_text("mine")
    first = snapshots.take()
    subprocess.run(["rm", "-r", root / "src"])
    (root / "src").symlink_to(outside)
    snapshots.restore(first)
    assert (outside / "a.py").read_text() == "mine"
    assert (root / "src/a.py").read_text() == "a = 1\n"


def test_folders_that_cannot_be_written(root, snapshots):
    (root / "src").chmod(0o555)
    first = snapshots.take()
    (root / "src").chmod(0o755)
    (root / "src/a.py").write_text("2")
    (root / "src/b.py").write_text("2")
    changed = snapshots.take()
    (root / "src").chmod(0o555)
    before = picture(root)
    snapshots.restore(first)
    assert stat.S_IMODE((root / "src").stat().st_mode) == 0o555
    assert sorted(path.name for path in (root / "src").iterdir()) == ["a.py"]
    snapshots.restore(changed)
    assert stat.S_IMODE((root / "src").stat().st_mode) == 0o755
    assert picture(root) != before
    (root / "src").chmod(0o755)


@pytest.fixture
def unreadable(root):
    """A file and a folder that the user cannot read."""
    (root / "locked").mkdir()
    (root / "locked/x").write_text("1")
    for name in ("locked", "run.sh"):
        (root / name).chmod(0)
    if os.access(root / "run.sh", os.R_OK):
        pytest.skip("root can read everything")
    yield root
    (root / "locked").chmod(0o755)


def test_what_could_not_be_read_is_not_removed(unreadable, snapshots):
    first = snapshots.take()
    assert set(snapshots.skipped) == {"locked/", "run.sh"}
    (unreadable / "locked").chmod(0o755)
    (unreadable / "run.sh").chmod(0o644)
    snapshots.restore(first)
    (unreadable / "locked").chmod(0o755)
    assert (unreadable / "locked/x").read_text() == "1"
    assert (unreadable / "run.sh").read_text() == "#!/bin/sh\n"


def test_a_workspace_that_the_state_lies_in(tmp_path, root):
    """As where somebody works in the home directory."""
    snapshots = Snapshots(root / "state/codemill/projects/x/snapshots", root, root / "state/codemill")
    first = snapshots.take()
    (root / "state/codemill/session").write_text("1")
    assert snapshots.diff(first) == []
    snapshots.restore(first)
    assert (root / "state/codemill/session").read_text() == "1"


def test_a_workspace_that_is_too_large(root, snapshots, monkeypatch):
    monkeypatch.setattr(snapshot_reader, "MAX_TOTAL", 10)
    with pytest.raises(CodemillError, match="smaller folder"):
        snapshots.take()
    monkeypatch.undo()
    monkeypatch.setattr(snapshot_scan, "MAX_FILES", 1)
    with pytest.raises(CodemillError, match="more than 1 files"):
        snapshots.take()


def test_paths_can_be_kept(root, snapshots):
    first = snapshots.take()
    (root / "src/a.py").write_text("2")
    (root / "mine").write_text("3")
    snapshots.restore(first, keep={"mine"})
    assert ((root / "src/a.py").read_text(), (root / "mine").read_text()) == ("a = 1\n", "3")


def test_nobody_else_can_read_them(root, snapshots, tmp_path):
    snapshots.take()
    for path in (tmp_path / "state").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or "rules.git" in path.parts
    assert stat.S_IMODE((tmp_path / "state/snapshots").stat().st_mode) == 0o700


def test_what_no_session_needs_is_deleted(root, snapshots, tmp_path):
    names = []
    for number in range(5):
        (root / "src/a.py").write_bytes(os.urandom(50_000) + bytes([number]))
        names.append(snapshots.take())
    file = tmp_path / "state/snapshots/snapshots.sqlite"
    before = file.stat().st_size
    assert snapshots.collect({names[1]}) == 0  # they may be of a session that is just being written
    assert snapshots.collect({names[1]}, min_age=-1) > 0
    assert file.stat().st_size < before - 150_000
    with pytest.raises(UsageError):
        snapshots.restore(names[0])
    snapshots.restore(names[1])
    assert (root / "src/a.py").read_bytes()[-1] == 1
    (root / "run.sh").write_text("2")
    snapshots.restore(snapshots.take())


def test_a_damaged_store_is_named(root, snapshots, tmp_path):
    snapshots.take()
    (tmp_path / "state/snapshots/snapshots.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(CodemillError, match=r"snapshots\.sqlite is damaged .*: delete it"):
        snapshots.take()


def test_a_damaged_content_is_not_written_out(root, snapshots, tmp_path):
    first = snapshots.take()
    (root / "src/a.py").write_text("2")
    with sqlite3.connect(tmp_path / "state/snapshots/snapshots.sqlite") as connection:
        from zlib import compress

        connection.execute("update objects set data = ? where length(data) < 20", (compress(b"other"),))
    with pytest.raises(CodemillError, match="cannot be brought back"):
        snapshots.restore(first)


def test_threads_wait_for_each_other(root, snapshots):
    names = []
    threads = [threading.Thread(target=lambda: names.append(snapshots.take())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 1


KILLED = """
import sys
from pathlib import Path
from codemill.agent.snapshots import Snapshots
snapshots = Snapshots(Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
while True:
    for name in sys.argv[3:]:
        snapshots.restore(name)
"""


def test_a_process_killed_while_it_goes_back_leaves_whole_files(root, snapshots, tmp_path):
    texts = {number: f"{number}\n" * 20_000 for number in (1, 2)}
    names = []
    for number in (1, 2):
        for index in range(40):
            (root / f"src/f{index}.py").write_text(texts[number])
        names.append(snapshots.take())
    wanted = picture(root)
    command = [sys.executable, "-c", KILLED, tmp_path / "state/snapshots", root, *names]
    for moment in (0.0, 0.03, 0.08, 0.15, 0.2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for index in range(40):
            assert (root / f"src/f{index}.py").read_text() in texts.values()
        snapshots.take()
        snapshots.restore(names[1])
        assert picture(root) == wanted
