"""The shell as a tool, in the real sandbox."""

import threading
import time

import pytest

pytest.importorskip("pathspec")

from codemill.agent.repetition import RepetitionGuard
from codemill.agent.stops import Interrupted, LoopFound
from codemill.agent.tool import Observation, ToolContext, ToolError
from codemill.agent.tools.shell import ShellTool
from codemill.agent.workspace import Workspace
from codemill.chat.tool_types import ToolCall
from codemill.sandbox import IsolationError


@pytest.fixture
def tool(tmp_path):
    from codemill.sandbox.workspace_shell import WorkspaceShell

    (tmp_path / "work/inner").mkdir(parents=True)
    try:
        shell = WorkspaceShell(tmp_path / "work")
    except IsolationError as error:
        pytest.skip(f"no isolation here: {error}")
    with shell:
        yield ShellTool(shell), ToolContext(Workspace(tmp_path / "work"))


def test_commands(tool):
    shell, context = tool
    seen = []
    told = shell.run({"command": "echo out; echo err >&2; exit 3"}, ToolContext(context.workspace, print=seen.append))
    assert told.is_error
    assert told.text == "out\nerr\n[exit status 3]"
    assert "".join(seen) == "out\nerr\n"
    assert shell.run({"command": "true"}, context).text == "[no output]"
    assert shell.run({"command": "pwd", "directory": "inner"}, context).text.endswith("/work/inner")
    with pytest.raises(ToolError, match="no folder"):
        shell.run({"command": "pwd", "directory": "gone"}, context)
    with pytest.raises(ToolError, match="empty"):
        shell.preview({"command": "  "}, context)


def test_a_command_that_takes_too_long(tool):
    shell, context = tool
    told = shell.run({"command": "echo begun; sleep 60", "timeout": 0.5}, context)
    assert told.text == "begun\n[ended after 0.5 s: give a longer timeout, or run it in the background]"


def test_the_user_stops_a_command(tool):
    shell, context = tool
    threading.Timer(0.3, context.cancel.set).start()
    begin = time.monotonic()
    with pytest.raises(Interrupted):
        shell.run({"command": "sleep 60"}, context)
    assert time.monotonic() - begin < 5


def test_a_command_in_the_background(tool):
    shell, context = tool
    told = shell.run({"command": "while true; do date; sleep 0.1; done", "is_background": True}, context).text
    number = told.partition("as process ")[2].partition(";")[0]
    assert f"[background process {number} printed:]" in shell.run({"command": "sleep 0.5"}, context).text
    text = shell.run({"command": f"kill {number}"}, context).text  # which may already say that it ended
    deadline = time.monotonic() + 10
    while "ended with status" not in text:
        text = shell.run({"command": "sleep 0.1"}, context).text
        assert time.monotonic() < deadline, text
    assert shell.run({"command": "false", "is_background": True}, context).text == "[no output]\n[exit status 1]"


def test_polling_is_work_only_if_time_passes(tool):
    """A command in the background is asked about again and again, and each time it is as it was."""
    shell, context = tool

    def poll(command: str, most: int) -> int:
        guard, call = RepetitionGuard(), ToolCall("run_shell_command", {"command": command})
        for number in range(most):
            try:
                guard.note(call, shell.run(call.arguments, context))
            except LoopFound:
                return number + 1
        return 0

    assert poll("echo same", 6) == 4
    assert poll("sleep 0.1; echo same", 6) == 4
    assert poll("sleep 1; echo same", 6) == 0
    shell.run({"command": "sleep 60", "is_background": True}, context)
    assert poll("echo same", 6) == 4
    assert poll("read -t 1.1 x < <(sleep 3); echo same", 6) == 0


def test_even_waiting_comes_to_an_end():
    guard, call = RepetitionGuard(), ToolCall("run_shell_command", {"command": "x"})
    notes = [guard.note(call, Observation("same", has_waited=True)) for _ in range(20)]
    assert [bool(note) for note in notes] == [False] * 19 + [True]
    assert "20 times" in notes[-1]
    with pytest.raises(LoopFound):
        guard.note(call, Observation("same", has_waited=True))
