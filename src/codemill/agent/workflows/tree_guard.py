"""What became of a folder's files since a moment, and how some of them get back to what they were."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from codemill.agent.diff import file_diff
from codemill.agent.snapshot_store import Entry
from codemill.agent.snapshot_tree import Change
from codemill.agent.snapshots import Snapshots

# What running a program leaves behind, and nobody asked for.
CACHES = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "node_modules", ".hypothesis"})


class TreeGuard:
    """A context that remembers the files of a folder as they were at its beginning."""

    def __init__(self, root: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="codemill-before-")
        self._snapshots = Snapshots(Path(self._folder.name), root, with_ignored=False)

    def __enter__(self) -> Self:
        self._before = self._snapshots.take("before")
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def changes(self) -> list[Change]:
        """Files that are not what they were; folders and caches are not told of."""
        changed = self._snapshots.diff(self._before)
        return [each for each in changed if not _is_folder(each) and CACHES.isdisjoint(each.path.split("/"))]

    def put_back(self, is_kept: Callable[[Change], bool]) -> list[str]:
        """Bring back the files for which that is not so -> their names."""
        changed = self.changes()
        names = [change.path for change in changed if not is_kept(change)]
        if names:
            keep = {change.path for change in changed} - set(names)
            self._snapshots.restore(self._before, keep=keep)
        return names

    def diff(self) -> str:
        """All that changed, as a unified diff; of binary files only that they changed."""
        return "".join(self._file_diff(change) for change in self.changes())

    def _file_diff(self, change: Change) -> str:
        before, after = self._text(change.before), self._text(change.after)
        if before is None or after is None:
            return f"Binary file {change.path} {change.verb}\n"
        return file_diff(change.path, before, after) or f"{change.path}: {change.verb}\n"

    def _text(self, entry: Entry | None) -> str | None:
        """Empty for a file that is not there, None for one that is no text."""
        if entry is None:
            return ""
        data = self._snapshots.read(entry)
        try:
            return None if b"\0" in data else data.decode("utf-8")
        except UnicodeDecodeError:
            return None


def _is_folder(change: Change) -> bool:
    entries: Sequence[Entry] = [entry for entry in (change.before, change.after) if entry is not None]
    return all(entry.kind == "d" for entry in entries)
