"""What there is in a workspace, but for what Git ignores: each path with its `lstat`."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from codemill.agent.file_index import SKIPPED
from codemill.errors import CodemillError
from codemill.host_git import GitError, Repository, run_git

MAX_FILES = 200_000
# Without Git nobody says what is built; with it, these may be folders of sources.
MAYBE_SOURCES = frozenset({"target", "dist", "build"})
KINDS = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})
TEMPORARY = re.compile(r"\..*\.(\d+)\.codemill")


@dataclass
class Scan:
    """Paths relative to the root, with / between names; a folder comes before what is in it.

    unseen: what was left out, a folder with / at its end. skipped: what was left out and is not ignored: why. watched:
    how some of what was left out looks.
    """

    found: dict[str, os.stat_result] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    watched: dict[str, str] = field(default_factory=dict)

    def leave_out(self, path: str, reason: str) -> None:
        """Something that nobody said is ignored."""
        self.found.pop(path, None)
        self.unseen.add(path)
        self.skipped[path] = reason


class Scanner:
    """Scans a workspace. rules_folder: for an empty repository, so that .gitignore counts also where there is none."""

    def __init__(self, root: Path, rules_folder: Path, state_dir: Path) -> None:
        self._root = str(root)
        self._rules_folder = rules_folder
        self.own = f"{state_dir.relative_to(root).as_posix()}/" if state_dir.is_relative_to(root) else None

    def scan(self, also: Iterable[str] = ()) -> Scan:
        """also: paths that are looked at although they are ignored. Raises CodemillError if there are too many."""
        scan = Scan()
        ignored = self._git_ignored()
        skipped_names = SKIPPED - MAYBE_SOURCES if ignored is not None else SKIPPED
        if ignored is None:
            ignored = self._ignored_by_rules()
        self._walk("", ignored, skipped_names, scan)
        for path in also:
            self.look(path, scan)
        return scan

    def _walk(self, folder: str, ignored: set[str], skipped_names: frozenset[str], scan: Scan) -> None:
        """Like os.walk, with paths relative to the root; links are not followed."""
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            if folder and os.path.lexists(f"{self._root}/{folder}.git"):
                self._add_nested(folder, ignored)
            for entry in self._entries(folder, scan):
                path = folder + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if path + "/" in ignored or entry.name in skipped_names or path + "/" == self.own:
                        scan.unseen.add(path + "/")
                        continue
                elif path in ignored:
                    scan.unseen.add(path)
                    continue
                elif entry.name.endswith(".codemill") and _is_temporary(entry):
                    continue
                self._add(path, entry, scan)
                if entry.is_dir(follow_symlinks=False) and path in scan.found:
                    waiting.append(path + "/")
            if len(scan.found) > MAX_FILES:
                raise CodemillError(
                    f"{self._root} has more than {MAX_FILES} files that are not ignored: no snapshot can be taken. "
                    "Work in a smaller folder, or name what is not yours in .gitignore"
                )

    def _entries(self, folder: str, scan: Scan) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(f"{self._root}/{folder}") as entries:
                yield from (entry for entry in entries if entry.name != ".git")
        except FileNotFoundError:
            return  # gone since
        except OSError as error:
            scan.unseen.add(folder)
            scan.skipped[folder] = f"it cannot be read: {error.strerror}"

    def _add(self, path: str, entry: os.DirEntry[str], scan: Scan) -> None:
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            return  # gone since, with all that was in it
        if stat.S_IFMT(found.st_mode) in KINDS:
            scan.found[path] = found
        else:
            scan.leave_out(path, "it is no plain file")

    def look(self, path: str, scan: Scan) -> None:
        """Add a path, although it is ignored, and the folders that it lies in."""
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            part = "/".join(parts[:end])
            try:
                mode = scan.found.setdefault(part, os.lstat(f"{self._root}/{part}")).st_mode
            except OSError:
                return  # nothing is there, which is known now
            if end < len(parts) and not stat.S_ISDIR(mode):
                return
            if stat.S_IFMT(mode) not in KINDS:
                scan.leave_out(part, "it is no plain file")
                return
        scan.unseen.discard(path)

    def _git_ignored(self) -> set[str] | None:
        """What Git ignores below the root; None if the root is no checkout, or is itself ignored in one."""
        ignored = _list_ignored(self._root)
        return ignored if ignored is not None and "./" not in ignored else None

    def _add_nested(self, folder: str, ignored: set[str]) -> None:
        """A repository in the repository has rules of its own."""
        ignored.update(folder + path for path in _list_ignored(f"{self._root}/{folder}") or ())

    def _ignored_by_rules(self) -> set[str]:
        """What .gitignore files say where Git is not used."""
        rules = Repository(str(self._rules_folder), self._root)
        for name in ("objects", "refs"):
            (self._rules_folder / name).mkdir(parents=True, exist_ok=True)
        (self._rules_folder / "HEAD").write_text("ref: refs/heads/none\n")
        return _list_ignored(self._root, rules) or set()


def _list_ignored(folder: str, repository: Repository | None = None) -> set[str] | None:
    """Ignored files, and folders that are ignored whole (with / at the end); None if Git cannot say."""
    listing = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    try:
        done = run_git(Path(folder), listing, repository=repository)
    except GitError:
        return None
    if done.returncode:
        return None
    paths = sorted(os.fsdecode(path) for path in done.stdout.split(b"\0") if path)
    # Git also names a folder in which all files are ignored, but then it names the files too.
    return {path for path, following in pairwise([*paths, ""]) if not _holds(path, following)}


def _holds(path: str, other: str) -> bool:
    return path.endswith("/") and other.startswith(path)


def _is_temporary(entry: os.DirEntry[str]) -> bool:
    """Whether a file is one that this program was about to put in another's place. Its own leftovers are deleted."""
    match = TEMPORARY.fullmatch(entry.name)
    if match is None:
        return False
    if not _is_alive(int(match[1])):
        with suppress(OSError):
            os.unlink(entry.path)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
