"""Brings files back to an earlier state."""

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from codemill.agent.snapshot_store import Entry
from codemill.agent.snapshot_tree import Change

OWNER = 0o700


@dataclass
class Restored:
    """Paths by what was done with them; skipped: those that could not be brought back, and why.

    present: the snapshot of the state before, with which it can be undone.
    """

    present: str = ""
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    recreated: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class Restorer:
    """Makes changes in a folder, each file whole or not at all. read: gives a content by its digest.

    What cannot be done is reported, and the rest is done all the same. Links are never followed.
    """

    def __init__(self, root: Path, read: Callable[[bytes], bytes]) -> None:
        self._root = str(root)
        self._read = read
        self._opened: dict[str, int] = {}  # folders that were made writable for this, with the mode they get back

    def apply(self, changes: Iterable[Change]) -> Restored:
        """Bring each path from what it is before to what it is after."""
        done = Restored()
        changes = sorted(changes)
        for change in reversed(changes):  # what is in a folder goes before the folder
            if change.before is not None and (change.after is None or change.before.kind != change.after.kind):
                self._try(change.path, done, partial(self._remove, change))
        for change in changes:
            if change.after is not None and change.path not in done.skipped:
                self._try(change.path, done, partial(self._make, change, change.after))
        self._close_folders()
        for change in changes:
            if change.path not in done.skipped:
                _record(done, change)
        return done

    def _try(self, path: str, done: Restored, work: Callable[[], None]) -> None:
        try:
            self._check_parent(path)
            work()
        except OSError as error:
            done.skipped[path] = error.strerror or str(error)

    def _check_parent(self, path: str) -> None:
        """A folder may have become a link, which leads somewhere else."""
        parent = os.path.dirname(f"{self._root}/{path}")
        os.makedirs(parent, exist_ok=True)  # an ignored folder, which no snapshot has, may be gone
        if os.path.realpath(parent) != parent:
            raise OSError(f"{os.path.dirname(path)} is not the folder that it was")
        self._open_folder(parent)

    def _open_folder(self, folder: str) -> None:
        mode = stat.S_IMODE(os.lstat(folder).st_mode)
        if mode & OWNER != OWNER:
            os.chmod(folder, mode | OWNER)
            self._opened.setdefault(folder, mode)

    def _remove(self, change: Change) -> None:
        path = f"{self._root}/{change.path}"
        if change.before is not None and change.before.kind == "d":
            self._open_folder(path)
            try:
                os.rmdir(path)
            except OSError as error:
                raise OSError(
                    f"it is not empty: it has files that are ignored or not recorded ({error.strerror})"
                ) from None
            self._opened.pop(path, None)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _make(self, change: Change, after: Entry) -> None:
        path = f"{self._root}/{change.path}"
        if after.kind == "d":
            if not os.path.isdir(path) or os.path.islink(path):
                os.mkdir(path, OWNER)
                _keep_owner(path, path)
            self._opened[path] = after.mode
        elif after.kind == "l":
            self._put(path, lambda name: os.symlink(os.fsdecode(self._read(after.digest)), name))
        elif change.before is not None and change.before[::2] == after[::2]:  # the same but for the mode
            os.chmod(path, after.mode)
        else:
            data = self._read(after.digest)
            self._put(path, lambda name: _write(name, data, after.mode, path))

    def _put(self, path: str, write: Callable[[str], None]) -> None:
        """Write beside the path, then put it in its place."""
        if os.path.isdir(path) and not os.path.islink(path):
            raise OSError("a folder is in its place")
        folder, name = os.path.split(path)
        temporary = f"{folder}/.{_short(name)}.{os.getpid()}.codemill"
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            write(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _close_folders(self) -> None:
        """Give folders their modes, the deepest first."""
        for path in sorted(self._opened, reverse=True):
            with suppress(OSError):
                os.chmod(path, self._opened[path])


def _record(done: Restored, change: Change) -> None:
    if change.after is None:
        done.removed.append(change.path)
    elif change.before is None:
        done.recreated.append(change.path)
    else:
        done.changed.append(change.path)


def _write(name: str, data: bytes, mode: int, place: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    _keep_owner(name, place)
    os.chmod(name, mode)  # after the owner, since a change of that takes bits away


def _keep_owner(name: str, place: str) -> None:
    """Where root works in somebody's folder, the files stay that somebody's."""
    if os.geteuid() == 0:
        with suppress(OSError):
            model = place if name != place and os.path.lexists(place) else os.path.dirname(place)
            owner = os.lstat(model)
            os.chown(name, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _short(name: str) -> str:
    """So much of a name that there is room for more: names have at most 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:150])
