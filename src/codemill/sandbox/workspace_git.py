"""The parts of a Git repository that commands may not change: what Git would execute later, outside the sandbox."""

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PARTS = ("hooks", "config", "config.worktree")  # hooks, and settings that name programs


@dataclass(frozen=True)
class GitPlan:
    """pinned: folders that must not be renamed. read_only: files and folders. writable: the repository of a worktree,
    which lies elsewhere. folders: every Git folder, for `remove_redirections`. index: the index file's content."""

    pinned: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    index: bytes = b""

    def tracks(self, path: str) -> bool:
        """Whether the index (versions 2 and 3) lists a path: two bytes whose low twelve bits are its length, the path,
        and a zero."""
        name = os.fsencode(path)
        at = self.index.find(name + b"\0")
        while at >= 2:
            (flags,) = struct.unpack_from(">H", self.index, at - 2)
            if flags & 0xFFF == min(len(name), 0xFFF):
                return True
            at = self.index.find(name + b"\0", at + 1)
        return False


def plan_git(root: str) -> GitPlan:
    """For the repository whose working tree is `root`, if it is one."""
    dot_git = os.path.join(root, ".git")
    if os.path.islink(dot_git):
        return GitPlan()
    if os.path.isdir(dot_git):
        return _plan(dot_git, dot_git)
    found = _worktree(dot_git)
    if found is None:
        return GitPlan(read_only=(dot_git,) if os.path.isfile(dot_git) else ())
    plan = _plan(*found)
    return GitPlan(
        pinned=plan.pinned,
        read_only=(dot_git, *plan.read_only),
        writable=(found[1],),
        folders=plan.folders,
        index=plan.index,
    )


def _worktree(dot_git: str) -> tuple[str, str] | None:
    """The Git folder of a linked worktree and the one it shares. It must point back: any text could stand in `.git`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        folder = Path(dot_git).read_text().removeprefix("gitdir:").strip()
        own = os.path.realpath(os.path.join(os.path.dirname(dot_git), folder))
        back = os.path.realpath(Path(own, "gitdir").read_text().strip())
        common = os.path.realpath(os.path.join(own, Path(own, "commondir").read_text().strip()))
        is_common = (
            os.path.basename(os.path.dirname(own)) == "worktrees" and os.path.dirname(os.path.dirname(own)) == common
        )
        if back == os.path.realpath(dot_git) and is_common and os.path.isfile(os.path.join(common, "HEAD")):
            return own, common
    return None


def _plan(own: str, common: str) -> GitPlan:
    hooks = os.path.join(common, "hooks")
    if not os.path.lexists(hooks):  # or a command could make it
        with contextlib.suppress(OSError):
            os.mkdir(hooks)
            owner = os.stat(common)
            os.chown(hooks, owner.st_uid, owner.st_gid)
    folders = [common, *_nested(os.path.join(common, "modules")), *_nested(os.path.join(common, "worktrees"))]
    parts = [os.path.join(folder, name) for folder in folders for name in _PARTS]
    index = b""
    with contextlib.suppress(OSError):
        index = Path(own, "index").read_bytes()
    return GitPlan(
        pinned=tuple(folders),
        read_only=tuple(path for path in parts if os.path.exists(path) and not os.path.islink(path)),
        folders=tuple(folders),
        index=index,
    )


def _nested(folder: str) -> Iterator[str]:
    """Git folders of submodules and worktrees."""
    for path, folders, names in os.walk(folder):
        if "HEAD" in names:
            folders[:] = [name for name in folders if name == "modules"]
            yield path


def remove_redirections(git: GitPlan) -> list[str]:
    """Take away a `commondir` that a command has put into a repository's own folder: with it Git reads settings and
    hooks from wherever it says -> what was removed."""
    removed = []
    for folder in git.folders:
        path = os.path.join(folder, "commondir")
        if "/worktrees/" not in folder and os.path.lexists(path):
            with contextlib.suppress(OSError):
                os.unlink(path)
                removed.append(path)
    return removed
