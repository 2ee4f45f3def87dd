"""Files into a run and out of it. The server does both as a privileged process: a program's links must not lead it."""

import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from codemill.sandbox.root import WORK

MOST_BYTES = 64 << 20  # of all files that are brought back together
_MOST_FILES = 1000
_DEEPEST = 16


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

    No link is followed. Files past 64 MiB in all, past a thousand, or more than 16 folders deep stay behind.
    """
    found: dict[str, bytes] = {}
    if not patterns:
        return found
    room = MOST_BYTES
    folder = os.open(WORK, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name, inner, entry in _matching(folder, "", patterns):
            if len(found) == _MOST_FILES:
                break
            if entry.stat(follow_symlinks=False).st_size <= room:
                found[name] = _read(entry.name, inner)
                room -= len(found[name])
    finally:
        os.close(folder)
    return found


def _matching(folder: int, path: str, patterns: Sequence[str]) -> Iterator[tuple[str, int, os.DirEntry[str]]]:
    """Path, open folder and entry of each file; the folder stays open until the next one is asked for."""
    with os.scandir(folder) as entries:
        listing = sorted(entries, key=lambda entry: entry.name)
    for entry in listing:
        name = path + entry.name
        if entry.is_dir(follow_symlinks=False) and name.count("/") < _DEEPEST:
            inner = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                yield from _matching(inner, f"{name}/", patterns)
            finally:
                os.close(inner)
        elif entry.is_file(follow_symlinks=False) and any(fnmatch.fnmatchcase(name, each) for each in patterns):
            yield name, folder, entry


def _read(name: str, folder: int) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
        return file.read()
