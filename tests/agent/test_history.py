"""Undo, rewind and redo: conversation and files together."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pathspec")

from agent.fakes import toolbox
from agent.test_snapshots import picture
from codemill.agent.checkpoints import Checkpoints
from codemill.agent.compaction import Summarizer
from codemill.agent.history import History
from codemill.agent.loop import Agent
from codemill.agent.model import Reply
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.snapshots import Snapshots
from codemill.agent.tool import Observation, Preview, ToolContext, ToolSpec
from codemill.agent.tools.edit import EditTool
from codemill.agent.tools.read_file import ReadFileTool
from codemill.agent.tools.write_file import WriteFileTool
from codemill.agent.workspace import Workspace
from codemill.chat.tool_types import ToolCall
from codemill.errors import CodemillError, UsageError


class CommandTool:
    """A command: does something to the files that nobody sees coming."""

    spec = ToolSpec("command", "run", "Runs a command.", {"what": {"type": "string"}}, ("what",))

    def __init__(self, act) -> None:
        self._act = act

    def preview(self, arguments, context):
        return Preview(arguments["what"])

    def run(self, arguments, context):
        self._act(arguments["what"], context.workspace.root)
        return Observation(f"did {arguments['what']}")


class Bench:
    """A session in a folder, whose model does what it is told to."""

    def __init__(self, place: Path, act=lambda what, root: os.system(f"cd {root} && {what}"), path: Path | None = None):
        self.root = place / "root"
        self.root.mkdir(exist_ok=True)
        self.session = Session.load(path) if path and path.exists() else Session.create(path)
        self.workspace = Workspace(self.root)
        self.snapshots = Snapshots(place / "snapshots", self.root)
        self.history = History(self.session, self.snapshots, self.workspace)
        self.checkpoints = Checkpoints(self.session, self.snapshots)
        self.pictures: dict[int, dict] = {}  # the files at the beginning of each step, by position
        self._tools = toolbox(
            *(WriteFileTool(), EditTool(), ReadFileTool(), CommandTool(act)), context=ToolContext(self.workspace)
        )

    def turn(self, request: str, *steps, **options) -> None:
        """A request, and the calls of each reply to it."""
        replies = iter([*steps, ()])

        def reply(messages):
            self.pictures[len(self.session.records)] = picture(self.root)
            calls = next(replies)
            return Reply(f"reply to {request}", tuple(ToolCall(name, arguments) for name, arguments in calls))

        self.pictures[len(self.session.records)] = picture(self.root)
        agent = Agent(ScriptedModel(reply), self._tools, self.session, checkpointer=self.checkpoints, **options)
        agent.run(request)


def write(name: str, text: str) -> list:
    return [("write_file", {"file_path": name, "content": text})]


def run(command: str) -> list:
    return [("command", {"what": command})]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    (bench.root / "a.txt").write_text("a\n")
    return bench


def test_undo_brings_files_and_conversation_back(bench):
    bench.turn("first", write("new.txt", "1\n"), run("echo 2 >> a.txt"))
    messages, files = list(bench.session.messages), picture(bench.root)
    bench.turn("second", run("rm a.txt; mkdir d; echo 3 > d/x"), write("new2.txt", "3\n"))
    done = bench.history.undo()
    assert (done.text, done.num_steps) == ("second", 4)
    assert (bench.session.messages, picture(bench.root)) == (messages, files)
    assert bench.session.requests == ["first"]
    done = bench.history.undo()
    assert done.text == "first"
    assert (bench.session.messages, sorted(picture(bench.root))) == ([], ["a.txt"])
    with pytest.raises(UsageError, match="nothing to undo"):
        bench.history.undo()


def test_redo(bench):
    bench.turn("first", write("new.txt", "1\n"))
    bench.turn("second", run("rm a.txt"))
    messages, files = list(bench.session.messages), picture(bench.root)
    bench.history.undo()
    bench.history.undo()
    bench.history.redo()
    assert bench.session.requests == ["first"]
    bench.history.redo()
    assert (bench.session.messages, picture(bench.root)) == (messages, files)
    with pytest.raises(UsageError, match="nothing to redo"):
        bench.history.redo()
    bench.history.undo()
    bench.turn("other", run("true"))
    with pytest.raises(UsageError, match="nothing to redo"):
        bench.history.redo()


def test_rewind_to_a_reply(bench):
    bench.turn("first", run("echo 1 > x"), run("echo 2 > x"), run("echo 3 > x"))
    steps = bench.history.steps
    assert [(step.number, step.kind) for step in steps] == [
        (1, "user"),
        (2, "model"),
        (3, "model"),
        (4, "model"),
        (5, "model"),
    ]
    assert steps[2].summary == "reply to first [command]"
    done = bench.history.rewind(4)
    assert (done.text, done.num_steps) == ("", 2)
    assert (bench.root / "x").read_text() == "2\n"
    assert [message["role"] for message in bench.session.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    assert bench.session.open_calls == []
    with pytest.raises(UsageError, match="there is no step 9: 1 to 3"):
        bench.history.rewind(9)


def test_a_session_that_is_read_again_can_still_be_undone(tmp_path):
    path = tmp_path / "s.jsonl"
    bench = Bench(tmp_path, path=path)
    bench.turn("first", run("echo 1 > x"))
    bench.history.undo()
    again = Bench(tmp_path, path=path)
    again.history.redo()
    assert (again.root / "x").read_text() == "1\n"
    third = Bench(tmp_path, path=path)
    assert third.session.messages == again.session.messages
    third.history.undo()
    assert not (third.root / "x").exists()


def test_steps_that_change_nothing_cost_nothing(bench, monkeypatch):
    monkeypatch.setattr(bench.snapshots, "take", None)
    bench.turn("first", [("read_file", {"absolute_path": "a.txt"})])
    done = bench.history.undo()
    assert done.restored is None
    assert bench.session.messages == []


def test_one_snapshot_a_step(bench):
    bench.turn("first", run("echo 1 > x") + run("echo 2 > y"))
    assert [record["at"] for record in bench.session.records if record["type"] == "snapshot"] == ["before", "end"]


def test_files_of_one_step_need_no_snapshot_each(bench):
    (bench.root / "b.txt").write_text("b\n")
    edits = [("edit", {"file_path": name, "old_string": name[0], "new_string": "x"}) for name in ("a.txt", "b.txt")]
    bench.turn("first", edits)
    assert [record["at"] for record in bench.session.records if record["type"] == "snapshot"] == ["before", "end"]


def test_what_cannot_be_kept_is_told_once(bench):
    told: list[str] = []
    bench.checkpoints = Checkpoints(bench.session, bench.snapshots, told.append)
    os.mkfifo(bench.root / "pipe")
    bench.turn("first", run("true"), run("true"))
    assert told == ["pipe cannot be brought back by /undo: it is no plain file"]


def test_work_of_a_second_agent_is_the_first_ones(bench):
    """It ends its turn in the middle of the first one's step."""

    def act(what, root):
        (root / what).write_text(what)
        if what == "second":
            bench.checkpoints.end_turn()

    bench._tools._tools["command"] = CommandTool(act)
    bench.turn("first", run("first") + run("second") + run("third"))
    assert bench.history.plan_undo().foreign == frozenset()
    bench.history.undo()
    assert sorted(picture(bench.root)) == ["a.txt"]


