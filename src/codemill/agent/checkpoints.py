"""Takes a snapshot before each step that changes files, so that any step can be gone back to."""

from collections.abc import Callable
from pathlib import Path

from codemill.agent.session import Session
from codemill.agent.snapshots import Snapshots
from codemill.agent.timeline import is_reply, is_request
from codemill.agent.tool import Tool, ToolContext
from codemill.chat.tool_types import ToolCall

CHANGING = ("edit", "run")
PATH_ARGUMENTS = ("file_path", "absolute_path", "path")


class Checkpoints:
    """The snapshots of a session. A step that changes nothing costs nothing. tell: is given a line on each file that
    could not be kept.

    A second agent that works for the first one has the same checkpoints: what it does is part of the first one's step.
    """

    def __init__(self, session: Session, snapshots: Snapshots, tell: Callable[[str], None] = lambda text: None) -> None:
        self._session = session
        self._snapshots = snapshots
        self._tell = tell
        self._watched: set[Path] = set()
        self._told: set[str] = set()

    def before(self, tool: Tool, call: ToolCall, context: ToolContext) -> None:
        """A call was approved and is about to be made. Raises CodemillError if no snapshot can be taken."""
        if tool.spec.kind not in CHANGING:
            return
        paths = _paths(tool, call, context)
        is_ignored = any(not self._snapshots.has(path) for path in paths - self._watched)
        if is_ignored or not self._has_snapshot():
            name = self._snapshots.take(f"before {tool.spec.name}", paths)
            self._session.note("snapshot", id=name, at="before")
            self._watched |= paths
            self._tell_skipped()

    def end_turn(self) -> None:
        """The agent has done what it was asked for: what changes from here on is not its work."""
        for record in reversed(self._session.records):
            if record["type"] == "snapshot" and record["at"] == "before":
                self._session.note("snapshot", id=self._snapshots.take("end of the turn"), at="end")
            if record["type"] in ("snapshot", "replace") or is_request(record):
                return

    def _tell_skipped(self) -> None:
        for path in sorted(self._snapshots.skipped.keys() - self._told):
            self._tell(f"{path} cannot be brought back by /undo: {self._snapshots.skipped[path]}")
        self._told |= self._snapshots.skipped.keys()

    def _has_snapshot(self) -> bool:
        """Whether the step that is being made has one already."""
        for record in reversed(self._session.records):
            if record["type"] == "snapshot":
                return bool(record["at"] == "before")
            if is_reply(record):
                return False
        return False


def _paths(tool: Tool, call: ToolCall, context: ToolContext) -> set[Path]:
    """The files that an edit names."""
    given = [call.arguments[name] for name in PATH_ARGUMENTS if isinstance(call.arguments.get(name), str)]
    if tool.spec.kind != "edit" or context.workspace is None:
        return set()
    return {context.workspace.resolve(path) for path in given}
