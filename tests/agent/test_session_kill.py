"""A process that is killed at any moment: another one goes on with its session as if nothing had happened."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pathspec")

from agent.killed_agent import plan
from agent.test_snapshots import picture
from codemill.agent.history import History
from codemill.agent.loop import LOST
from codemill.agent.session_store import SessionStore
from codemill.agent.workspace import Workspace

PROGRAM = Path(__file__).with_name("killed_agent.py")


def start(state: Path, root: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, PROGRAM, state, root],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(state)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen) -> str:
    """What else it says. `communicate` would lose what came together with the first line."""
    with process:
        assert process.stdout is not None
        return process.stdout.read()


def folders(place: Path) -> tuple[Path, Path]:
    (place / "root").mkdir(parents=True)
    (place / "root/old.txt").write_text("old\n")
    return place / "state", place / "root"


def without_ids(messages: list[dict]) -> list[dict]:
    plain = []
    for message in messages:
        kept = {key: value for key, value in message.items() if key != "tool_call_id"}
        if "tool_calls" in kept:
            kept["tool_calls"] = [call["function"] for call in kept["tool_calls"]]
        plain.append(kept)
    return plain


def without_looking(messages: list[dict]) -> list[dict]:
    """The conversation without what the model did about calls that were lost."""
    kept, is_extra = [], False
    for message in messages:
        if message["role"] == "assistant":
            is_extra = message["content"].startswith(("look", "again"))
        if not is_extra:
            kept.append(message)
    return kept


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[list[dict], dict, float]:
    """The conversation, the files, and the seconds it took."""
    state, root = folders(tmp_path_factory.mktemp("whole"))
    process = start(state, root)
    begin = time.monotonic()
    assert finish(process) == "finished Done.\n"
    store = SessionStore(state, root)
    session = store.open(store.latest())
    return without_ids(session.messages), picture(root), time.monotonic() - begin


@pytest.mark.parametrize("seed", range(3))
def test_a_session_that_was_killed_goes_on(tmp_path, seed, uninterrupted):
    messages, files, seconds = uninterrupted
    state, root = folders(tmp_path)
    before = picture(root)
    moments = random.Random(seed)
    for _ in range(6):
        process = start(state, root)
        time.sleep(moments.uniform(0, seconds / 3))
        process.kill()
        finish(process)
    process = start(state, root)
    assert finish(process) == "finished Done.\n"

    store = SessionStore(state, root)
    assert len(store.list()) == 1
    session = store.open(store.latest())
    found = without_looking(without_ids(session.messages))
    assert len(found) == len(messages) == 2 + len(plan()) + sum(map(len, plan()))
    for ours, theirs in zip(found, messages, strict=True):
        assert ours == theirs or (ours["role"], ours["content"]) == ("tool", LOST)
    assert picture(root) == files

    history = History(session, store.snapshots(), Workspace(root))
    history.undo()
    assert picture(root) == before
    history.redo()
    assert picture(root) == files
    assert without_looking(without_ids(session.messages)) == found
