"""Snapshots: copies of a workspace's files, kept outside it and outside the user's Git, to go back to."""

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from codemill.agent.snapshot_ignored import keep_ignored
from codemill.agent.snapshot_reader import read_entries
from codemill.agent.snapshot_restore import Restored, Restorer
from codemill.agent.snapshot_scan import Scanner
from codemill.agent.snapshot_state import State, changed_unkept, differences, load_state, mark, save_state
from codemill.agent.snapshot_store import Entry, Objects, SnapshotStore
from codemill.agent.snapshot_tree import Change

UNKEPT = "Git ignores it, and it is too large to be kept: it has changed since, and stays as it is now"
MIN_AGE = 3600.0  # seconds that a snapshot is kept although no session names it yet


class Snapshots:
    """Takes snapshots of a workspace and goes back to them. folder: where they are kept; state_dir: what is around it,
    which is no part of the workspace also where it lies in it.

    What Git ignores is left out, unless it is small, or the agent is about to change it; with_ignored: whether the
    small is kept. One process at a time works with a folder; others wait.
    """

    def __init__(self, folder: Path, root: Path, state_dir: Path | None = None, with_ignored: bool = True) -> None:
        self.root = root.resolve()
        self._with_ignored = with_ignored
        self.skipped: dict[str, str] = {}  # what the latest snapshot lacks though it is not ignored, and why
        self._store = SnapshotStore(folder)
        self._scanner = Scanner(self.root, folder / "rules.git", (state_dir or folder).resolve())
        self._found: frozenset[str] = frozenset()  # by the latest snapshot

    def take(self, label: str = "", changing: Iterable[Path] = ()) -> str:
        """Keep the present state; its id, which is the same for the same state. Raises CodemillError if it cannot.

        changing: files that the agent is about to change, which are kept from now on although they may be ignored.
        """
        names = [path.relative_to(self.root).as_posix() for path in changing]
        with self._store.open() as objects:
            return self._take(objects, label, names).id

    def has(self, path: Path) -> bool:
        """Whether a file is in the latest snapshot that was taken here, and so will be in the next."""
        return path.relative_to(self.root).as_posix() in self._found

    def diff(self, before: str, after: str | None = None) -> list[Change]:
        """What changed between two snapshots, or since one (None: until now). Raises UsageError if there is none."""
        with self._store.open() as objects:
            old = load_state(objects, before)
            new = load_state(objects, after) if after is not None else self._take(objects, "looked at")
            return differences(objects, old, new)

    def restore(
        self, name: str, keep: Collection[str] = (), on_kept: Callable[[str], None] = lambda present: None
    ) -> Restored:
        """Bring the files back to a snapshot, but for those in `keep`.

        The present state is kept before, and `on_kept` is told of it before anything is changed. Files that were made
        since are removed. What was ignored at that time, or was left out, stays as it is.
        """
        with self._store.open() as objects:
            target = load_state(objects, name)
            present, changes = self._plan(objects, target)
        on_kept(present.id)
        with self._store.open() as objects:
            unkept = {change.path for change in changes if not present.knows(change.path)}
            chosen = [change for change in changes if change.path not in unkept and change.path not in keep]
            done = Restorer(self.root, objects.get).apply(chosen)
        done.present = present.id
        done.skipped.update(dict.fromkeys(unkept, "what is there now is too large to be kept, so it was left"))
        done.skipped.update(dict.fromkeys(changed_unkept(present, target), UNKEPT))
        return done

    def read(self, entry: Entry) -> bytes:
        """The content of a file, or a link's target."""
        with self._store.open() as objects:
            return objects.get(entry.digest)

    def collect(self, live: Collection[str], min_age: float | None = None) -> int:
        """Delete snapshots that are not among the live ones; how many contents that freed."""
        with self._store.open() as objects:
            objects.forget(objects.old_snapshots(live, time.time() - (MIN_AGE if min_age is None else min_age)))
            needed = {entry.digest for entry in objects.touched().values() if entry is not None}
            for name in objects.snapshot_names():
                mark(objects, name, needed)
            count = objects.sweep(needed)
        self._store.shrink()
        return count

    def _plan(self, objects: Objects, target: State) -> tuple[State, list[Change]]:
        """The present state, with all that will be overwritten, and what is to be done."""
        present = self._take(objects, "before going back")
        changes = differences(objects, present, target, is_certain=False)
        hidden = [change.path for change in changes if not present.knows(change.path)]
        if hidden:
            present = self._take(objects, "before going back", also=hidden)
            changes = differences(objects, present, target, is_certain=False)
        return present, changes

    def _take(self, objects: Objects, label: str, changing: Iterable[str] = (), also: Iterable[str] = ()) -> State:
        """also: paths that are about to be overwritten."""
        touched = objects.touched()
        now = time.time_ns()
        scan = self._scanner.scan([*touched, *also])
        if self._with_ignored:
            keep_ignored(str(self.root), self._scanner.own, scan)
        new = [name for name in changing if name not in scan.found and name not in touched]
        for name in new:
            self._scanner.look(name, scan)
        entries = read_entries(objects, self.root, scan, now, large={*also, *changing})
        for name in new:
            objects.touch(name, entries.get(name))
        self.skipped, self._found = scan.skipped, frozenset(entries)
        return save_state(objects, label, entries, scan.unseen, {*touched, *also, *new}, scan.watched)
