"""Reads the files that changed since they were read last."""

import os
import stat
from collections.abc import Collection
from pathlib import Path

from codemill.agent.snapshot_scan import Scan
from codemill.agent.snapshot_store import Entry, Objects, Stat
from codemill.errors import CodemillError

MAX_BYTES = 20 << 20  # of a file; a larger one is data, or was built
MAX_LARGE = 200 << 20  # of a file that is about to be overwritten
MAX_TOTAL = 4 << 30  # of what a snapshot reads: nobody wants to wait for more, nor to have it twice
# ns: a file that changed so shortly before it was read may change again and look the same. Some file systems count in
# steps of 2 s. Git does likewise: see its racy-git.txt.
RACY = 2_000_000_000
TRIES = 3


def read_entries(objects: Objects, root: Path, scan: Scan, now: int, large: Collection[str]) -> dict[str, Entry]:
    """What is at each path of a scan, folders before what is in them. What cannot be read is left out of the scan.

    now: Unix time in ns from before the scan. large: paths that may be large.
    """
    known = objects.stats()
    num_bytes = 0
    news: dict[str, tuple[Stat, int, bytes]] = {}
    entries: dict[str, Entry] = {}
    for path, found in list(scan.found.items()):
        mode = found.st_mode
        if stat.S_ISDIR(mode):
            entries[path] = Entry("d", mode & 0o7777, b"")
            continue
        before = known.get(path)
        if before is not None and before[0] == _stat(found) and _is_settled(before[0], before[1]):
            entries[path] = Entry("f", mode & 0o7777, before[2])
            continue
        try:
            if stat.S_ISLNK(mode):
                entries[path] = Entry("l", 0o777, objects.put(os.fsencode(os.readlink(f"{root}/{path}"))))
                continue
            limit = MAX_LARGE if path in large else MAX_BYTES
            if found.st_size > limit:
                scan.leave_out(path, f"it has more than {limit >> 20} MiB")
                continue
            num_bytes += found.st_size
            if num_bytes > MAX_TOTAL:
                raise CodemillError(
                    f"{root} has more than {MAX_TOTAL >> 30} GiB that are not ignored: no snapshot can be taken. "
                    "Work in a smaller folder, or name what is not yours in .gitignore"
                )
            data, found = _read(f"{root}/{path}")
        except FileNotFoundError:
            continue  # gone since
        except OSError as error:
            scan.leave_out(path, f"it cannot be read: {error.strerror}")
            continue
        entries[path] = Entry("f", found.st_mode & 0o7777, objects.put(data))
        news[path] = (_stat(found), now, entries[path].digest)
    objects.keep_stats(news, known.keys() - entries.keys())
    return entries


def _is_settled(found: Stat, seen: int) -> bool:
    return max(found.mtime, found.ctime) + RACY <= seen


def _read(path: str) -> tuple[bytes, os.stat_result]:
    """A file that nobody wrote to while it was read, if that can be had."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        for _ in range(TRIES):
            before = os.fstat(descriptor)
            file.seek(0)
            data = file.read()
            after = os.fstat(descriptor)
            if _stat(before) == _stat(after):
                break
    return data, after


def _stat(found: os.stat_result) -> Stat:
    return Stat(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
