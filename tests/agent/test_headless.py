"""What a program, or a terminal, gets of an agent without one."""

import io
import json

import pytest

from codemill.agent.events import CallDone, Notice, TextDelta
from codemill.agent.headless import HeadlessOutput
from codemill.agent.loop import Outcome
from codemill.agent.tool import Observation
from codemill.chat.tool_types import ToolCall

HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\x9b2J\udcff"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def file() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8")


def written(out: io.TextIOWrapper) -> str:
    out.flush()
    return out.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_nothing_moves_the_cursor_of_a_terminal():
    out, err = Terminal(), Terminal()
    output = HeadlessOutput("text", out, err)
    output.listener(Notice(HOSTILE))
    output.listener(CallDone(ToolCall("x\x1b[2J", {"a": HOSTILE}), Observation(HOSTILE)))
    assert output.finish(Outcome("finished", HOSTILE, 1, 1, 1.0), "s") == 0
    assert output.finish(Outcome("failed", HOSTILE, 1, 1, 1.0), "s") == 1
    assert not any(character in out.getvalue() + err.getvalue() for character in "\x1b\x9b\x07\udcff")


@pytest.mark.parametrize("form", ["text", "json", "stream-json"])
def test_whatever_is_said_can_be_written(form):
    out, err = file(), file()
    output = HeadlessOutput(form, out, err)
    output.listener(TextDelta(HOSTILE))
    output.listener(CallDone(ToolCall("x", {"a": HOSTILE}), Observation(HOSTILE)))
    output.finish(Outcome("finished", HOSTILE, 1, 1, 1.0), "s")
    if form != "text":
        assert "\x9b" not in written(out)
        last = written(out) if form == "json" else written(out).splitlines()[-1]
        assert json.loads(last)["text"] == HOSTILE