def test_what_the_user_changed_is_named_and_can_be_kept(bench):
    bench.turn("first", write("new.txt", "1\n"))
    (bench.root / "mine.txt").write_text("mine")
    plan = bench.history.plan_undo()
    assert [(change.path, change.verb) for change in plan.changes] == [("mine.txt", "removed"), ("new.txt", "removed")]
    assert plan.foreign == {"mine.txt"}
    bench.history.undo(keep=plan.foreign)
    assert sorted(picture(bench.root)) == ["a.txt", "mine.txt"]


def test_what_the_user_changed_before_the_next_request_stays(bench):
    bench.turn("first", run("echo 1 > x"))
    (bench.root / "mine.txt").write_text("mine")
    bench.turn("second", run("echo 2 > x"))
    bench.history.undo()
    assert (bench.root / "mine.txt").read_text() == "mine"
    assert bench.history.plan_undo().foreign == {"mine.txt"} & set(picture(bench.root)) - {"mine.txt"}


def test_changes_of_a_step(bench):
    bench.turn("first", run("echo 1 > x"), run("rm a.txt"))
    changed = [[(change.path, change.verb) for change in bench.history.changes(step)] for step in bench.history.steps]
    assert changed == [[], [("x", "added")], [("a.txt", "removed")], []]


def test_an_ignored_file_that_the_agent_edits(bench):
    (bench.root / ".gitignore").write_text("*.cfg\n")
    (bench.root / "my.cfg").write_text("1\n")
    bench.turn("first", run("true"), [("edit", {"file_path": "my.cfg", "old_string": "1", "new_string": "2"})])
    assert (bench.root / "my.cfg").read_text() == "2\n"
    bench.history.undo()
    assert (bench.root / "my.cfg").read_text() == "1\n"
    bench.history.redo()
    assert (bench.root / "my.cfg").read_text() == "2\n"


