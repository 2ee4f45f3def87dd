"""Tools for files, on a small workspace."""

import os
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("pathspec")

from codemill.agent.tool import ToolContext, ToolError
from codemill.agent.tools.edit import EditTool
from codemill.agent.tools.find import GlobTool, GrepSearchTool, ListDirectoryTool
from codemill.agent.tools.notes import SaveMemoryTool, TodoWriteTool
from codemill.agent.tools.read_file import ReadFileTool, ReadManyFilesTool
from codemill.agent.tools.write_file import WriteFileTool
from codemill.agent.workspace import Workspace

CODE = "def add(a, b):\n    return a - b\n\n\ndef sub(a, b):\n    return a - b\n"


@pytest.fixture
def context(tmp_path: Path) -> ToolContext:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/sums.py").write_text(CODE)
    (tmp_path / "README.md").write_text("# Sums\n")
    return ToolContext(Workspace(tmp_path))


def root(context: ToolContext) -> Path:
    return context.workspace.root


def edit(context: ToolContext, old: str, new: str, path: str = "src/sums.py", **more) -> str:
    arguments = {"file_path": path, "old_string": old, "new_string": new, **more}
    EditTool().preview(arguments, context)
    return EditTool().run(arguments, context).text


def test_edit(context):
    told = edit(context, "def add(a, b):\n    return a - b", "def add(a, b):\n    return a + b")
    assert told == "Edited src/sums.py: +1 -1 lines."
    assert (root(context) / "src/sums.py").read_text() == CODE.replace("a - b", "a + b", 1)


def test_an_edit_that_is_not_unique_names_the_lines(context):
    with pytest.raises(ToolError, match=r"occurs 2 times in src/sums\.py, at lines 2, 6"):
        edit(context, "    return a - b", "    return a + b")
    assert "2 times" in edit(context, "a - b", "a + b", replace_all=True)


def test_an_edit_that_is_not_found_shows_the_nearest(context):
    with pytest.raises(ToolError) as error:
        edit(context, "def add(a, b):\n    return a * b\n", "x")
    assert "-    return a * b\n+    return a - b" in str(error.value)
    assert "lines 1 to 2" in str(error.value)
    with pytest.raises(ToolError, match="Nothing in it is like that"):
        edit(context, "class Entirely:\n    different = 'things'\n    more = 12345\n", "x")


def test_wrong_indentation_is_mended_where_only_one_place_can_be_meant(context):
    (root(context) / "a.py").write_text("class A:\n    def f(self):\n        if x:\n            return 1\n")
    told = edit(context, "if x:\n    return 1", "if x:\n    return 2\nreturn 3", "a.py")
    assert "indentation" in told
    expected = "class A:\n    def f(self):\n        if x:\n            return 2\n        return 3\n"
    assert (root(context) / "a.py").read_text() == expected
    (root(context) / "b.py").write_text("  x = 1\n    x = 1\n")
    with pytest.raises(ToolError, match="at lines 1, 2"):
        edit(context, "\tx = 1", "\tx = 2", "b.py")


def test_indentation_that_differs_unevenly_is_not_guessed(context):
    (root(context) / "a.py").write_text("if x:\n        y\n    z\n")
    with pytest.raises(ToolError, match="does not occur"):
        edit(context, "if x:\n    y\n    z", "w", "a.py")


@pytest.mark.parametrize(
    "data",
    [
        b"a\r\nb\r\n",
        b"\xef\xbb\xbfa\nb\n",
        b"a\nb",
        b"a\r\nb\nc\r\n",
        "a\nb\né".encode("latin-1"),
        "a\nb\n你好".encode(),
        b"a\r\r\nb\r\n",
        b"a\rb\r\n",
        b"a\r\nb",
        b"\r\n\r\nb\r\n\r\n",
        b"a\x0cb\x85\r\n",
        b"\xef\xbb\xbfa\r\nb \xff\r\n",
        "a\u2028b\r\n".encode(),
        b"\xef\xbb\xbf\xef\xbb\xbfb\n",
    ],
)
def test_what_is_not_edited_stays_as_it_is(context, data):
    path = root(context) / "t.txt"
    path.write_bytes(data)
    path.chmod(0o755)
    edit(context, "b", "B", "t.txt")
    assert path.read_bytes() == data.replace(b"b", b"B")
    assert path.stat().st_mode & 0o777 == 0o755
    assert sorted(entry.name for entry in root(context).iterdir()) == ["README.md", "src", "t.txt"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["a\r\nb\r\n", "a\nb", "é\r\n\U0001f600 b\r\n你好", "a\r\r\nb\r\n"])
