"""The databases that queries are judged on: SQLite files, or scripts that are made into one."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from codemill.errors import CodemillError
from codemill.eval.sql_dates import FUNCTIONS
from codemill.eval.sql_dialect import to_sqlite

_SUFFIXES = (".sqlite", ".sqlite3", ".db", ".sql")
_PLACES = ("{0}{1}", "{0}/{0}{1}", "*/{0}{1}", "*/{0}/{0}{1}", "*/*/{0}/{0}{1}")
_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True)
class Database:
    """A database. built: its bytes, if it was made from a script at `path`. schema: the statements that create its
    tables and views."""

    path: Path
    schema: str
    built: bytes | None = None

    def content(self) -> bytes:
        """The SQLite file's bytes. Raises CodemillError if it cannot be read."""
        return _read(self.path) if self.built is None else self.built


def find_database(roots: Sequence[Path], name: str) -> Path:
    """The database called `name` in one of the folders, as Spider, BIRD and sql-eval lay them out, or a path.

    Raises CodemillError if there is none.
    """
    for root in roots:
        direct = root / name
        if Path(name).suffix in _SUFFIXES and direct.is_file():
            return direct
    if not any(character in name for character in "/\\*?["):
        for root in roots:
            for suffix in _SUFFIXES:
                for place in _PLACES:
                    if found := sorted(root.glob(place.format(name, suffix))):
                        return found[0]
    raise CodemillError(f"there is no database {name!r} in {' or '.join(map(str, roots))}")


@lru_cache(maxsize=256)
def load_database(path: Path) -> Database:
    """The database in a SQLite file or an SQL script, read or made once in this process.

    Raises CodemillError, naming the file, for what is neither.
    """
    if path.suffix != ".sql":
        return Database(path, _schema_of_file(path))
    try:
        script = _read(path).decode("utf-8")
    except UnicodeDecodeError:
        raise CodemillError(f"{path}: not UTF-8 text") from None
    with closing(_memory()) as connection:
        try:
            connection.executescript(script)
            return Database(path, _schema(connection), connection.serialize())
        except (sqlite3.Error, ValueError):
            pass  # not in SQLite's dialect
    with closing(_memory()) as connection:
        _run_translated(connection, path, script)
        return Database(path, _schema(connection), connection.serialize())


def _memory() -> sqlite3.Connection:
    """An empty database without access to other files."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK
    )
    return connection


def _run_translated(connection: sqlite3.Connection, path: Path, script: str) -> None:
    for name, count, function in FUNCTIONS:
        connection.create_function(name, count, function)
    for statement in to_sqlite(script):
        try:
            connection.execute(statement)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            beginning = " ".join(statement.split())[:80]
            raise CodemillError(f"{path}: SQLite cannot load it ({error}): {beginning}") from None


def _schema_of_file(path: Path) -> str:
    if _read(path, len(_MAGIC)) != _MAGIC:
        raise CodemillError(f"{path} is no SQLite database")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return _schema(connection)
    except sqlite3.Error as error:
        raise CodemillError(f"{path}: {error}") from None


def _schema(connection: sqlite3.Connection) -> str:
    rows = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        " AND sql IS NOT NULL ORDER BY rowid"
    )
    return "\n\n".join(f"{sql};" for (sql,) in rows)


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise CodemillError(f"{path}: {error.strerror or error}") from None
