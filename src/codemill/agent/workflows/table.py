"""Rows as text, CSV and JSON."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from codemill.agent.workflows.database import Rows
from codemill.agent.workflows.visible import visible

WIDEST = 60  # characters of a column


def table_lines(rows: Rows) -> Iterator[str]:
    """A table with numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows.rows]
    heads = [_cell(name) for name in rows.columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    numeric = [_is_numeric([row[place] for row in rows.rows]) for place in range(len(heads))]
    for line in [heads, ["-" * width for width in widths], *cells]:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        yield "  ".join(padded).rstrip()


def csv_text(rows: Rows) -> str:
    """A line for each row, NULL as nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows.columns)
    writer.writerows([plain(value) for value in row] for row in rows.rows)
    return out.getvalue()


def plain(value: Any) -> Any:
    """A value as JSON has it; bytes in hexadecimal."""
    return value.hex() if isinstance(value, bytes) else value


def _cell(value: Any) -> str:
    text = "NULL" if value is None else str(plain(value))
    line = visible(text).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 3]}..."


def _is_numeric(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values) and all(
        value is None or isinstance(value, int | float) for value in values
    )