def test_utf_16_stays_as_it_is(context, encoding, text):
    path = root(context) / "t.txt"
    path.write_bytes(("\ufeff" + text).encode(encoding))
    assert "b" in ReadFileTool().run({"absolute_path": "t.txt"}, context).text
    edit(context, "b", "Bö", "t.txt")
    assert path.read_bytes() == ("\ufeff" + text.replace("b", "Bö")).encode(encoding)
    WriteFileTool().run({"file_path": "t.txt", "content": "x\ny\n"}, context)
    newline = "\r\n" if "\r\n" in text and "\r\r" not in text else "\n"
    assert path.read_bytes() == f"\ufeffx{newline}y{newline}".encode(encoding)


@pytest.mark.parametrize(
    "data", [b"\xff\xfea\0b", b"\xff\xfe\0\xd8a\0", b"a\0b\0\n\0", b"\xfe\xff\0\0\0a", b"\xff\xfe\0\0a\0\0\0"]
)
def test_what_only_looks_like_utf_16_is_not_touched(context, data):
    """Half a character, half a pair, no mark, a zero, UTF-32."""
    path = root(context) / "t.txt"
    path.write_bytes(data)
    with pytest.raises(ToolError, match="binary"):
        edit(context, "a", "b", "t.txt")
    assert path.read_bytes() == data


def test_a_search_that_finds_nothing_near_ends(context):
    (root(context) / "big.txt").write_text("".join(f"{'ab' * 40} {number % 7}\n" for number in range(60_000)))
    began = time.monotonic()
    with pytest.raises(ToolError, match="does not occur"):
        edit(context, "ab" * 20_000 + "\n" + "ba" * 20_000, "x", "big.txt")
    with pytest.raises(ToolError, match="does not occur"):
        edit(context, "\n".join("ba" * 40 for _ in range(40)), "x", "big.txt")
    assert time.monotonic() - began < 15


def test_a_diff_of_lines_that_recur(context):
    lines = [f"line {number % 500}\n" for number in range(60_000)]
    (root(context) / "big.txt").write_text("".join(lines))
    ReadFileTool().run({"absolute_path": "big.txt"}, context)
    began = time.monotonic()
    WriteFileTool().preview({"file_path": "big.txt", "content": "".join(reversed(lines))}, context)
    assert time.monotonic() - began < 10


def test_a_new_file(context):
    assert "Made" in WriteFileTool().run({"file_path": "deep/er/x.py", "content": "x = 1\n"}, context).text
    edit(context, "", "y = 1\n", "y.py")
    assert (root(context) / "deep/er/x.py").read_text() == "x = 1\n"
    with pytest.raises(ToolError, match=r"y.py exists"):
        edit(context, "", "z", "y.py")


def test_what_was_not_read_or_has_changed_is_not_overwritten(context):
    arguments = {"file_path": "src/sums.py", "content": "x"}
    with pytest.raises(ToolError, match="have not read it"):
        WriteFileTool().preview(arguments, context)
    ReadFileTool().run({"absolute_path": "src/sums.py"}, context)
    (root(context) / "src/sums.py").write_text("# the user's\n")
    with pytest.raises(ToolError, match="changed since"):
        WriteFileTool().run(arguments, context)
    ReadFileTool().run({"absolute_path": "src/sums.py"}, context)
    WriteFileTool().run(arguments, context)
    WriteFileTool().run({**arguments, "content": "y"}, context)  # what it wrote itself it knows
    assert (root(context) / "src/sums.py").read_text() == "y"


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "~/.ssh/id_rsa", "link/x", ".git/config", "src/../../x", ""])
def test_paths_outside_are_refused(context, path):
    (root(context) / "link").symlink_to("/etc")
    for tool, arguments in [
        (ReadFileTool(), {"absolute_path": path}),
        (WriteFileTool(), {"file_path": path, "content": "x"}),
        (EditTool(), {"file_path": path, "old_string": "a", "new_string": "b"}),
        (ListDirectoryTool(), {"path": path}),
    ]:
        with pytest.raises(ToolError):
            tool.run(arguments, context)


def test_a_link_within_stays_a_link(context):
    (root(context) / "link.py").symlink_to("src/sums.py")
    edit(context, "def sub", "def minus", "link.py")
    assert (root(context) / "link.py").is_symlink()
    assert "def minus" in (root(context) / "src/sums.py").read_text()


