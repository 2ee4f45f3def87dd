"""The file that snapshots are kept in: contents by their digests, in SQLite."""

import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from codemill.agent.session_file import make_private_folder
from codemill.errors import CodemillError

SCHEMA = """
create table if not exists objects (digest blob primary key, data blob not null);
create table if not exists snapshots (id text primary key, time real not null, label text not null);
create table if not exists stats (
    path blob primary key, size integer, mtime integer, ctime integer, inode integer, seen integer, digest blob
) without rowid;
create table if not exists touched (path blob primary key, kind text, mode integer, digest blob) without rowid;
"""
WAIT = 30.0  # seconds for another process that writes to it


class Stat(NamedTuple):
    """What tells a changed file. Times in nanoseconds."""

    size: int
    mtime: int
    ctime: int
    inode: int


class Entry(NamedTuple):
    """What is at a path. kind: f, l (a link) or d. digest: of the content, a link's target, or a folder's entries."""

    kind: str
    mode: int
    digest: bytes


class SnapshotStore:
    """Opens the file for one piece of work, which is done wholly or not at all, also if the process dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "snapshots.sqlite"

    @contextmanager
    def open(self) -> Iterator["Objects"]:
        """Raises CodemillError if the file cannot be used."""
        with self._connect() as connection:
            connection.execute("begin immediate")
            if connection.execute("select count(*) from sqlite_master").fetchone()[0] == 0:
                for statement in SCHEMA.split(";"):
                    connection.execute(statement)
            yield Objects(connection)
            connection.execute("commit")

    def shrink(self) -> None:
        """Give space that is free back to the disk."""
        with self._connect() as connection:
            connection.executescript("pragma incremental_vacuum")  # `execute` would free one page

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            make_private_folder(self.folder)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # its journal gets the same mode
            connection = sqlite3.connect(self._path, timeout=WAIT, isolation_level=None)
            for pragma in ("auto_vacuum = incremental", "synchronous = normal", "cache_size = -65536"):
                connection.execute(f"pragma {pragma}")
            yield connection
        except (sqlite3.Error, OSError) as error:
            raise CodemillError(_explain(self._path, error)) from error
        finally:
            if connection is not None:
                connection.close()  # what was not committed is undone


class Objects:
    """Contents and what is known of them, in a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def put(self, data: bytes) -> bytes:
        """Keep a content; its digest."""
        digest = hashlib.blake2b(data, digest_size=20).digest()
        if self._connection.execute("select 1 from objects where digest = ?", (digest,)).fetchone() is None:
            self._connection.execute("insert into objects values (?, ?)", (digest, zlib.compress(data, 1)))
        return digest

    def get(self, digest: bytes) -> bytes:
        """A content. Raises CodemillError if it is not there, or not what it was."""
        row = self._connection.execute("select data from objects where digest = ?", (digest,)).fetchone()
        data = zlib.decompress(row[0]) if row is not None else None
        if data is None or hashlib.blake2b(data, digest_size=20).digest() != digest:
            raise CodemillError(f"the snapshots lack {digest.hex()}: this state cannot be brought back")
        return data

    def name(self, snapshot: bytes, label: str) -> str:
        """Remember a snapshot; its id."""
        name = snapshot.hex()
        self._connection.execute("insert or replace into snapshots values (?, ?, ?)", (name, time.time(), label))
        return name

    def has_snapshot(self, name: str) -> bool:
        return self._connection.execute("select 1 from snapshots where id = ?", (name,)).fetchone() is not None

    def stats(self) -> dict[str, tuple[Stat, int, bytes]]:
        """For each file that was read: how it looked, when that was (ns), and the digest of what was in it."""
        rows = self._connection.execute("select path, size, mtime, ctime, inode, seen, digest from stats")
        return {os.fsdecode(row[0]): (Stat(*row[1:5]), row[5], row[6]) for row in rows}

    def keep_stats(self, stats: dict[str, tuple[Stat, int, bytes]], gone: Collection[str]) -> None:
        """Add what was found, and drop files that are not there any more."""
        rows = [(os.fsencode(path), *stat, seen, digest) for path, (stat, seen, digest) in stats.items()]
        self._connection.executemany("insert or replace into stats values (?, ?, ?, ?, ?, ?, ?)", rows)
        self._connection.executemany("delete from stats where path = ?", [(os.fsencode(path),) for path in gone])

    def touched(self) -> dict[str, Entry | None]:
        """Paths that the agent changed although they are ignored, with what was there before it first did."""
        rows = self._connection.execute("select path, kind, mode, digest from touched")
        return {os.fsdecode(row[0]): Entry(*row[1:]) if row[1] else None for row in rows}

    def touch(self, path: str, before: Entry | None) -> None:
        """Record such a path."""
        row = (os.fsencode(path), *(before or (None, None, None)))
        self._connection.execute("insert or ignore into touched values (?, ?, ?, ?)", row)

    def old_snapshots(self, live: Collection[str], before: float) -> list[str]:
        """Snapshots from before that time that are not among the live ones."""
        rows = self._connection.execute("select id from snapshots where time < ?", (before,))
        return [row[0] for row in rows if row[0] not in live]

    def snapshot_names(self) -> list[str]:
        return [row[0] for row in self._connection.execute("select id from snapshots")]

    def forget(self, names: Collection[str]) -> None:
        """Drop snapshots; what only they need stays until `sweep`."""
        self._connection.executemany("delete from snapshots where id = ?", [(name,) for name in names])

    def sweep(self, needed: Collection[bytes]) -> int:
        """Delete all contents but those that are needed; how many there were."""
        have = [row[0] for row in self._connection.execute("select digest from objects")]
        dead = [(digest,) for digest in have if digest not in needed]
        self._connection.executemany("delete from objects where digest = ?", dead)
        self._connection.executemany("delete from stats where digest = ?", dead)
        return len(dead)


def _explain(path: Path, error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text):
        return f"{path} is damaged ({text}): delete it; /undo then begins anew"
    return f"{path}: no snapshot can be kept: {text}"
