"""Packed rows in one file on disk: a NumPy .npy of records, one record a row, read memory-mapped."""

import os
import tempfile
import tokenize
from pathlib import Path

import numpy as np

from codemill.data.packing import PackedRows
from codemill.errors import CodemillError

_FIELDS = {"input_ids": "<i4", "position_ids": "<i4", "document_ids": "<i4", "loss_weights": "<f4"}


def save_rows(rows: PackedRows, path: str | Path) -> None:
    """Write `rows` to `path` (any suffix); readers see the old file or the whole new one, never a part."""
    target = Path(path)
    records = np.empty(len(rows), dtype=_record_type(rows.input_ids.shape[1]))
    for name in _FIELDS:
        records[name] = getattr(rows, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(records, target)
    except OSError as error:
        raise CodemillError(f"cannot write {target}: {error.strerror}") from error


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


def _write_atomically(records: np.ndarray, target: Path) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, records, allow_pickle=False)
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