def test_reading(context):
    text = "".join(f"line {number}\n" for number in range(1, 3001))
    (root(context) / "long.txt").write_text(text)
    read = ReadFileTool()
    assert read.run({"absolute_path": "src/sums.py"}, context).text == CODE.rstrip("\n")
    assert read.run({"absolute_path": str(root(context) / "README.md")}, context).text == "# Sums"
    part = read.run({"absolute_path": "long.txt", "offset": 10, "limit": 2}, context).text
    assert part == "line 11\nline 12\n[lines 11 to 12 of 3000]"
    assert read.run({"absolute_path": "long.txt"}, context).text.endswith("[lines 1 to 1000 of 3000]")
    with pytest.raises(ToolError, match="3000 lines"):
        read.run({"absolute_path": "long.txt", "offset": 3000}, context)
    with pytest.raises(ToolError, match=r"there is no file nothing\.py"):
        read.run({"absolute_path": "nothing.py"}, context)
    (root(context) / "b.bin").write_bytes(b"\0\1\2")
    with pytest.raises(ToolError, match="binary"):
        read.run({"absolute_path": "b.bin"}, context)
    with (root(context) / "huge.txt").open("wb") as file:
        file.truncate(20 << 20)
    with pytest.raises(ToolError, match="20 MiB"):
        read.run({"absolute_path": "huge.txt"}, context)
    os.mkfifo(root(context) / "pipe")
    with pytest.raises(ToolError, match="no plain file"):
        read.run({"absolute_path": "pipe"}, context)


def test_reading_many(context):
    (root(context) / ".env").write_text("KEY=1")
    text = ReadManyFilesTool().run({"paths": ["**/*.py", "README.md", "gone.md"]}, context).text
    assert f"--- src/sums.py ---\n{CODE.rstrip()}" in text
    assert "--- gone.md ---\n[there is no file gone.md]" in text
    with pytest.raises(ToolError, match="no file matches"):
        ReadManyFilesTool().run({"paths": ["**/.env"]}, context)


def test_listing_and_finding(context):
    (root(context) / "node_modules").mkdir()
    (root(context) / "node_modules/x.py").write_text("def add(): pass")
    assert ListDirectoryTool().run({"path": "."}, context).text == "node_modules/ [not searched]\nsrc/\nREADME.md"
    assert GlobTool().run({"pattern": "*.py"}, context).text == "src/sums.py"
    assert GlobTool().run({"pattern": "src/**"}, context).text == "src/sums.py"
    assert GlobTool().run({"pattern": "*.rs"}, context).text == "No file matches *.rs."
    assert GrepSearchTool().run({"pattern": r"def \w+"}, context).text.splitlines() == [
        "src/sums.py:1:def add(a, b):",
        "src/sums.py:5:def sub(a, b):",
    ]
    (root(context) / "many.txt").write_text("same\n" * 500)
    assert "more than 100 lines" in GrepSearchTool().run({"pattern": "same"}, context).text
    assert "No line" in GrepSearchTool().run({"pattern": "def", "glob": "*.md"}, context).text
    with pytest.raises(ToolError, match="no regular expression"):
        GrepSearchTool().run({"pattern": "f("}, context)


def test_git_decides_what_is_searched(context):
    subprocess.run(["git", "init", "-q"], cwd=root(context), check=True)
    (root(context) / ".gitignore").write_text("ignored.py\n")
    (root(context) / "ignored.py").write_text("def add(): pass")
    found = GrepSearchTool().run({"pattern": "def add"}, context).text
    assert found == "src/sums.py:1:def add(a, b):"


def test_a_repository_cannot_make_git_run_something(context):
    subprocess.run(["git", "init", "-q"], cwd=root(context), check=True)
    trap = root(context) / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {root(context)}/caught\n")
    trap.chmod(0o755)
    subprocess.run(["git", "config", "core.fsmonitor", str(trap)], cwd=root(context), check=True)
    GlobTool().run({"pattern": "*.py"}, context)
    assert not (root(context) / "caught").exists()


def test_todos_and_memory(context, tmp_path):
    kept = []
    tool = TodoWriteTool(kept.append)
    todos = [{"content": "look", "status": "completed"}, {"content": "mend", "status": "in_progress"}]
    assert tool.run({"todos": todos}, context).shown == "[x] look\n[>] mend"
    assert kept == [todos]
    file = tmp_path / "config/AGENTS.md"
    for fact in ("Tests run with\npytest.", "Use tabs."):
        SaveMemoryTool(file).run({"fact": fact}, context)
    assert file.read_text() == "## Remembered\n- Tests run with pytest.\n- Use tabs.\n"
