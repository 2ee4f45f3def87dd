"""What commands see of the host's files: decided here, before anything is isolated, and mounted by `workspace_root`."""

import os
import pwd
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codemill.errors import UsageError
from codemill.sandbox.workspace_git import GitPlan, plan_git
from codemill.sandbox.workspace_secrets import EMPTIED, HOME_SECRETS, HOST_SECRETS, find_secrets

COVERED = ("/tmp", "/var/tmp", "/run", "/dev/shm")  # private to the session
_NO_WORKSPACE = ("/", "/usr", "/etc", "/var", "/opt", "/root", "/home", "/proc", "/sys", "/dev", *COVERED)


@dataclass(frozen=True)
class RootPlan:
    """Absolute paths without links, but for `links`: path -> target.

    writable: the workspace first. readable: below a folder that the session has for itself, and yet to be seen. pinned:
    cannot be renamed or replaced. read_only: though below a writable one. unreadable: hidden. emptied: hidden, but for
    programs that want to read it an empty file.
    """

    writable: tuple[str, ...]
    readable: tuple[str, ...]
    pinned: tuple[str, ...]
    read_only: tuple[str, ...]
    unreadable: tuple[str, ...]
    emptied: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    home: str
    scratch: int
    network: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RootPlan":
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        links = tuple((path, target) for path, target in data["links"])
        return cls(**{**data, **lists, "links": links})


def make_plan(
    workspace: Path,
    writable: Sequence[Path],
    hidden: Sequence[Path],
    allowed_secrets: Sequence[Path],
    readable: Sequence[Path],
    scratch: int,
    network: bool,
) -> tuple[RootPlan, GitPlan]:
    """See `WorkspaceShell`. Raises UsageError for a folder that cannot be a workspace."""
    home = home_folder()
    root = _check_workspace(workspace, home)
    git = plan_git(root)
    roots = _outermost([root, *(os.path.realpath(each) for each in writable), *git.writable])
    secrets = _secrets(root, home, git, hidden, allowed_secrets)
    _check_not_hidden(root, secrets)
    kept = [*(os.path.realpath(each) for each in readable), *_tool_folders()]
    plan = RootPlan(
        writable=(root, *(each for each in roots if each != root)),
        readable=tuple(_outermost(each for each in kept if _is_covered(each) and not is_within(each, roots))),
        pinned=git.pinned,
        read_only=git.read_only,
        unreadable=tuple(secrets),
        emptied=tuple(path for name in EMPTIED if os.path.isfile(path := os.path.realpath(os.path.join(home, name)))),
        links=_links(workspace, root),
        home=home,
        scratch=scratch,
        network=network,
    )
    return plan, git


def home_folder() -> str:
    """The user's home directory without links."""
    return os.path.realpath(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)


def _check_workspace(workspace: Path, home: str) -> str:
    root = os.path.realpath(workspace)
    if not os.path.isdir(root):
        raise UsageError(f"{workspace} is no folder: give one that exists")
    if root in _NO_WORKSPACE or is_within(home, [root]):
        raise UsageError(
            f"{workspace} cannot be a workspace, since commands may write all of it: take a folder below it"
        )
    if is_within(root, ["/proc", "/sys", "/dev"]):
        raise UsageError(f"{workspace} cannot be a workspace: take a folder of your own")
    return root


def _check_not_hidden(root: str, secrets: Iterable[str]) -> None:
    for path in secrets:
        if is_within(root, [path]):
            raise UsageError(f"{root} cannot be a workspace: {path} is hidden from commands")


def _secrets(root: str, home: str, git: GitPlan, hidden: Sequence[Path], allowed: Sequence[Path]) -> list[str]:
    """What exists of all that is hidden."""
    permitted = {os.path.realpath(each) for each in allowed}
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(home, ".local/state")
    candidates = [
        *(os.path.join(home, name) for name in HOME_SECRETS),
        *HOST_SECRETS,
        *host_sockets(),
        *find_secrets(root, git),
    ]
    found = {os.path.realpath(each) for each in candidates} - permitted | {os.path.realpath(each) for each in hidden}
    present = {path for path in found if os.path.lexists(path)}
    return _outermost({*present, os.path.realpath(os.path.join(state, "codemill"))})  # the agent may make it yet


def host_sockets() -> list[str]:
    """Unix sockets of the host that have a path: a network namespace does not keep anybody from these."""
    try:
        with open("/proc/net/unix", errors="surrogateescape") as file:
            fields = [line.rstrip("\n").split(" ", 7) for line in file]
    except OSError:
        return []
    paths = {each[7].strip() for each in fields if len(each) == 8}
    return sorted(path for path in paths if path.startswith("/") and not _is_covered(path) and _is_socket(path))


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _tool_folders() -> list[str]:
    """Where the user's programs lie."""
    names = [*os.environ.get("PATH", "").split(":"), os.environ.get("VIRTUAL_ENV", "")]
    present = [name for name in names if name.startswith("/") and os.path.isdir(name)]
    return [*map(os.path.realpath, present), *(os.path.normpath(each) for each in present)]


def _links(workspace: Path, root: str) -> tuple[tuple[str, str], ...]:
    """The workspace's own name, where it is a link in a folder that commands do not see."""
    name = os.path.abspath(workspace)
    return ((name, root),) if name != root and _is_covered(name) else ()


def _is_covered(path: str) -> bool:
    return is_within(path, COVERED)


def is_within(path: str, folders: Iterable[str]) -> bool:
    """Whether a path is one of these, or lies in one."""
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in folders)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Sorted, without those that lie in another."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not is_within(path, found):
            found.append(path)
    return found
