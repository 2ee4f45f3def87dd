"""Folders that Git takes for a repository's data, and what in them makes Git run programs."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARTS = ("hooks", "config", "config.worktree")  # hooks, and settings that name programs
# Below these there is no other repository's data.
_DATA = {"objects", "refs", "logs", "hooks", "info", "branches", "lfs", "rebase-merge", "rebase-apply"}
_MOST = 1 << 20
_SECTION = re.compile(r'\[[ \t]*([\w.-]+)(?:[ \t]+"((?:[^"\\]|\\.)*)")?[ \t]*\](.*)', re.DOTALL)
_SETTING = re.compile(r"([A-Za-z][\w-]*)[ \t]*(?:=(.*))?", re.DOTALL)
# Those that name no program, and no other file with settings; what is not here may. See git-config(1).
_HARMLESS = {
    "core": "repositoryformatversion filemode bare logallrefupdates ignorecase precomposeunicode symlinks autocrlf eol"
    " safecrlf abbrev quotepath preloadindex sparsecheckout sparsecheckoutcone longpaths",
    "remote": "url fetch pushurl tagopt prune mirror",
    "branch": "remote merge rebase pushremote description",
    "submodule": "url active branch ignore path",
    "extensions": "objectformat refstorage worktreeconfig",
    "user": "name email",
    "init": "defaultbranch",
    "pull": "rebase ff",
    "push": "default autosetupremote",
    "merge": "conflictstyle ff",
    "fetch": "prune",
    "gc": "auto",
    "commit": "gpgsign",
    "advice": "detachedhead",
    "lfs": "repositoryformatversion",
}


@dataclass(frozen=True)
class Setting:
    """One of a file of settings; name: its section and itself, in small letters, without what stands in quotes."""

    name: str
    value: str


def find_git_folders(root: str) -> tuple[list[str], list[str]]:
    """Below a folder: those with a repository's data, whatever their names are, and files and links called `.git`."""
    found, pointers = [], []
    for folder, folders, names in os.walk(root):
        if is_git_folder(folders, names):
            found.append(folder)
            folders[:] = [name for name in folders if name not in _DATA]
        dot_git = os.path.join(folder, ".git")
        if ".git" in names or (".git" in folders and os.path.islink(dot_git)):
            pointers.append(dot_git)
    return found, pointers


def is_git_folder(folders: list[str], names: list[str]) -> bool:
    """As Git's `is_git_directory` sees it, or more."""
    return "HEAD" in names and not {"objects", "commondir"}.isdisjoint({*folders, *names})


def read_settings(text: str) -> Iterator[Setting]:
    """What a file of Git's settings says. Raises ValueError for what could be read in another way."""
    section = ""
    for line in text.split("\n"):
        rest = line.strip(" \t\r")
        if found := _SECTION.fullmatch(rest):
            section, rest = found[1].lower(), found[3].strip(" \t")
        if not rest or rest[0] in "#;":
            continue
        setting = _SETTING.fullmatch(rest)
        if not section or setting is None or rest.endswith("\\"):
            raise ValueError(f"the setting {rest[:60]!r}")
        yield Setting(f"{section}.{setting[1].lower()}", (setting[2] or "true").strip(" \t"))


def included_files(config: str) -> list[str]:
    """Files with settings that one includes, whether it does so now or under some condition."""
    try:
        settings = list(read_settings(Path(config).read_text(errors="surrogateescape")))
    except (OSError, ValueError):
        return []
    paths = [each.value.strip('"') for each in settings if each.name in ("include.path", "includeif.path")]
    return [os.path.join(os.path.dirname(config), os.path.expanduser(path)) for path in paths]


def what_it_runs(folder: str, root: str) -> list[str]:
    """What makes Git run a program, or read settings elsewhere, in a folder of data; empty where nothing does."""
    found = [f"hooks/{name}" for name in _hooks(folder)]
    for name in ("config", "config.worktree"):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            found += _settings_that_run(path, folder, root)
    commondir = os.path.join(folder, "commondir")
    if os.path.lexists(commondir) and not _is_of_worktree(commondir):
        found.append("commondir")
    return found


def _hooks(folder: str) -> list[str]:
    hooks = os.path.join(folder, "hooks")
    if os.path.islink(hooks):
        return [""]
    try:
        entries = [entry for entry in os.scandir(hooks) if not entry.name.endswith(".sample")]
        return sorted(entry.name for entry in entries if entry.is_symlink() or entry.stat().st_mode & 0o111)
    except OSError:
        return []


def _settings_that_run(path: str, folder: str, root: str) -> list[str]:
    try:
        settings = list(read_settings(_read(path)))
    except (OSError, ValueError) as error:
        return [f"{os.path.basename(path)}: {error}"]
    return sorted({each.name for each in settings if not _is_harmless(each, folder, root)})


def _is_harmless(setting: Setting, folder: str, root: str) -> bool:
    if setting.name == "core.worktree":
        place = os.path.realpath(os.path.join(folder, setting.value.strip('"')))
        return place == root or place.startswith(root + "/")
    section, _, key = setting.name.partition(".")
    return key in _HARMLESS.get(section, "").split()


def _is_of_worktree(commondir: str) -> bool:
    holder = os.path.dirname(os.path.dirname(commondir))
    try:
        return os.path.basename(holder) == "worktrees" and _read(commondir).strip() == "../.."
    except OSError:
        return False


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no plain file")
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise OSError("it is too large")
    return data.decode("utf-8", "surrogateescape")