def test_files_are_known_as_they_were(bench):
    """After an undo the model may change what it had read, as long as that is what is there."""
    bench.turn("first", [("read_file", {"absolute_path": "a.txt"})])
    bench.turn("second", write("a.txt", "b\n"))
    bench.history.undo()
    bench.turn("third", write("a.txt", "c\n"))
    assert (bench.root / "a.txt").read_text() == "c\n"
    bench.history.rewind(1)
    bench.turn("fourth", write("a.txt", "d\n"))
    assert "you have not read it" in bench.session.messages[2]["content"]


def test_undo_reaches_behind_a_summary(bench):
    bench.turn("first", run("echo 1 > x"))
    before = list(bench.session.messages)
    bench.turn("second", run("echo 2 > x"))
    Summarizer().compact(
        bench.session, ScriptedModel(["So far."], 8000), lambda event: None, bench._tools.context.cancel
    )
    assert len(bench.session.messages) == 1
    bench.history.undo()
    assert bench.session.messages == before
    assert (bench.root / "x").read_text() == "1\n"


def test_todos_go_back_too(bench):
    bench.turn("first", run("true"))
    bench.session.keep_todos([{"content": "one", "status": "pending"}])
    bench.turn("second", run("true"))
    bench.session.keep_todos([])
    bench.history.undo()
    assert [todo["content"] for todo in bench.session.todos] == ["one"]


def test_an_undo_that_was_cut_off_is_done_again(bench, monkeypatch):
    bench.turn("first", run("echo 1 > x; rm a.txt"))
    messages, files = list(bench.session.messages), picture(bench.root)

    class Killed(BaseException):
        pass

    def die(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(History, "_replace", die)
        with pytest.raises(Killed):
            bench.history.undo()
    assert sorted(picture(bench.root)) == ["a.txt"]
    assert bench.session.messages == messages
    bench.history.undo()
    assert bench.session.messages == []
    bench.history.redo()
    assert (bench.session.messages, picture(bench.root)) == (messages, files)


def test_without_a_snapshot_nothing_is_changed(bench, tmp_path):
    (tmp_path / "snapshots").write_text("a file is in the way")
    bench.turn("first", run("echo 1 > x"))
    assert not (bench.root / "x").exists()
    assert "no snapshot can be kept" in bench.session.messages[2]["content"]


def test_a_snapshot_that_was_deleted(bench, tmp_path):
    bench.turn("first", run("echo 1 > x"))
    shutil.rmtree(tmp_path / "snapshots")
    before = list(bench.session.messages)
    with pytest.raises(CodemillError, match="there is no snapshot"):
        bench.history.undo()
    assert bench.session.messages == before


# Any sequence of changes, by tools, by commands and by the user.

NAMES = st.sampled_from(["a", "b", "c.bin", "d/a", "d/e/b", "d", "d/e", "odd \udcff name", "s"])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.binary(max_size=12)),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("chmod"), NAMES, st.sampled_from([0o600, 0o644, 0o755, 0o444])),
    st.tuples(st.just("link"), NAMES, st.sampled_from(["a", "d", "/nowhere", "../outside"])),
    st.tuples(st.just("mkdir"), NAMES),
    st.tuples(st.just("ignored"), st.binary(max_size=3)),
)
TOOL_NAMES = st.sampled_from(["a", "b", "d/a", "tool.log"])
TOOL_CALLS = st.one_of(
    st.tuples(st.just("write_file"), TOOL_NAMES, st.text("xy\n", max_size=5)),
    st.tuples(st.just("read_file"), TOOL_NAMES, st.just("")),
    st.tuples(st.just("edit"), TOOL_NAMES, st.text("xy\n", max_size=5)),
)
STEPS = st.lists(st.one_of(st.tuples(st.just("command"), st.lists(OPERATIONS, max_size=4)), TOOL_CALLS), max_size=3)
TURNS = st.tuples(st.just("turn"), st.lists(STEPS, max_size=4), st.lists(OPERATIONS, max_size=2))
MOVES = st.one_of(st.just(("undo",)), st.tuples(st.just("rewind"), st.integers(0, 30)), st.just(("redo",)))


