"""After commands: repositories that they made, and in which Git would run programs, outside the sandbox.

What there was at the start is mounted read-only, see `workspace_git`. What is new cannot be, and a person's Git, or an
editor's, may enter it without being asked to: `git status` looks into submodules. So it is no repository any more until
somebody has looked at it.
"""

import contextlib
import os
import secrets
import time

from codemill.sandbox.git_folders import find_git_folders, what_it_runs
from codemill.sandbox.workspace_git import GitPlan

_SHARE = 0.05  # of the time: so much may go into looking
_ASIDE = "HEAD.set-aside"


class GitGuard:
    """Looks through a workspace. git: what was there at the start."""

    def __init__(self, root: str, git: GitPlan) -> None:
        self._root, self._git = root, git
        self._known = {folder: _identity(folder) for folder in git.folders}
        self._next_look = 0.0

    def look(self, is_last: bool = False) -> list[str]:
        """What was done, in words. Large workspaces are not looked through each time, but for the last."""
        notes = self._bring_back()
        if is_last or time.monotonic() >= self._next_look:
            began = time.monotonic()
            notes += [note for folder in self._folders() for note in self._check(folder)]
            self._next_look = time.monotonic() + (time.monotonic() - began) / _SHARE
        return notes

    def _folders(self) -> list[str]:
        """Of a worktree, the repository lies elsewhere."""
        return [folder for root in (self._root, *self._git.writable) for folder in find_git_folders(root)[0]]

    def _check(self, folder: str) -> list[str]:
        if folder in self._known and self._known[folder] == _identity(folder):
            return []  # and not another, in whose place it was put
        found = what_it_runs(folder, self._root)
        if not found:
            return []
        with contextlib.suppress(OSError):
            name = _set_aside(folder, "HEAD", _ASIDE)
            return [
                f"{folder} is no repository any more: outside the sandbox, Git would run what it names "
                f"({', '.join(found[:5])}). Take that out, then rename {name} to HEAD"
            ]
        return [f"{folder} names programs that Git would run outside the sandbox ({', '.join(found[:5])})"]

    def _bring_back(self) -> list[str]:
        """What is no file or folder cannot be mounted read-only: it must be as it was."""
        notes = []
        for path, target in self._git.links:
            if _target(path) != target:
                with contextlib.suppress(OSError):
                    _replace_by_link(path, target)
                    notes.append(f"{path} leads to {target} again: Git would run what it led to")
        for path in self._git.absent:
            if os.path.lexists(path):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    notes.append(f"removed {path}: it would make Git run what another folder or file says")
        return notes


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _replace_by_link(path: str, target: str) -> None:
    folder, name = os.path.split(path)
    if os.path.lexists(path):
        _set_aside(folder, name, f"{name}.set-aside")
    os.symlink(target, path)


def _set_aside(folder: str, name: str, aside: str) -> str:
    """Rename in a folder that is still what it was, not a link to elsewhere -> the new name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.readlink(f"/proc/self/fd/{descriptor}") != folder:
            raise OSError("it is not where it was")
        if aside in os.listdir(descriptor):
            aside = f"{aside}.{secrets.token_hex(3)}"
        os.rename(name, aside, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        return aside
    finally:
        os.close(descriptor)
