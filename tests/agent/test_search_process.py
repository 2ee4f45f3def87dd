"""Patterns that a model wrote, and which may take for ever."""

import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pathspec")

from codemill.agent import process_apart, search_process
from codemill.agent.stops import Interrupted
from codemill.agent.tool import ToolContext, ToolError
from codemill.agent.tools.find import GlobTool, GrepSearchTool
from codemill.agent.workspace import Workspace

CATASTROPHIC = "(a+)+$"


@pytest.fixture
def context(tmp_path: Path) -> ToolContext:
    (tmp_path / "text.txt").write_text("fine\n" + "a" * 60 + "b\n")
    return ToolContext(Workspace(tmp_path))


def grep(context: ToolContext, pattern: str, **more: str) -> str:
    return GrepSearchTool().run({"pattern": pattern, **more}, context).text


def test_a_catastrophic_pattern_is_stopped_and_named(context, monkeypatch):
    monkeypatch.setattr(search_process, "SECONDS", 0.5)
    with pytest.raises(ToolError, match=r"'\(a\+\)\+\$' was stopped, since it takes too long in text.txt"):
        grep(context, CATASTROPHIC)


def test_what_a_catastrophic_pattern_found_before_is_lost_but_the_next_search_works(context, monkeypatch):
    monkeypatch.setattr(search_process, "SECONDS", 0.5)
    with pytest.raises(ToolError):
        grep(context, CATASTROPHIC)
    assert grep(context, "fine") == "text.txt:1:fine"


def test_ctrl_c_ends_a_search_at_once(context):
    began = time.monotonic()
    timer = threading.Timer(1.0, context.cancel.set)
    timer.start()
    with pytest.raises(Interrupted):
        grep(context, CATASTROPHIC)
    assert time.monotonic() - began < 3.0


def test_no_process_is_left(context, monkeypatch):
    started = []
    start = process_apart._start
    monkeypatch.setattr(process_apart, "_start", lambda module: started.append(start(module)) or started[-1])
    monkeypatch.setattr(search_process, "SECONDS", 0.3)
    with pytest.raises(ToolError):
        grep(context, CATASTROPHIC)
    (context.workspace.root / "many.txt").write_text("same\n" * 100_000)
    grep(context, "same")  # which stops after a hundred lines
    assert [process.poll() for process in started] == [-9, -9]


def test_a_glob_pattern_with_too_many_stars(context, monkeypatch):
    monkeypatch.setattr(search_process, "SECONDS", 0.5)
    (context.workspace.root / ("a" * 200)).touch()
    for run in (
        lambda: GlobTool().run({"pattern": "*a" * 20 + "b"}, context),
        lambda: grep(context, "x", glob="*a" * 20 + "b"),
    ):
        with pytest.raises(ToolError, match=r"takes too long.*fewer"):
            run()


@pytest.mark.parametrize("pattern", ["f(", "(?P<a>x)(?P<a>y)", "a{99999999999}", "(" * 5000, "["])
def test_patterns_that_are_none(context, pattern):
    with pytest.raises(ToolError, match="is no regular expression"):
        grep(context, pattern)


def test_names_and_lines_of_any_bytes(context):
    name = b"odd \xff\n.txt".decode("utf-8", "surrogateescape")
    (context.workspace.root / name).write_bytes(b"x\xffy\x1b[31m\n")
    assert "x�y" in grep(context, "x.y")


def test_files_that_are_none(context):
    (context.workspace.root / "binary").write_bytes(b"fine\0")
    (context.workspace.root / "huge").write_bytes(b"fine\n" * 500_000)
    assert grep(context, "fine") == "text.txt:1:fine"
