"""Which of the files that Git ignores are kept all the same: small ones, which nobody can build anew.

A local database, a file of settings: a command may change them, and `/undo` shall bring them back. What is built, or
fetched, is not kept, and what is large is only watched, so that `/undo` can say that it has changed.
"""

import os
import stat
from collections.abc import Iterator
from hashlib import blake2b

from codemill.agent.file_index import SKIPPED
from codemill.agent.snapshot_scan import KINDS, Scan

MAX_BYTES = 1 << 20  # of a file
MAX_IN_FOLDER = 200  # files and folders in a folder that is ignored whole
MAX_COUNT = 2000  # of all that is kept or watched
MAX_TOTAL = 32 << 20
BUILT = (
    *(".o", ".a", ".so", ".lo", ".la", ".d", ".obj", ".lib", ".dll", ".exe", ".class", ".jar", ".pyc", ".pyo", ".gcno"),
    *(".gcda", ".egg-info", ".whl", ".swp", ".tmp"),
)
BUILT_NAMES = SKIPPED | {".eggs", "htmlcov", "coverage", ".nox", ".terraform", ".coverage", ".DS_Store", "vendor"}


def keep_ignored(root: str, own: str | None, scan: Scan) -> None:
    """Move small ones from what is unseen to what is found; `scan.watched` gets how the others look. own: a folder that
    is left out."""
    budget = _Budget()
    for path in sorted(scan.unseen - scan.skipped.keys()):
        if own is not None and (own.startswith(path) or path.startswith(own)):
            continue
        if not _is_built(path.rstrip("/")):
            (_keep_folder if path.endswith("/") else _keep_file)(root, path, scan, budget)


def _is_built(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in BUILT_NAMES or name.endswith(BUILT)


class _Budget:
    """What there is still room for."""

    def __init__(self) -> None:
        self.count, self.num_bytes = MAX_COUNT, MAX_TOTAL

    def has_room(self, found: dict[str, os.stat_result]) -> bool:
        """Take it, if there is."""
        num_bytes = sum(each.st_size for each in found.values())
        if len(found) > self.count or num_bytes > self.num_bytes:
            return False
        self.count -= len(found)
        self.num_bytes -= num_bytes
        return True


def _keep_file(root: str, path: str, scan: Scan, budget: _Budget) -> None:
    try:
        found = os.lstat(f"{root}/{path}")
    except OSError:
        return  # gone since
    if stat.S_IFMT(found.st_mode) not in KINDS:
        return
    if found.st_size <= MAX_BYTES and budget.has_room({path: found}):
        scan.found[path] = found
        scan.unseen.discard(path)
    else:
        scan.watched[path] = _look({path: found})


def _keep_folder(root: str, path: str, scan: Scan, budget: _Budget) -> None:
    found: dict[str, os.stat_result] = {}
    large: dict[str, os.stat_result] = {}
    left: list[str] = []
    for name, each in _walk(root, path.rstrip("/"), left):
        (large if each.st_size > MAX_BYTES and stat.S_ISREG(each.st_mode) else found)[name] = each
        if len(found) + len(large) > MAX_IN_FOLDER:
            return
    if not budget.has_room(found):
        scan.watched[path] = _look({**found, **large})
        return
    scan.found.update(found)
    scan.unseen.discard(path)
    scan.unseen.update((*large, *left))
    scan.watched.update((name, _look({name: each})) for name, each in large.items())


def _walk(root: str, folder: str, left: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    """A folder, then all that is in it. left: gets what is not looked at."""
    try:
        yield folder, os.lstat(f"{root}/{folder}")
        entries = sorted(os.scandir(f"{root}/{folder}"), key=lambda entry: entry.name)
    except OSError:
        left.append(folder + "/")
        return
    for entry in entries:
        path, is_folder = f"{folder}/{entry.name}", entry.is_dir(follow_symlinks=False)
        if _is_built(path) or entry.name == ".git":
            left.append(path + "/" if is_folder else path)
        elif is_folder:
            yield from _walk(root, path, left)
        else:
            found = os.lstat(f"{root}/{path}")
            if stat.S_IFMT(found.st_mode) in KINDS:
                yield path, found
            else:
                left.append(path)


def _look(found: dict[str, os.stat_result]) -> str:
    """Another text when any of it has changed."""
    stats = [f"{path}\0{each.st_size}\0{each.st_mtime_ns}" for path, each in sorted(found.items())]
    return blake2b("\0".join(stats).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
