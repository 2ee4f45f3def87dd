"""A disk that really is full: a small tmpfs, in a namespace of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

BEGINNING = """
import os, sys
from pathlib import Path
from codemill.agent.session import Session
from codemill.agent.snapshots import Snapshots
from codemill.agent.tool import ToolError
from codemill.agent.workspace import Workspace
from codemill.errors import CodemillError

disk = Path(sys.argv[1])

def fill():
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass

def until_refused(act, error):
    for number in range(10_000):
        try:
            act(number)
        except error as refused:
            assert "No space left" in str(refused) or "is full" in str(refused), refused
            return number
    raise AssertionError("it is never full")
"""


def run(tmp_path: Path, program: str, size: str = "512k") -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size={size} none {disk} || exit 77; exec {sys.executable} -c "$0" {disk}'
    command = ["unshare", "-rm", "sh", "-c", script, BEGINNING + program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        pytest.skip(f"no unshare: {error}")
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr}")
    assert done.returncode == 0, done.stderr


def test_a_session(tmp_path):
    run(
        tmp_path,
        """
session = Session.create(disk / "session.jsonl")
fill()
number = until_refused(lambda number: session.add_user(f"message {number} " + "x" * 100), CodemillError)
messages = list(session.messages)
assert number > 0 and len(messages) == number
assert Session.load(session.path).messages == messages
until_refused(lambda number: session.add_user("y" * 10_000), CodemillError)
(disk / "filler").unlink()
session.add_user("after")
assert [each["content"][:7] for each in Session.load(session.path).messages][-2:] == ["message", "after"]
""",
    )


def test_a_file_of_the_workspace(tmp_path):
    run(
        tmp_path,
        """
root = disk / "work"
root.mkdir()
(root / "a.txt").write_text("old\\n")
workspace = Workspace(root)
workspace.read(root / "a.txt")
fill()
until_refused(lambda number: workspace.write(root / "a.txt", "new\\n" * 10_000), ToolError)
until_refused(lambda number: workspace.write(root / "b.txt", "new\\n" * 10_000), ToolError)
assert (root / "a.txt").read_text() == "old\\n"
assert [entry.name for entry in root.iterdir()] == ["a.txt"]
(disk / "filler").unlink()
workspace.write(root / "a.txt", "new\\n")
assert (root / "a.txt").read_text() == "new\\n"
""",
    )


def test_snapshots(tmp_path):
    """What was kept before is still there, and what is in the folder is whole: old or new."""
    run(
        tmp_path,
        """
root = disk / "work"
root.mkdir()
for name in "abc":
    (root / name).write_bytes(os.urandom(20_000))
before = {name: (root / name).read_bytes() for name in "abc"}
snapshots = Snapshots(disk / "state", root)
first = snapshots.take()
for name in "abc":
    (root / name).write_text("small")
fill()
try:
    done = snapshots.restore(first)
    assert done.skipped
except CodemillError:
    pass
for name in "abc":
    assert (root / name).read_bytes() in (before[name], b"small"), name
assert {entry.name for entry in root.iterdir()} == set("abc")
until_refused(lambda number: (root / "new").write_bytes(os.urandom(50)) and snapshots.take(), (CodemillError, OSError))
(disk / "filler").unlink()
(root / "new").unlink(missing_ok=True)
assert snapshots.restore(first).skipped == {}
assert {name: (root / name).read_bytes() for name in "abc"} == before
""",
    )
