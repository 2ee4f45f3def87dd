"""Going back in a session, and forth again: the conversation and the files together."""

from collections.abc import Collection
from dataclasses import dataclass

from codemill.agent.session import Session
from codemill.agent.snapshot_restore import Restored
from codemill.agent.snapshot_tree import Change
from codemill.agent.snapshots import Snapshots
from codemill.agent.timeline import Step, Timeline
from codemill.agent.workspace import Workspace
from codemill.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """What going back to before a step would do. changes: of files; foreign: those of them that somebody else than the
    agent made since it was done, by path."""

    step: Step
    changes: tuple[Change, ...]
    foreign: frozenset[str]


@dataclass(frozen=True)
class WentBack:
    """What was done. text: the request that the session is before now, for the user to change; empty if it is none.

    num_steps: how many were undone, or redone. restored: None if no files were to be changed.
    """

    text: str
    num_steps: int
    restored: Restored | None


class History:
    """The steps of a session. Everything is recorded in the session, so that it holds after `--continue` too."""

    def __init__(self, session: Session, snapshots: Snapshots, workspace: Workspace) -> None:
        self._session = session
        self._snapshots = snapshots
        self._workspace = workspace

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that lead to the present state, the first one first."""
        return Timeline(self._session.records).steps

    def changes(self, step: Step) -> list[Change]:
        """The files that a step changed, and what was changed by others between it and the next step with changes."""
        if step.snapshot is None:
            return []
        later = [other.snapshot for other in self.steps[step.number :] if other.snapshot is not None]
        return self._snapshots.diff(step.snapshot, later[0] if later else self._end_of_turn())

    def plan(self, number: int) -> Plan:
        """What `rewind` would do. Raises UsageError for a step that there is not."""
        step = self._find(number)
        target, end = self._snapshot_of(step), self._end_of_turn()
        changes = self._snapshots.diff(target) if target is not None else []
        foreign = self._snapshots.diff(end) if target is not None and end is not None else []
        paths = {change.path for change in changes}
        return Plan(step, tuple(_reversed(changes)), frozenset(change.path for change in foreign) & paths)

    def plan_undo(self) -> Plan:
        """What `undo` would do. Raises UsageError if there is nothing to undo."""
        return self.plan(self._last_request().number)

    def undo(self, keep: Collection[str] = ()) -> WentBack:
        """Go back to before the user's last request. keep: paths that stay as they are.

        Raises UsageError if there is nothing to undo, CodemillError if the files cannot be read or kept.
        """
        return self._go_back(self._last_request(), "undo", keep)

    def rewind(self, number: int, keep: Collection[str] = ()) -> WentBack:
        """Go back to before a step. Raises as `undo` does."""
        return self._go_back(self._find(number), "rewind", keep)

    def redo(self) -> WentBack:
        """Take the last undo back. Raises UsageError if there was none, or something was asked since."""
        timeline = Timeline(self._session.records)
        if not timeline.undone:
            raise UsageError("there is nothing to redo")
        undoing = timeline.undone[-1]
        restored = self._restore(undoing.present, ())
        self._replace(undoing.position, "redo", undoing.present, restored)
        return WentBack("", len(self.steps) - len(timeline.steps), restored)

    def _go_back(self, step: Step, reason: str, keep: Collection[str]) -> WentBack:
        num_steps = len(self.steps) - step.number + 1
        target = self._snapshot_of(step)
        restored = self._restore(target, keep)
        text = self._session.records[step.position]["message"]["content"] if step.kind == "user" else ""
        self._replace(step.position, reason, target, restored)
        return WentBack(text, num_steps, restored)

    def _restore(self, target: str | None, keep: Collection[str]) -> Restored | None:
        """Bring the files back. The session knows of the present ones before any is changed."""
        if target is None:
            return None
        begun = self._session.records[-1]  # the process may have died the last time it was here
        restored = self._snapshots.restore(
            target, keep, lambda present: self._session.note("snapshot", id=present, at="going back", target=target)
        )
        if begun["type"] == "snapshot" and begun["at"] == "going back" and begun["target"] == target:
            restored.present = begun["id"]
        return restored

    def _replace(self, position: int, reason: str, target: str | None, restored: Restored | None) -> None:
        """Go on with the conversation as it was before a record."""
        past = Session()
        for record in self._session.records[:position]:
            past.apply(record)
        self._session.replace(
            past.messages,
            reason,
            requests=past.requests,
            todos=past.todos,
            known=past.known,
            position=position,
            present=restored.present if restored is not None else None,
            target=target,
        )
        self._workspace.forget()
        self._workspace.remember(past.known)

    def _snapshot_of(self, step: Step) -> str | None:
        """The files before a step: as they were before the first change since; None if nothing has changed since."""
        return next((later.snapshot for later in self.steps[step.number - 1 :] if later.snapshot is not None), None)

    def _end_of_turn(self) -> str | None:
        """The files as the agent left them; None if it was not able to say that it was done."""
        for record in reversed(self._session.records):
            if record["type"] == "snapshot":
                return str(record["id"]) if record["at"] == "end" else None
            if record.get("target") is not None:  # it went back to that
                return str(record["target"])
        return None

    def _last_request(self) -> Step:
        requests = [step for step in self.steps if step.kind == "user"]
        if not requests:
            raise UsageError("there is nothing to undo")
        return requests[-1]

    def _find(self, number: int) -> Step:
        steps = self.steps
        if not 1 <= number <= len(steps):
            raise UsageError(f"there is no step {number}: " + (f"1 to {len(steps)}" if steps else "there are none yet"))
        return steps[number - 1]


def _reversed(changes: list[Change]) -> list[Change]:
    """What takes changes back."""
    return [Change(path, after, before) for path, before, after in changes]