def perform(operation: tuple, root: Path) -> None:
    """What a command does; what it cannot do, it leaves."""
    kind, *values = operation
    path = root / values[0] if isinstance(values[0], str) else root / "run.log"
    with suppress(OSError):
        if kind in ("write", "ignored"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(values[-1])
        elif kind == "delete":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif kind == "rename":
            path.rename(root / values[1])
        elif kind == "chmod":
            if not path.is_symlink():
                path.chmod(values[1] | (0o700 if path.is_dir() else 0))
        elif kind == "link":
            path.symlink_to(values[1])
        elif kind == "mkdir":
            path.mkdir(parents=True)


def visible(files: dict) -> dict:
    """Without what commands wrote to ignored files."""
    return {name: entry for name, entry in files.items() if name != "run.log"}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(TURNS, TURNS, MOVES), min_size=2, max_size=8))
def test_every_step_can_be_gone_back_to(plan):
    place = Path(tempfile.mkdtemp())
    operations: dict[str, list] = {}

    def act(what: str, root: Path) -> None:
        for operation in operations[what]:
            perform(operation, root)

    def call(step: tuple) -> tuple[str, dict]:
        kind, *values = step
        if kind == "command":
            operations[str(len(operations))] = values[0]
            return "command", {"what": str(len(operations) - 1)}
        name, text = values
        arguments = {
            "write_file": {"file_path": name, "content": text},
            "read_file": {"absolute_path": name},
            "edit": {"file_path": name, "old_string": "x", "new_string": text},
        }
        return kind, arguments[kind]

    try:
        bench = Bench(place, act)
        (bench.root / ".gitignore").write_text("*.log\n")
        (bench.root / "tool.log").write_text("x")
        check(plan, bench, call)
    finally:
        shutil.rmtree(place)


def check(plan: list, bench: Bench, call) -> None:
    redoable: list[tuple[list, dict]] = []
    for number, (kind, *values) in enumerate(plan):
        steps = bench.history.steps
        now = (list(bench.session.messages), visible(picture(bench.root)))
        if kind == "turn":
            turn, behind = values
            bench.turn(f"request {number}", *([call(step) for step in reply] for reply in turn))
            for operation in behind:
                perform(operation, bench.root)
            redoable = []
        elif kind == "redo" and redoable:
            bench.history.redo()
            assert (bench.session.messages, visible(picture(bench.root))) == redoable.pop()
        elif kind in ("undo", "rewind") and steps:
            requests = [step for step in steps if step.kind == "user"]
            step = requests[-1] if kind == "undo" else steps[values[0] % len(steps)]
            bench.history.undo() if kind == "undo" else bench.history.rewind(step.number)
            redoable.append(now)
            changing = [later for later in steps[step.number - 1 :] if later.snapshot is not None]
            expected = visible(bench.pictures[changing[0].position]) if changing else now[1]
            assert visible(picture(bench.root)) == expected
            assert bench.history.steps == steps[: step.number - 1]
