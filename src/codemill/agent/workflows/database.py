"""An SQLite database that can only be read: the engine itself refuses everything else."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from codemill.errors import CodemillError, UsageError

READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_FUNCTION})
# They would load code, or look at files, where SQLite was built with them.
FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "lsdir", "fsdir"})
LARGEST_VALUE = 10 << 20  # bytes of one value
TICK = 1000  # instructions of the engine between two looks at the clock
HEADER = b"SQLite format 3\0"
WAL = 2  # what bytes 18 and 19 of a database in that mode are
MAX_SCHEMA = 24_000  # characters that the model gets; a larger one is shown by names alone


class QueryError(Exception):
    """A query that does not work. The message says why."""


@dataclass(frozen=True)
class Rows:
    """What a query gives. is_cut: there were more than the limit."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    is_cut: bool
    seconds: float


class Database:
    """A context. timeout: seconds for one query. max_rows: that are fetched."""

    def __init__(self, path: Path, timeout: float = 10.0, max_rows: int = 200) -> None:
        """Raises UsageError for what is no database."""
        self._timeout, self._max_rows = timeout, max_rows
        self._deadline: float | None = None
        try:
            with path.open("rb") as file:
                header = file.read(20)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        if not header.startswith(HEADER):
            raise UsageError(f"{path} is no SQLite database")
        self._connection = _connect(path, is_wal=header[18:20] == bytes([WAL, WAL]))
        self._schema = self._read_schema(path)
        self._connection.set_authorizer(_authorize)
        self._connection.set_progress_handler(self._is_late, TICK)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def schema(self) -> str:
        """What is in it, as SQL; only names of tables and columns if that would be too long."""
        whole = "\n".join(f"{sql};" for _, sql in self._schema if sql)
        if len(whole) <= MAX_SCHEMA:
            return whole
        with suppress(sqlite3.Error):
            return "\n".join(f"{name}({', '.join(self._columns(name))})" for name, sql in self._schema if sql)
        return whole[:MAX_SCHEMA]

    def query(self, sql: str) -> Rows:
        """Run one statement that reads. Raises QueryError for any other, and for one that fails or takes too long."""
        begin = time.monotonic()
        self._deadline = begin + self._timeout
        try:
            cursor = self._connection.execute(sql)
            if cursor.description is None:
                raise QueryError("it gives no rows: write one SELECT")
            columns = tuple(entry[0] for entry in cursor.description)
            rows = cursor.fetchmany(self._max_rows + 1)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as error:
            raise QueryError(self._reason(error)) from None
        finally:
            self._deadline = None
        is_cut = len(rows) > self._max_rows
        return Rows(columns, tuple(rows[: self._max_rows]), is_cut, time.monotonic() - begin)

    def _reason(self, error: Exception) -> str:
        if "interrupted" in str(error):
            return f"it took more than {self._timeout:g} s"
        if "not authorized" in str(error) or "prohibited" in str(error):
            return f"only reading is allowed ({error})"
        return str(error)

    def _is_late(self) -> int:
        return int(self._deadline is not None and time.monotonic() > self._deadline)

    def _columns(self, table: str) -> Sequence[str]:
        name = table.replace('"', '""')
        return [entry[0] for entry in self._connection.execute(f'SELECT * FROM "{name}" LIMIT 0').description]

    def _read_schema(self, path: Path) -> list[tuple[str, str]]:
        wanted = "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
        try:
            return list(self._connection.execute(f"{wanted} ORDER BY type, name"))
        except sqlite3.Error as error:
            self._connection.close()
            raise CodemillError(f"{path} cannot be read: {error}") from None


def _connect(path: Path, is_wal: bool) -> sqlite3.Connection:
    """A connection that writes nothing, and leaves no file behind either.

    Even a reader makes files beside a database in WAL mode. Where nobody else has it open it is read as it stands.
    """
    is_alone = is_wal and not Path(f"{path}-wal").exists()
    uri = f"file:{quote(str(path.resolve()))}?mode=ro{'&immutable=1' if is_alone else ''}"
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
    except sqlite3.Error as error:
        raise CodemillError(f"{path} cannot be opened: {error}") from None


def _authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    if action not in READS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FUNCTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_READ and (first or "").lower().startswith("pragma_"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
