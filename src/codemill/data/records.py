"""The records of a piece of an input, each with the place it came from, which every message about it names."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from codemill.data.segments import Piece, opened, place_in_repository
from codemill.errors import CodemillError

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Record:
    """value: the JSON object, {"text", "repo", "path"} for a file that is a text. line: in its file, from 1, else 0."""

    value: Mapping[str, Any]
    piece: Piece
    line: int

    @property
    def where(self) -> str:
        return place(self.piece, self.line)


def place(piece: Piece, line: int) -> str:
    """A record as messages name it: `train.jsonl:17`, `library/heap.py`."""
    return f"{piece.file.path}:{line}" if line else str(piece.file.path)


def _stop(fault: CodemillError) -> None:
    raise fault


def read_records(
    piece: Piece, on_fault: Callable[[CodemillError], None] = _stop, line: int | None = None
) -> Iterator[Record]:
    """The records of a piece, blank lines left out; only the one of `line` if that is given.

    on_fault: takes the error of a line that is no record, which names file and line; by default it is raised.
    """
    if piece.is_table:
        yield from (row for row in _rows(piece) if line in (None, row.line))
    elif piece.file.has_records:
        yield from _lines(piece, on_fault, line)
    elif piece.file.is_json:
        yield from _listed(piece, on_fault, line)
    else:
        text = _decoded(_content(piece), str(piece.file.path))
        repo, path = place_in_repository(piece.file)
        yield Record({"text": text, "repo": repo, "path": path}, piece, 0)


def _content(piece: Piece) -> bytes:
    with opened(piece.file) as file:
        return file.read()


def _lines(piece: Piece, on_fault: Callable[[CodemillError], None], line: int | None) -> Iterator[Record]:
    with opened(piece.file) as file:
        file.seek(piece.start)
        number, place_in_file = piece.first_line, piece.start
        while place_in_file < piece.end and (raw := file.readline()):
            if raw.strip() and line in (None, number):
                try:
                    value = _parsed(raw.removeprefix(_BOM), place(piece, number))
                except CodemillError as error:
                    on_fault(error)
                else:
                    yield Record(value, piece, number)
            number, place_in_file = number + 1, place_in_file + len(raw)


def _listed(piece: Piece, on_fault: Callable[[CodemillError], None], line: int | None) -> Iterator[Record]:
    """The records of a .json file: those of a list, numbered from 1, or one on each line."""
    raw = _content(piece).removeprefix(_BOM)
    if raw.lstrip()[:1] != b"[":
        yield from _lines(piece, on_fault, line)
        return
    for number, value in enumerate(_json(raw, str(piece.file.path)), 1):
        if line in (None, number):
            try:
                yield Record(_checked(value, place(piece, number)), piece, number)
            except CodemillError as error:
                on_fault(error)


def _parsed(raw: bytes, where: str) -> Mapping[str, Any]:
    if raw.strip() in (b"[", b"{"):
        raise CodemillError(
            f"{where}: not JSON: each record must stand on one line; name a file that is one JSON list .json"
        )
    return _checked(_json(raw, where), where)


def _json(raw: bytes, where: str) -> Any:
    text = _decoded(raw, where)
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise CodemillError(f"{where}: not JSON: {error}") from None
    if _SURROGATE.search(text):
        _check_characters(value, where)
    return value


def _check_characters(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise CodemillError(f"{where}: {half} is half of a surrogate pair, no character") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of one key Python would drop the first without a word."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _checked(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CodemillError(f"{where}: a record must be a JSON object, found {type(value).__name__}")
    return value


def _decoded(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodemillError(f"{where}: no UTF-8 text ({error.reason} at byte {error.start + 1})") from None
    if "\0" in text:
        raise CodemillError(f"{where}: a NUL character (at {text.index(chr(0)) + 1}): a binary or damaged file")
    return text


def _rows(piece: Piece) -> Iterator[Record]:
    """The rows of a Parquet or Arrow file, numbered from 1."""
    try:
        import pyarrow
        import pyarrow.dataset
    except ImportError:
        raise CodemillError(f"{piece.file.path}: reading this needs pyarrow: pip install pyarrow") from None
    kind = "parquet" if piece.file.path.suffix.lower() == ".parquet" else "arrow"
    number = 0
    try:
        for batch in _batches(piece, kind):
            for row in batch.to_pylist():
                number += 1
                yield Record(_without_nulls(row), piece, number)
    except (pyarrow.ArrowException, OSError) as error:
        raise CodemillError(f"{piece.file.path}: not a readable {kind} file: {str(error).splitlines()[0]}") from None


def _without_nulls(value: Any) -> Any:
    """In a table all rows have the same fields, also inside calls' arguments: null is what a row does not have."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _batches(piece: Piece, kind: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.dataset

    path = str(piece.file.path)
    if kind == "arrow":  # `datasets` stores streams, others files
        try:
            with pyarrow.OSFile(path) as source:
                yield from pyarrow.ipc.open_stream(source)
            return
        except pyarrow.ArrowInvalid:
            pass
    yield from pyarrow.dataset.dataset(path, format=kind).to_batches()
