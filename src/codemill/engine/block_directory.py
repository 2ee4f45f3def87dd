"""The files of the prefix cache on disk: found by key, written whole or not at all, bounded in bytes."""

import fcntl
import heapq
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER_PREFIX = "prefix-cache-"
_ENTRY_SUFFIX = ".block"
_TEMPORARY_SUFFIX = ".block.tmp"
_LOCK_NAME = "prefix-cache.lock"
_TOKEN_BYTES = 8


class BlockDirectory:
    """One file an entry, in a folder for each fingerprint: `prefix-cache-FINGERPRINT/KEY.block`.

    Several processes may use the directory at the same time. Who writes or evicts holds a lock, which a process that
    dies lets go of. The lock file holds a random token, renewed at every change: where it is still ours, nobody else
    changed anything. Reading needs no lock, since a file appears whole and stays readable when it is deleted.
    """

    def __init__(self, root: Path, fingerprint: str, max_bytes: int) -> None:
        """Make the directory if need be, remove what dead writers left, and evict what is too much. Raises OSError."""
        self._root = root
        self._folder = f"{_FOLDER_PREFIX}{fingerprint}"
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] = {}  # file -> bytes, of all fingerprints
        self._by_last_use: list[tuple[int, str]] = []  # heap of (ns, file); the file's own mtime may be later
        self._entry_bytes = 0
        self._accounts = threading.Lock()
        self._token = b""
        (root / self._folder).mkdir(parents=True, exist_ok=True)
        with self._changing():
            self._make_room(0)

    def __contains__(self, key: bytes) -> bool:
        """From memory: other processes' entries are seen at the start and at every write."""
        return self._name(key) in self._sizes

    @property
    def num_bytes(self) -> int:
        """Size of all files, those of other fingerprints and the lock included."""
        return self._entry_bytes + _TOKEN_BYTES

    def path(self, key: bytes) -> Path:
        return self._root / self._name(key)

    def read(self, key: bytes) -> bytes | None:
        """What was written under `key`, which thereby counts as used. Raises OSError if the file cannot be read."""
        try:
            data = self.path(key).read_bytes()
        except FileNotFoundError:
            self._forget(self._name(key))
            return None
        self.touch(key)
        return data

    def touch(self, key: bytes) -> None:
        """Count the entry as used, if it is there and may be changed."""
        with suppress(OSError):
            _set_last_use(self.path(key))

    def write(self, key: bytes, data: bytes) -> bool:
        """Keep `data` in place of what was used least recently; False if it is too large. Raises OSError.

        What is there already under `key` is left as it is.
        """
        name = self._name(key)
        if len(data) + _TOKEN_BYTES > self._max_bytes:
            return False
        with self._changing():
            if name not in self._sizes:
                self._make_room(len(data))
                self._add(name, len(data), _write_whole(self._root / name, data))
        return True

    def delete(self, key: bytes) -> None:
        """Remove a file that is no good, if that is possible."""
        with suppress(OSError):
            self.path(key).unlink(missing_ok=True)
        self._forget(self._name(key))

    def _name(self, key: bytes) -> str:
        return f"{self._folder}/{key.hex()}{_ENTRY_SUFFIX}"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the directory's lock, in the knowledge of what other processes did."""
        lock = os.open(self._root / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._token or os.pread(lock, _TOKEN_BYTES, 0) != self._token:
                self._scan()
            self._token = os.urandom(_TOKEN_BYTES)
            os.pwrite(lock, self._token, 0)
            yield
        finally:
            os.close(lock)

    def _scan(self) -> None:
        """List all files again. Temporary ones are of dead writers, since a living one would hold the lock."""
        found: dict[str, os.stat_result] = {}
        for folder in self._root.glob(f"{_FOLDER_PREFIX}*/"):
            for file in os.scandir(folder):
                if file.name.endswith(_TEMPORARY_SUFFIX):
                    os.unlink(file)
                elif file.name.endswith(_ENTRY_SUFFIX):
                    with suppress(FileNotFoundError):  # a reader deleted it just now
                        found[f"{folder.name}/{file.name}"] = file.stat()
        with self._accounts:
            self._sizes = {name: status.st_size for name, status in found.items()}
            self._entry_bytes = sum(self._sizes.values())
        self._by_last_use = [(status.st_mtime_ns, name) for name, status in found.items()]
        heapq.heapify(self._by_last_use)

    def _make_room(self, num_bytes: int) -> None:
        """Delete what was used least recently until so many more bytes fit."""
        while self._by_last_use and self.num_bytes + num_bytes > self._max_bytes:
            noted, name = heapq.heappop(self._by_last_use)
            last_use = _last_use(self._root / name)
            if last_use is not None and last_use != noted:
                heapq.heappush(self._by_last_use, (last_use, name))
                continue
            (self._root / name).unlink(missing_ok=True)
            self._forget(name)

    def _add(self, name: str, num_bytes: int, last_use: int) -> None:
        with self._accounts:
            self._sizes[name] = num_bytes
            self._entry_bytes += num_bytes
        heapq.heappush(self._by_last_use, (last_use, name))

    def _forget(self, name: str) -> None:
        with self._accounts:
            self._entry_bytes -= self._sizes.pop(name, 0)


def _write_whole(path: Path, data: bytes) -> int:
    """Write a file so that it is there whole or not at all -> its last use.

    It is not forced to the disk: what a power cut spoils, the checksum finds.
    """
    temporary = path.with_suffix(_TEMPORARY_SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(data)
        last_use = _set_last_use(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return last_use


def _set_last_use(path: Path) -> int:
    """Explicitly, since the time that the system sets by itself has a resolution of milliseconds."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    return now


def _last_use(path: Path) -> int | None:
    """In ns; None if the file is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
