"""The files of a workspace that are of interest: what Git would track, or all but the usual rubbish."""

import os
import threading
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

from codemill.agent.search_process import match_names
from codemill.agent.workspace import Workspace
from codemill.host_git import GitError, run_git

SKIPPED = frozenset(
    {".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache", ".pytest_cache", ".tox"}
    | {".ruff_cache", "target", "dist", "build", ".next", ".gradle", ".idea", ".cache"}
)
MAX_FILES = 200_000


class FileIndex:
    """The files of a workspace, found anew for each index."""

    def __init__(self, workspace: Workspace, folder: Path | None = None) -> None:
        self._workspace = workspace
        self._folder = folder or workspace.root

    @cached_property
    def paths(self) -> list[Path]:
        """All files below the folder, sorted."""
        names = _git_files(self._folder)
        found = _walk(self._folder) if names is None else (self._folder / name for name in names)
        real = cache(os.path.realpath)  # Git goes on listing what is in a folder that became a link
        return sorted(
            path for path in found if path.is_file() and not path.is_symlink() and real(path.parent) == str(path.parent)
        )

    def glob(self, pattern: str, cancel: threading.Event | None = None) -> list[Path]:
        """The files that a pattern matches: `*` within a name, `**` across folders; without `/` it matches names.

        Raises ToolError for a pattern that is none, or takes too long; Interrupted.
        """
        names = [path.relative_to(self._folder).as_posix() for path in self.paths]
        return [self.paths[file] for file in match_names(pattern.removeprefix("./") or "*", names, cancel)]


def _git_files(folder: Path) -> list[str] | None:
    """What Git tracks or would track; None where this is no checkout."""
    if not folder.is_dir():
        return None
    try:
        done = run_git(folder, ["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    except GitError:
        return None
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name] if done.returncode == 0 else None


def _walk(folder: Path) -> Iterator[Path]:
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        for name in sorted(names):
            yield Path(place, name)
            count += 1
            if count >= MAX_FILES:
                return
