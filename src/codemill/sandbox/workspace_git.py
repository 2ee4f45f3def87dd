"""The parts of Git repositories that commands may not change: what Git would execute later, outside the sandbox."""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codemill.sandbox.git_folders import PARTS, find_git_folders, included_files

_OF_WORKTREE = ("commondir", "gitdir")  # where a worktree's repository is, and where its files are


@dataclass(frozen=True)
class GitPlan:
    """pinned: folders that must not be renamed. read_only: files and folders. writable: the repository of a worktree,
    which lies elsewhere. folders: every Git folder. links: path -> target, and absent: paths that must stay so, since
    neither can be mounted read-only. index: the index file's content."""

    pinned: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    absent: tuple[str, ...] = ()
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
    """For all repositories in `root`, and the one whose working tree it is."""
    inside, pointers = find_git_folders(root)
    dot_git = os.path.join(root, ".git")
    own, common = _worktree(dot_git) or (dot_git, "")
    folders = list(dict.fromkeys([*_with_kin(common), *inside]))
    for folder in folders:
        _make_hooks(folder)
    parts = [os.path.join(folder, name) for folder in folders for name in _parts(folder)]
    files = [*_settled(parts, root), *(path for path in pointers if not os.path.islink(path))]
    return GitPlan(
        pinned=tuple(folders),
        read_only=tuple(dict.fromkeys(files)),
        writable=(common,) if common else (),
        folders=tuple(folders),
        links=tuple((path, os.readlink(path)) for path in (*parts, *pointers) if os.path.islink(path)),
        absent=tuple(path for path in parts if not os.path.lexists(path)),
        index=_read(os.path.join(own, "index")),
    )


def _parts(folder: str) -> tuple[str, ...]:
    return (*PARTS, *_OF_WORKTREE) if _is_worktrees(folder) else (*PARTS, "commondir")


def _is_worktrees(folder: str) -> bool:
    return os.path.basename(os.path.dirname(folder)) == "worktrees"


def _settled(parts: Iterable[str], root: str) -> Iterator[str]:
    """What is there, and what it leads to: links that stay in the workspace, and files with more settings."""
    for path in parts:
        if not os.path.exists(path):
            continue
        real = os.path.realpath(path)
        if not os.path.islink(path) or _lies_in(real, root):
            yield real
        if os.path.basename(path) in ("config", "config.worktree"):
            more = [os.path.realpath(each) for each in included_files(real)]
            yield from (each for each in more if os.path.exists(each) and _lies_in(each, root))


def _lies_in(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _worktree(dot_git: str) -> tuple[str, str] | None:
    """The Git folder of a linked worktree and the one it shares. It must point back: any text could stand in `.git`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        folder = Path(dot_git).read_text().removeprefix("gitdir:").strip()
        own = os.path.realpath(os.path.join(os.path.dirname(dot_git), folder))
        back = os.path.realpath(Path(own, "gitdir").read_text().strip())
        common = os.path.realpath(os.path.join(own, Path(own, "commondir").read_text().strip()))
        is_common = _is_worktrees(own) and os.path.dirname(os.path.dirname(own)) == common
        if back == os.path.realpath(dot_git) and is_common and os.path.isfile(os.path.join(common, "HEAD")):
            return own, common
    return None


def _with_kin(common: str) -> list[str]:
    """A repository's folder, and those of its submodules and worktrees."""
    return find_git_folders(common)[0] if common else []


def _make_hooks(folder: str) -> None:
    """Or a command could make it; and the file of settings, which need not be there."""
    if _is_worktrees(folder):
        return
    with contextlib.suppress(OSError):
        owner = os.stat(folder)
        for path, make in ((os.path.join(folder, "hooks"), os.mkdir), (os.path.join(folder, "config"), _touch)):
            if not os.path.lexists(path):
                make(path)
                os.chown(path, owner.st_uid, owner.st_gid)


def _touch(path: str) -> None:
    with open(path, "x"):
        pass


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
