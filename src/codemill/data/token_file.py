"""Packed rows in one file on disk: a NumPy .npy of records, one record a row, read memory-mapped."""

import os
import tempfile
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from codemill.data.packing import PackedRows
from codemill.errors import CodemillError

_FIELDS = {"input_ids": "<i4", "position_ids": "<i4", "document_ids": "<i4", "loss_weights": "<f4"}


class RowWriter:
    """Takes rows, in order, into a file that is being written."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file, self._length = file, length
        self.num_rows = 0

    def write(self, rows: PackedRows) -> None:
        records = np.empty(len(rows), dtype=_record_type(self._length))
        for name in _FIELDS:
            records[name] = getattr(rows, name)
        self._file.write(records.view(np.uint8).data)
        self.num_rows += len(rows)


@contextmanager
def rows_being_written(path: str | Path, num_rows: int, length: int) -> Iterator[RowWriter]:
    """A writer of `num_rows` rows of `length` places to `path` (any suffix), which readers see whole or not at all.

    Raises CodemillError if the file cannot be written.
    """
    target = Path(path)
    description = np.lib.format.dtype_to_descr(_record_type(length))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as file:
            header = {"descr": description, "fortran_order": False, "shape": (num_rows,)}
            np.lib.format.write_array_header_1_0(file, header)
            writer = RowWriter(file, length)
            yield writer
            assert writer.num_rows == num_rows
    except OSError as error:
        raise CodemillError(f"cannot write {target}: {error.strerror}") from error


def save_rows(rows: PackedRows, path: str | Path) -> None:
    """Write `rows` to `path` (any suffix); readers see the old file or the whole new one, never a part."""
    with rows_being_written(path, len(rows), rows.input_ids.shape[1]) as writer:
        writer.write(rows)


def load_rows(path: str | Path) -> PackedRows:
    """Map the file into memory; the arrays are read-only views [rows, T].

    Raises CodemillError for a missing, truncated or otherwise broken file.
    """
    source = Path(path)
    try:
        records = np.load(source, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise CodemillError(f"{source} does not exist; write it with `save_rows` first") from error
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        OverflowError,
        SyntaxError,
        tokenize.TokenError,
    ) as error:
        raise _broken(source) from error
    if not isinstance(records, np.memmap) or not _is_whole(records, source):
        raise _broken(source)
    return PackedRows(**{name: records[name] for name in _FIELDS})


def _record_type(length: int) -> np.dtype:
    return np.dtype([(name, kind, (length,)) for name, kind in _FIELDS.items()])


@contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `target` when all is written, and vanishes if that fails."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _is_whole(records: np.memmap, source: Path) -> bool:
    names = records.dtype.names
    if records.ndim != 1 or names is None or "input_ids" not in names:
        return False
    shape = records.dtype["input_ids"].shape
    if len(shape) != 1 or records.dtype != _record_type(shape[0]):
        return False
    return source.stat().st_size == records.offset + records.nbytes


def _broken(source: Path) -> CodemillError:
    return CodemillError(f"{source} is not a whole file of packed rows; delete it and pack again")
