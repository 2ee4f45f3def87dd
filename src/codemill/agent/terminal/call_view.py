"""A call as one line: what is done with what, and what came of it."""

from collections.abc import Mapping
from typing import Any

from codemill.agent.diff import count_changes
from codemill.agent.events import CallDone
from codemill.agent.terminal.diff_view import render_diff
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.safe_text import cut, safe_line, safe_text, visible_line
from codemill.chat.tool_types import ToolCall

SUBJECTS = ("command", "file_path", "absolute_path", "pattern", "url", "description", "path", "fact")
MARK = "•"
OUTPUT_LINES = 6  # of a command, when it is done
ERROR_LINES = 4
INDENT = "    "


def subject(call: ToolCall) -> str:
    """What a call is about, on one line."""
    arguments: Mapping[str, Any] = call.arguments
    for name in SUBJECTS:
        if isinstance(arguments.get(name), str) and arguments[name].strip():
            return visible_line(arguments[name])
    if isinstance(arguments.get("paths"), list):
        return visible_line(", ".join(str(path) for path in arguments["paths"]))
    return ""


def call_line(
    call: ToolCall,
    columns: int,
    ink: Ink,
    note: str = "",
    *,
    failed: bool = False,
    depth: int = 0,
    with_subject: bool = True,
) -> str:
    """`• name subject · note`, cut to the window. depth: 1 for a call of a second agent."""
    name, about, note = safe_line(call.name), subject(call) if with_subject else "", safe_line(note)
    begin = f"{'  ' * depth}{MARK} "
    note = f" · {note}" if note else ""
    room = max(8, columns - len(begin) - len(name) - 1)
    note = cut(note, max(8, room - 12))
    about = cut(about, max(4, room - len(note))) if about else ""
    mark = ink(begin, "red") if failed else ink(begin, "cyan")
    return f"{mark}{ink(name, 'bold')}{' ' if about else ''}{about}{ink(note, 'red' if failed else 'dim')}"


def done_note(done: CallDone) -> str:
    """What came of a call, in short."""
    text, shown = done.observation.text, done.observation.shown
    if done.observation.is_error:
        return _status(text) or "failed"
    if shown is not None and shown.startswith("--- "):
        added, removed = count_changes(shown)
        return f"+{added} -{removed}"
    if done.call.name == "run_shell_command":
        return _status(text) or _count(text.splitlines(), "line")
    if done.call.name in ("todo_write", "save_memory", "exit_plan_mode", "task"):
        return ""
    return _count(text.splitlines(), "line") if "\n" in text.strip() else safe_line(text)


def done_details(done: CallDone, columns: int, ink: Ink, with_diff: bool = True) -> str:
    """What stands below the line: a diff, the end of a command's output, an error, the todos; or nothing."""
    observation = done.observation
    if observation.is_error and done.call.name != "run_shell_command":
        text = observation.text.removeprefix("Error: ")
        return _lines(text, columns, ink, ERROR_LINES, "red", first=True)
    if observation.shown is not None and observation.shown.startswith("--- "):
        return render_diff(observation.shown, columns, ink) if with_diff else ""
    if done.call.name == "run_shell_command":
        text = observation.text.rstrip()
        return _lines(text.rpartition("\n")[0] if _status(text) else text, columns, ink, OUTPUT_LINES, "dim")
    if done.call.name == "todo_write" and observation.shown:
        return _lines(observation.shown, columns, ink, 30, first=True)
    if done.call.name == "task":
        return _lines(observation.text, columns, ink, ERROR_LINES, "dim", first=True)
    return ""


def _status(text: str) -> str:
    """`exit status 1`, or what else a command's last line in brackets says."""
    last = safe_line(text.rstrip().rpartition("\n")[2])
    return last[1:-1] if last.startswith("[") and last.endswith("]") and len(last) < 80 else ""


def _lines(text: str, columns: int, ink: Ink, count: int, style: str = "", first: bool = False) -> str:
    """The last lines, or the first ones, and how many there are besides."""
    lines = [line for line in safe_text(text).rstrip().split("\n") if line.strip()]
    hidden = len(lines) - count
    if hidden > 0:
        note = ink(f"{INDENT}… {_count([''] * hidden, 'more line')}", "dim")
        lines = lines[:count] if first else lines[-count:]
    shown = [INDENT + cut(line, columns - len(INDENT)) for line in lines]
    styled = [ink(line, style) if style else line for line in shown]
    if hidden > 0:
        styled = [*styled, note] if first else [note, *styled]
    return "\n".join(styled)


def _count(items: list[str], what: str) -> str:
    return f"{len(items):,} {what}{'' if len(items) == 1 else 's'}"
