"""Sessions in files: found again, copied, held by one process, and whole whatever happens."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codemill.agent import session_file, session_store
from codemill.agent.configuration import state_folder
from codemill.agent.history import History
from codemill.agent.model import Usage
from codemill.agent.session import Session, call_object
from codemill.agent.session_file import read_records
from codemill.agent.session_store import SessionStore
from codemill.agent.workspace import Workspace
from codemill.chat.tool_types import ToolCall
from codemill.errors import CodemillError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "home/project").mkdir(parents=True)
    return tmp_path / "home/project"


@pytest.fixture
def store(tmp_path: Path, root: Path) -> SessionStore:
    return SessionStore(tmp_path / "state", root)


def talk(session: Session, request: str = "Do it.", num_steps: int = 1) -> None:
    session.add_user(request)
    for _ in range(num_steps):
        session.add({"role": "assistant", "content": 'Done. {"type": "usage"'})
        session.note_usage(Usage(10, 5))


def state(session: Session) -> tuple:
    kept = (list(session.messages), list(session.requests), list(session.todos), dict(session.known))
    return *kept, session.usage, session.open_calls, [session.has_begun(call) for call in session.open_calls]


def age(session: Session, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(session.path, (when, when))


class TestWhere:
    def test_the_users_folder(self, monkeypatch, tmp_path, root):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
        assert state_folder() == tmp_path / "xdg/codemill"
        monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert state_folder() == tmp_path / "home/.local/state/codemill"
        session = SessionStore(None, root).create()
        assert session.path.is_relative_to(tmp_path / "home/.local/state/codemill/projects")
        assert session.path.parent.name == "sessions"

    def test_only_the_user_can_read_them(self, store, tmp_path):
        old = os.umask(0)
        try:
            session = store.create()
        finally:
            os.umask(old)
        assert stat.S_IMODE(session.path.stat().st_mode) == 0o600
        folder = session.path.parent
        while folder != tmp_path:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            folder = folder.parent

    def test_two_checkouts_of_one_name(self, tmp_path, store):
        other = tmp_path / "other/project"
        other.mkdir(parents=True)
        talk(store.create())
        assert SessionStore(tmp_path / "state", other).list() == []
        assert SessionStore(tmp_path / "state", tmp_path / "home/project").latest() is not None

    @pytest.mark.parametrize("name", ["a b/ü", "...", "-x", "x" * 200])
    def test_odd_names(self, tmp_path, name):
        folder = SessionStore(tmp_path / "state", tmp_path / name).folder.name
        assert len(folder) < 60
        assert folder[0] not in ".-"
        assert folder.isascii()


class TestFinding:
    def test_the_list(self, store):
        for number in range(3):
            session = store.create(model="qwen")
            talk(session, f"Request\n  {number}", num_steps=number)
            age(session, 100 - number)
            session.close()
        store.create()  # nothing was asked in it
        found = store.list()
        assert [(info.request, info.num_steps, info.model) for info in found] == [
            (f"Request {number}", number, "qwen") for number in (2, 1, 0)
        ]
        assert store.latest() == found[0]
        assert abs(found[0].created - time.time()) < 5

    def test_an_id_or_a_part_of_it(self, store):
        first, second = store.create(), store.create()
        for session in (first, second):
            talk(session)
        assert store.find(first.id).path == first.path
        assert store.find(first.id[-4:]).path == first.path
        with pytest.raises(UsageError, match=f"2 sessions match '20': .*{first.id}.*; give more"):
            store.find("20")
        with pytest.raises(UsageError, match=r"no session 'zzz' of this folder: .*\(Do it\.\)"):
            store.find("zzz")
        with pytest.raises(UsageError, match="no session"):
            store.find("")

    def test_none_yet(self, store):
        assert (store.list(), store.latest()) == ([], None)
        with pytest.raises(UsageError, match="there are none yet"):
            store.find("x")

    def test_hundreds_of_sessions(self, store):
        session = store.create(model="qwen")
        talk(session, "x" * 1000, num_steps=300)
        data = session.path.read_bytes()
        for number in range(300):
            (session.path.parent / f"20200101-000000-{number:04}.jsonl").write_bytes(data)
        begin = time.perf_counter()
        assert len(store.list()) == 301
        assert time.perf_counter() - begin < 1.0

    def test_a_session_that_is_damaged_does_not_hide_the_others(self, store):
        talk(store.create())
        broken = store.create()
        broken.path.write_bytes(b"\xff\xfe nonsense\n" + b'{"type": "message", "message": 3}\n')
        assert len(store.list()) == 1


class TestOneProcess:
    def test_a_session_in_use(self, store, root, tmp_path):
        program = (
            "import sys, time; from pathlib import Path; from codemill.agent.session_store import SessionStore\n"
            "session = SessionStore(Path(sys.argv[1]), Path(sys.argv[2])).create(); session.add_user('Do it.')\n"
            "print('ready', flush=True); time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "state", root], stdout=subprocess.PIPE)
        process.stdout.readline()
        info = store.latest()
        before = info.path.read_bytes()
        with pytest.raises(CodemillError, match=f"in use by process {process.pid}, since .*--fork"):
            store.open(info)
        assert info.path.read_bytes() == before
        assert store.prune(keep=0) == 0
        copy = store.fork(info)
        assert copy.requests == ["Do it."]
        copy.close()
        process.kill()
        process.communicate()
        session = store.open(info)  # what a dead process held is free
        assert session.requests == ["Do it."]

    def test_a_session_that_was_closed(self, store):
        session = store.create()
        talk(session)
        with pytest.raises(CodemillError, match=f"in use by process {os.getpid()}"):
            store.open(store.latest())
        session.close()
        store.open(store.latest()).close()

    def test_a_running_command_does_not_hold_it(self, store):
        session = store.create()
        talk(session)
        command = subprocess.Popen(["sleep", "30"], close_fds=False)
        session.close()
        store.open(store.latest()).close()
        command.kill()
        command.wait()


class TestFork:
    def test_a_copy_goes_its_own_way(self, store):
        session = store.create(model="qwen")
        talk(session, "first")
        session.begin_call(ToolCall("x", {}, "1"))
        copy = store.fork(session)
        before = session.path.read_bytes()
        assert (copy.messages, copy.requests, copy.usage) == (session.messages, session.requests, session.usage)
        assert copy.has_begun(ToolCall("x", {}, "1"))
        talk(copy, "second")
        assert session.path.read_bytes() == before
        copy.close()
        session.close()
        info = store.find(copy.id)
        assert (info.parent, info.model, info.request) == (session.id, "qwen", "first")
        assert store.open(info).requests == ["first", "second"]

    def test_of_a_session_in_memory(self, store):
        session = Session()
        talk(session)
        assert store.fork(session).messages == session.messages

    def test_a_copy_can_be_undone(self, store, root):
        snapshots = store.snapshots()
        session = store.create()
        session.add_user("Do it.")
        session.add({"role": "assistant", "content": "Yes."})
        session.note("snapshot", id=snapshots.take(), at="before")
        (root / "new").write_text("1")
        copy = store.fork(session)
        assert store.snapshot_ids() >= {session.records[-1]["id"]}
        session.close()
        session.path.unlink()
        snapshots.collect(store.snapshot_ids(), min_age=-1)
        History(copy, snapshots, Workspace(root)).undo()
        assert not (root / "new").exists()


def test_snapshots_of_deleted_sessions_are_deleted(store, root, monkeypatch):
    monkeypatch.setattr(session_store, "JUST_MADE", 0.0)
    monkeypatch.setattr("codemill.agent.snapshots.MIN_AGE", -1.0)
    names = []
    for number in range(2):
        (root / "a").write_text(str(number))
        session = store.create()
        talk(session)
        names.append(store.snapshots().take())
        session.note("snapshot", id=names[-1], at="before")
        session.close()
        age(session, 100 - number)
    assert store.tidy(keep=1) == 1
    with pytest.raises(UsageError, match="there is no snapshot"):
        store.snapshots().restore(names[0])
    store.snapshots().restore(names[1])


def test_old_sessions_are_deleted(store):
    for number in range(5):
        session = store.create()
        talk(session, str(number))
        session.close()
        age(session, 1000 - number)
    empty, new = store.create(), store.create()
    empty.close()
    new.close()
    age(empty, 1000)
    assert store.prune(keep=3) == 3
    assert [info.request for info in store.list()] == ["4", "3", "2"]
    assert not empty.path.exists()
    assert new.path.exists()  # somebody may be about to ask something in it


class TestWhole:
    def test_a_torn_line_is_dropped(self, store):
        session = store.create()
        talk(session)
        session.close()
        whole = session.path.read_bytes()
        for torn in (
            b'{"type": "message", "mess',
            b"\0\0\0\0",
            '{"type": "message", "message": {"content": "ü'.encode()[:-1],
        ):
            session.path.write_bytes(whole + torn)
            again = store.open(store.latest())
            assert again.messages == session.messages
            again.add_user("More.")
            again.close()
            assert [record["type"] for record in read_records(session.path)][-1] == "message"

    def test_a_file_cut_at_any_byte(self, tmp_path):
        """Is the session as it was after the last whole line."""
        session, states = Session.create(tmp_path / "s.jsonl"), []
        made = ToolCall("echo", {"text": "ü"}, "call_1")
        steps = [
            lambda: session.add_user("Do it."),
            lambda: session.add({"role": "assistant", "content": "€", "tool_calls": [call_object(made)]}),
            lambda: session.note_usage(Usage(3, 2, 1)),
            lambda: session.begin_call(made),
            lambda: session.add_tool_result(made, "a\nb", {"a.txt": "digest"}),
            lambda: session.keep_todos([{"content": "x", "status": "pending"}]),
            lambda: session.replace([{"role": "user", "content": "So far."}], "summary"),
        ]
        for step in [lambda: None, *steps]:
            step()
            states.append(state(session))
        data = session.path.read_bytes()
        for size in range(data.find(b"\n") + 1, len(data) + 1):
            cut = tmp_path / "cut.jsonl"
            cut.write_bytes(data[:size])
            assert state(Session.load(cut)) == states[data[:size].count(b"\n") - 1]

    def test_a_torn_line_that_is_longer_than_a_block(self, store):
        session = store.create()
        talk(session)
        session.close()
        with session.path.open("ab") as file:
            file.write(b'{"type": "message", "x": "' + b"x" * 200_000)
        again = store.open(store.latest())
        assert again.messages == session.messages
        assert session.path.read_bytes().endswith(b"}\n")

    @pytest.mark.parametrize(
        "line", [b"nonsense", b"[1]", b'{"type": "message"}', b'{"type": "usage"}', b'{"time": 1}', b"\0"]
    )
    def test_a_corrupt_line_is_named(self, store, line):
        session = store.create()
        talk(session)
        session.close()
        lines = session.path.read_bytes().splitlines()
        session.path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n")
        with pytest.raises(CodemillError, match=r"\.jsonl, line 3: not a record of a session"):
            store.open(store.find(session.id))
        session.path.write_bytes(b"\n".join(lines) + b"\n")
        store.open(store.find(session.id))  # it was not held on to

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "s.jsonl").touch()
        with pytest.raises(CodemillError, match="there is no session in this file"):
            Session.load(tmp_path / "s.jsonl")
        with pytest.raises(CodemillError, match="cannot be read: No such file"):
            Session.load(tmp_path / "other.jsonl")

    def test_a_newer_version(self, tmp_path):
        record = {"type": "session", "id": "x", "version": 99}
        (tmp_path / "s.jsonl").write_text(json.dumps(record) + "\n")
        with pytest.raises(CodemillError, match="newer codemill"):
            Session.load(tmp_path / "s.jsonl")

    @pytest.mark.parametrize("num_bytes", [0, 1, 40])
    def test_a_full_disk(self, store, monkeypatch, num_bytes):
        session = store.create()
        talk(session)
        before, messages = session.path.read_bytes(), list(session.messages)
        write, room = os.write, [num_bytes]

        def write_until_full(descriptor, data):
            if not room[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = write(descriptor, bytes(data[: room[0]]))
            room[0] = 0
            return written

        with monkeypatch.context() as patch:
            patch.setattr(session_file.os, "write", write_until_full)
            with pytest.raises(CodemillError, match="cannot be written: No space left"):
                session.add_user("More.")
        assert session.path.read_bytes() == before
        assert session.messages == messages
        session.add_user("Again.")
        assert [record["type"] for record in read_records(session.path)][-1] == "message"

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_device_that_is_full(self):
        with pytest.raises(CodemillError, match="No space left"):
            Session.create(Path("/dev/full"))

    @pytest.mark.parametrize("text", ["\ud800 half", "\u2028 \x85 \r\n \0", "ü€😀", '"\\'])
    def test_any_text_is_the_same_when_it_is_read_again(self, tmp_path, text):
        session = Session.create(tmp_path / "s.jsonl")
        session.add_user(text)
        assert Session.load(tmp_path / "s.jsonl").messages == session.messages


def test_ids_that_a_server_uses_again_are_not_mixed_up():
    """Some servers count the calls of each reply from 0."""
    session, made = Session(), ToolCall("echo", {"text": "a"}, "call_0")
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_0", "function": {"name": "echo", "arguments": "{}"}}],
    }
    session.add(message)
    session.begin_call(made)
    session.add_tool_result(made, "a")
    session.add(message)
    assert [call.id for call in session.open_calls] == ["call_0"]
    assert not session.has_begun(made)


def test_secrets_are_not_written(store):
    key = "sk-" + "a1B2" * 10
    session = store.create()
    session.add_user(f"Use {key}.")
    session.add_tool_result(ToolCall("x", {}), f"API_TOKEN={key[5:]}")
    assert key[5:] not in session.path.read_text()
    assert key in session.messages[0]["content"]
    session.close()
    assert store.open(store.latest()).messages[0]["content"] == "Use [secret masked by codemill]."


def test_where_sessions_cannot_be_kept_the_error_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CodemillError, match=r"sessions cannot be kept here .* XDG_STATE_HOME"):
        SessionStore(tmp_path / "file", tmp_path).create()
