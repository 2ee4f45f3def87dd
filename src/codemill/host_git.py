"""Git on the host, in a repository that may be hostile: nothing runs that its files or its configuration name.

Git can be told to run programs by a repository's own settings: filters of content, drivers of diffs, monitors of files,
hooks, helpers of remotes. All of these are switched off here, whoever set them, and so is a working tree that lies
elsewhere. For commands that only read, and do not go into submodules, whose settings are their own; see
`gitattributes(5)` and `git-config(1)`.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codemill.errors import CodemillError

SECONDS = 60.0
_MARK = "codemill.isread"
_OFF = {
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.untrackedCache": "false",
    "core.attributesFile": "/dev/null",
    "core.pager": "cat",
    "core.quotePath": "false",
    "diff.external": "",
    "safe.bareRepository": "explicit",
    _MARK: "true",
}
# Nor may it fetch what a partial clone lacks: that runs the program which the remote's configuration names.
_VARIABLES = {
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "GIT_SSH_COMMAND": "false",
    "LC_ALL": "C",
}
_KEPT_VARIABLES = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_CEILING_DIRECTORIES")
# Where Git tells a hook which repository it is about; a user may say so too.
_PLACE_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")
_DRIVER = re.compile(r"(?:filter\..*\.(?:clean|smudge|process|required)|diff\..*\.(?:command|textconv))", re.DOTALL)


class GitError(CodemillError):
    """Git cannot be run, or not safely."""


@dataclass(frozen=True)
class Repository:
    """git_dir: its data. work_tree: the folder whose `.git` leads there."""

    git_dir: str
    work_tree: str


def run_git(
    folder: Path, arguments: Sequence[str], *, repository: Repository | None = None, by_environment: bool = False
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command of Git's that only reads. Its exit status is the caller's to judge.

    repository: the one that `folder` lies in, if none is given. by_environment: GIT_DIR says which, if it is set.
    Raises GitError where there is no Git, or no repository that can be trusted to be the folder's own.
    """
    kept: tuple[str, ...] = _KEPT_VARIABLES
    variables: dict[str, str] = {}
    if by_environment and "GIT_DIR" in os.environ:
        kept = (*kept, *_PLACE_VARIABLES)
    else:
        found = repository or find_repository(folder)
        variables = {"GIT_DIR": found.git_dir, "GIT_WORK_TREE": found.work_tree}
        if by_environment:
            kept = (*kept, "GIT_INDEX_FILE")
    return _run(folder, arguments, {**_taken(kept), **variables}, _drivers(folder, {**_taken(kept), **variables}))


def find_repository(folder: Path) -> Repository:
    """The one that a folder lies in. Raises GitError if there is none, or it is somebody else's."""
    done = _run(folder, ["rev-parse", "--absolute-git-dir", "--git-common-dir"], _taken(_KEPT_VARIABLES), {})
    if done.returncode:
        raise GitError(f"{folder} lies in no Git repository that can be read: {_line(done.stderr)}")
    git_dir, common = (os.path.realpath(os.path.join(folder, line)) for line in _lines(done.stdout))
    top = next((str(each) for each in (folder.resolve(), *folder.resolve().parents) if _leads_to(each, git_dir)), None)
    if top is None or not _is_own(top, git_dir, common):
        raise GitError(
            f"the .git of {top or folder} leads to {git_dir}, which does not lead back. If that is meant, say so with "
            f"GIT_DIR={git_dir}"
        )
    return Repository(git_dir, top)


def _leads_to(folder: Path, git_dir: str) -> bool:
    dot_git = folder / ".git"
    if dot_git.is_dir():
        return os.path.realpath(dot_git) == git_dir
    try:
        target = dot_git.read_text(errors="surrogateescape").removeprefix("gitdir:").strip()
    except OSError:
        return False
    return os.path.realpath(folder / target) == git_dir


def _is_own(top: str, git_dir: str, common: str) -> bool:
    """Whether a repository lies in its working tree, or names it: any text could stand in `.git`."""
    if all(each.startswith(top.rstrip("/") + "/") for each in (git_dir, common)):
        return True
    return _is_worktree(top, git_dir, common) or (common == git_dir and _is_submodule(top, git_dir))


def _is_worktree(top: str, git_dir: str, common: str) -> bool:
    try:
        back = Path(git_dir, "gitdir").read_text(errors="surrogateescape").strip()
    except OSError:
        return False
    holder = os.path.dirname(git_dir)
    is_linked = os.path.basename(holder) == "worktrees" and os.path.dirname(holder) == common
    return is_linked and os.path.realpath(os.path.join(git_dir, back)) == os.path.join(top, ".git")


def _is_submodule(top: str, git_dir: str) -> bool:
    question = ["config", "--file", os.path.join(git_dir, "config"), "--get", "core.worktree"]
    done = _run(Path(git_dir), question, {"GIT_DIR": "/dev/null"}, {})
    back = os.fsdecode(done.stdout).strip()
    return bool(back) and os.path.realpath(os.path.join(git_dir, back)) == top


def _drivers(folder: Path, place: Mapping[str, str]) -> dict[str, str]:
    """Settings that switch off every filter and diff driver that is configured anywhere."""
    done = _run(folder, ["config", "--list", "-z", "--name-only"], place, {})
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0")]
    if done.returncode or _MARK not in names:  # a Git before 2.31 does not read settings from variables
        raise GitError(f"git cannot be run safely in {folder}: {_line(done.stderr) or 'it is older than 2.31'}")
    found = {name for name in names if _DRIVER.fullmatch(name)}
    return {name: "false" if name.endswith(".required") else "" for name in found}


def _run(
    folder: Path, arguments: Sequence[str], place: Mapping[str, str], drivers: Mapping[str, str]
) -> "subprocess.CompletedProcess[bytes]":
    settings = {**_OFF, **drivers}
    numbered = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (name, value) in enumerate(settings.items()):
        numbered |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", "--no-pager", *arguments],
            cwd=folder,
            env={**kept, **_VARIABLES, **numbered, **place},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise GitError(f"git cannot be run: {error}") from None


def _taken(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _lines(output: bytes) -> list[str]:
    return os.fsdecode(output).split("\n")[:-1]


def _line(output: bytes) -> str:
    return " ".join(output.decode("utf-8", "replace").split())[:300]
