"""Slash commands that go back, and that show what there is to go back from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from codemill.agent.diff import file_diff
from codemill.agent.terminal.session_commands import without_data
from codemill.agent.terminal.work import Work
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.agent.history import WentBack
    from codemill.agent.snapshot_store import Entry
    from codemill.agent.snapshot_tree import Change

MAX_STEPS = 20
MAX_NAMES = 12
MAX_SHOWN = 200_000  # bytes of a file that is compared


def undo(work: Work, argument: str) -> None:
    """Go back to before the last request; what others changed since stays. Raises UsageError if there is nothing."""
    history = work.bench.history
    foreign = history.plan_undo().foreign
    _tell(work, history.undo(keep=foreign), "undone", foreign)


def rewind(work: Work, argument: str) -> None:
    """Go back to before a step, or list them. Raises UsageError for a step that there is not."""
    history = work.bench.history
    if not argument:
        rows = [f"| {step.number} | {_cell(step.summary)} |" for step in history.steps[-MAX_STEPS:]]
        if not rows:
            raise UsageError("there are no steps yet")
        work.voice.say("\n".join(["| step | |", "|---:|---|", *rows]))
        return
    if not argument.isascii() or not argument.isdigit():
        raise UsageError(f"/rewind {argument}: give the number of a step; /rewind lists them")
    foreign = history.plan(int(argument)).foreign
    _tell(work, history.rewind(int(argument), keep=foreign), "undone", foreign)


def redo(work: Work, argument: str) -> None:
    """Take the last undo back. Raises UsageError if there was none."""
    _tell(work, work.bench.history.redo(), "redone", ())


def diff(work: Work, argument: str) -> None:
    """The files as they were when the session began beside those of now."""
    history = work.bench.history
    changes: Sequence[Change] = history.plan(1).changes if history.steps else ()
    files = [change for change in changes if not _is_folder(change)]
    if not files:
        work.voice.note("nothing has changed since the session began")
    for change in files:
        _show_change(work, change)


def _show_change(work: Work, change: "Change") -> None:
    """`change` leads back to the beginning: what is before it is what is there now."""
    old, new = _text(work, change.after), _text(work, change.before)
    verb = "removed" if change.before is None else "added" if change.after is None else "changed"
    work.voice.diff(change.path, verb, "" if old is None or new is None else file_diff(change.path, old, new))


def _text(work: Work, entry: "Entry | None") -> str | None:
    """Its text; None if it has none that can be shown."""
    if entry is None:
        return ""
    data = work.bench.snapshots.read(entry)
    if len(data) > MAX_SHOWN or b"\0" in data:
        return None
    return data.decode("utf-8", "replace")


def _is_folder(change: "Change") -> bool:
    return all(entry is None or entry.kind == "d" for entry in (change.before, change.after))


def _tell(work: Work, done: "WentBack", what: str, foreign: "frozenset[str] | tuple[str, ...]") -> None:
    """What was done with the files, and the request for the user to change."""
    steps = f"{done.num_steps} step{'' if done.num_steps == 1 else 's'} {what}"
    names: list[str] = []
    if done.restored is not None:
        names = sorted({*done.restored.changed, *done.restored.removed, *done.restored.recreated})
        for path, reason in done.restored.skipped.items():
            work.voice.error(f"{path}: {reason}")
    files = f"; {'changed again' if what == 'redone' else 'back as they were'}: {_list(names)}" if names else ""
    work.voice.note(steps + files)
    if foreign:
        work.voice.note(f"left as they are, since they were changed by others since: {_list(sorted(foreign))}")
    if done.text:
        work.voice.prefill(without_data(done.text))
    work.measure()


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _cell(text: str) -> str:
    return text[:80].replace("|", "\\|").replace("`", "")
