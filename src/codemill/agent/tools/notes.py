"""`todo_write` and `save_memory`: what the agent keeps in mind, and what it shall know the next time."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec

MARKS = {"pending": "[ ]", "in_progress": "[>]", "completed": "[x]"}
HEADING = "## Remembered"


class TodoWriteTool:
    """Keeps the list of what is to be done. keep: is given each new list."""

    spec = ToolSpec(
        "todo_write",
        "think",
        "Keeps the steps of a long task; give all each time.",
        {
            "todos": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "content": {"type": "string"},
                        "status": {"enum": list(MARKS)},
                    },
                },
            }
        },
        required=("todos",),
    )

    def __init__(self, keep: Callable[[list[dict[str, Any]]], None] = lambda todos: None) -> None:
        self._keep = keep

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(f"{len(arguments['todos'])} todos")

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        todos = [{**todo, **_whole(todo)} for todo in arguments["todos"]]
        self._keep(todos)
        return Observation("Noted.", shown=todo_lines(todos))


def _whole(todo: Mapping[str, Any]) -> dict[str, str]:
    """What the list needs of each, whatever the model left out."""
    return {"content": str(todo.get("content", "")), "status": todo.get("status", "pending")}


def todo_lines(todos: list[dict[str, Any]]) -> str:
    """The list as text."""
    return "\n".join(f"{MARKS[todo.get('status', 'pending')]} {todo.get('content', '')}" for todo in todos)


class SaveMemoryTool:
    """Adds a fact to a file that is read at the beginning of each session. file: the user's, or the project's."""

    spec = ToolSpec(
        "save_memory",
        "edit",
        "Remembers a fact if the user asks.",
        {"fact": {"type": "string"}},
        required=("fact",),
    )

    def __init__(self, file: Path) -> None:
        self._file = file

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(str(self._file), f"+- {_one_line(arguments['fact'])}\n")

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        fact = _one_line(arguments["fact"])
        if not fact:
            raise ToolError("the fact is empty")
        text = self._file.read_text("utf-8") if self._file.exists() else ""
        if HEADING not in text:
            text = f"{text.rstrip()}\n\n{HEADING}\n".lstrip()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(f"{text.rstrip()}\n- {fact}\n", "utf-8")
        return Observation(f"Remembered in {self._file}.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
