"""Files into a run and out of it. The server does both as a privileged process: a program's links must not lead it."""

import fnmatch
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from codemill.sandbox.root import WORK

MOST_BYTES = 64 << 20  # of all files that are brought back together
_MOST_FILES = 1000


def write_files(files: Mapping[str, bytes], uid: int, gid: int) -> None:
    """Put files into the work directory before anything runs there."""
    for name, content in files.items():
        path = PurePosixPath(name)
        folder = WORK
        for part in path.parts[:-1]:
            folder = f"{folder}/{part}"
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o700)
                os.chown(folder, uid, gid)
        with open(f"{folder}/{path.name}", "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), uid, gid)


def collect(patterns: Sequence[str]) -> dict[str, bytes]:
    """Regular files in the work directory that match, when nothing runs there any more.

    No link is followed. Files past 64 MiB in all, or past a thousand, stay behind.
    """
    found: dict[str, bytes] = {}
    room = MOST_BYTES
    for name, folder, entry in _regular_files(patterns):
        size = os.stat(entry, dir_fd=folder, follow_symlinks=False).st_size
        if len(found) == _MOST_FILES or size > room:
            continue
        found[name] = _read(entry, folder)
        room -= len(found[name])
    return found


def _regular_files(patterns: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    if not patterns:
        return
    for folder, _, names, descriptor in os.fwalk(WORK, follow_symlinks=False):
        for entry in sorted(names):
            name = os.path.relpath(os.path.join(folder, entry), WORK)
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                continue
            if stat.S_ISREG(os.stat(entry, dir_fd=descriptor, follow_symlinks=False).st_mode):
                yield name, descriptor, entry


def _read(entry: str, folder: int) -> bytes:
    descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb") as file:
        return file.read()
