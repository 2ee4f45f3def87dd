"""The program that judges one query, run in the sandbox: it runs the model's and the gold queries on a database that it
cannot change, and compares their results. Standard library only: its text is sent there.

Rows are compared as multisets, in their order only where the gold query has an ORDER BY, and there rows that it leaves
equal may stand in any order. Whole numbers are compared exactly, others to one part in a million.
"""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MAX_ROWS = 500_000
MAX_TRIES = 1_000  # ways of laying gold columns on predicted ones
GOLD_FAILED = 3  # exit status: no gold query runs
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
_REFUSED_FUNCTIONS = ("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer")
_FAILURES = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError)

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """The result of a query."""

    names: Sequence[str]
    rows: Sequence[Row]

    def column(self, index: int) -> list[Any]:
        """The values of one column."""
        return [row[index] for row in self.rows]


def check(database: str, job: str) -> None:
    """Exit with a message unless the query of the JSON file `job` gives what one of its gold queries gives."""
    with open(job, encoding="utf-8") as file:
        spec = json.load(file)
    connection = open_read_only(database)
    try:
        predicted = result(connection, spec["query"])
    except _FAILURES as error:
        raise SystemExit(f"the query fails: {error}") from None
    faults = []
    for gold in spec["gold"]:
        try:
            wanted = result(connection, gold["query"])
        except _FAILURES as error:
            print(f"the gold query fails: {error}")
            continue
        fault = difference(wanted, predicted, spec["columns"], gold["order"])
        if not fault:
            return
        faults.append(fault)
    if not faults:
        raise SystemExit(GOLD_FAILED)
    raise SystemExit(faults[0])


def open_read_only(path: str) -> sqlite3.Connection:
    """A connection that can read and nothing else: no writing, no attaching, no PRAGMA, no extension."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    connection.execute("PRAGMA query_only = ON")
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, argument: str | None, function: str | None, *_: object) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    refused = action == sqlite3.SQLITE_FUNCTION and str(function).lower() in _REFUSED_FUNCTIONS
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def result(connection: sqlite3.Connection, query: str) -> Table:
    """The result of one query. Raises sqlite3.Error, or ValueError for more rows than anybody asks for."""
    cursor = connection.execute(query)
    rows = cursor.fetchmany(MAX_ROWS + 1)
    if len(rows) > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS} rows")
    return Table([entry[0] for entry in cursor.description or ()], rows)


def difference(gold: Table, predicted: Table, columns: str, order: Sequence[Any] | None) -> str:
    """Why a result is not the gold one; empty if it is.

    columns: "same" (their order counts), "any" (it does not), or "subset" (there may be others, too). order: None, or
    for each term of ORDER BY the names of columns as in `sql_text.OrderTerm`.
    """
    if not predicted.names:
        return "it is no query"
    if len(gold.rows) != len(predicted.rows):
        return f"{len(predicted.rows)} rows instead of {len(gold.rows)}"
    same_number = len(gold.names) == len(predicted.names)
    if len(gold.names) > len(predicted.names) or not (same_number or (columns == "subset" and gold.rows)):
        return f"{len(predicted.names)} columns instead of {len(gold.names)}"
    layouts = [tuple(range(len(gold.names)))] if columns == "same" else _layouts(gold, predicted)
    keys = None if order is None else order_columns(gold.names, order)
    fault = "the columns differ"
    for _, layout in zip(range(MAX_TRIES), layouts, strict=False):
        chosen = [tuple(row[i] for i in layout) for row in predicted.rows]
        if not _all_equal(sorted(gold.rows, key=_row_key), sorted(chosen, key=_row_key)):
            fault = "the rows differ"
        elif keys is not None and not _same_order(gold.rows, chosen, keys):
            fault = "the rows are in another order"
        else:
            return ""
    return fault


def order_columns(names: Sequence[str], order: Sequence[Any]) -> list[int]:
    """The columns that decide on the order; all of them where a term is not among them."""
    plain = ["".join(name.lower().split()) for name in names]
    found: set[int] = set()
    for whole, parts in order:
        numbers = [int(name) - 1 for name in whole if name.isdecimal() and 0 < int(name) <= len(names)]
        matching = [i for i, name in enumerate(plain) if name in whole] or numbers
        if not matching and parts and set(parts) <= set(plain):
            matching = [i for i, name in enumerate(plain) if name in parts]
        if not matching:
            return list(range(len(names)))
        found.update(matching)
    return sorted(found)


def _same_order(gold: Sequence[Row], predicted: Sequence[Row], keys: Sequence[int]) -> bool:
    return _all_equal([tuple(row[i] for i in keys) for row in gold], [tuple(row[i] for i in keys) for row in predicted])


def _layouts(gold: Table, predicted: Table) -> Iterator[tuple[int, ...]]:
    """Ways of finding the gold columns, by their values, among the predicted ones."""
    there = [sorted(((value,) for value in predicted.column(i)), key=_row_key) for i in range(len(predicted.names))]
    options = []
    for i in range(len(gold.names)):
        values = sorted(((value,) for value in gold.column(i)), key=_row_key)
        options.append([j for j, column in enumerate(there) if _all_equal(values, column)])
    yield from _choices(options, ())


def _choices(options: Sequence[Sequence[int]], taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(taken) == len(options):
        yield taken
        return
    for option in options[len(taken)]:
        if option not in taken:
            yield from _choices(options, (*taken, option))


def _all_equal(some: Sequence[Row], others: Sequence[Row]) -> bool:
    return all(map(_equal_rows, some, others))


def _equal_rows(row: Row, other: Row) -> bool:
    return all(map(_equal, row, other))


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, float) or isinstance(other, float):
        numbers = isinstance(value, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9)
    return type(value) is type(other) and bool(value == other)


def _row_key(row: Row) -> list[tuple[int, Any]]:
    """SQLite's order of types; numbers rounded, for those that count as equal to stand side by side."""
    return [_key(value) for value in row]


def _key(value: Any) -> tuple[int, Any]:
    if isinstance(value, int | float):
        return 1, float(f"{value:.8g}") if isinstance(value, float) else value
    return (0, 0) if value is None else (2 if isinstance(value, str) else 3, value)
