"""Records of a public data file: JSON Lines or one JSON list, gzipped or not. The content decides, not the name."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from codemill.errors import CodemillError

Kind = type | tuple[type, ...]
Report = Callable[[CodemillError], None]

_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")
_OTHER_FORMATS = {b"PAR1": "Parquet", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "Zstandard", b"SQLite": "SQLite"}
_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


@dataclass(frozen=True)
class Record:
    """One record: `fields` as they stand in the file, `where` the place to name in a message ("FILE, line 3")."""

    where: str
    fields: dict[str, Any]

    def need(self, name: str, kind: Kind = object) -> Any:
        """A field's value. Raises CodemillError if it is not there or not of this kind."""
        if name not in self.fields:
            raise CodemillError(f"{self.where}: the record has no field {name!r} (it has {_listed(self.fields)})")
        value = self.fields[name]
        if not _is_kind(value, kind):
            raise CodemillError(f"{self.where}: {name!r} must be {_name(kind)}, not {_shown(value)}")
        return value


def read_records(
    path: Path,
    needed: Mapping[str, Kind] | None = None,
    key: str | None = "task_id",
    report: Report | None = None,
) -> Iterator[Record]:
    """The records of a file, in its order; blank lines, a byte order mark and CRLF do not matter.

    needed: the fields a record must have, with their types. key: the field whose values must differ (None: none).
    Raises CodemillError, naming file and line, for a file that cannot be read or is in another format, a line that is
    no JSON object, a field that is missing or of another type, and a second record with the same key. With `report`,
    such records are left out and their errors go there; only what ends the whole file is raised.
    """
    seen: dict[Any, str] = {}
    checks = dict(needed or {})
    if key is not None:
        checks.setdefault(key, (str, int))
    for item in _items(path):
        try:
            yield _checked(item, checks, key, seen)
        except CodemillError as error:
            if report is None:
                raise
            report(error)


def find_file(path: Path, patterns: Sequence[str]) -> Path:
    """`path` itself, or of a folder the one file that the first matching glob pattern finds.

    Raises CodemillError if there is no such file or folder, or a pattern matches several files.
    """
    if not path.is_dir():
        if not path.exists():
            raise CodemillError(f"{path}: there is no such file")
        return path
    for pattern in patterns:
        found = sorted(file for file in path.glob(pattern) if file.is_file())
        if len(found) > 1:
            raise CodemillError(f"{path} holds {_listed([file.name for file in found])}: name one of these files")
        if found:
            return found[0]
    raise CodemillError(f"{path} holds no file named like {_listed(patterns)}: name the file itself")


_Item = Record | CodemillError


def _checked(item: _Item, needed: Mapping[str, Kind], key: str | None, seen: dict[Any, str]) -> Record:
    if isinstance(item, CodemillError):
        raise item
    for name, kind in needed.items():
        item.need(name, kind)
    if key is not None:
        value = item.fields[key]
        if value in seen:
            raise CodemillError(f"{item.where}: {key} {value!r} is also that of {seen[value].rpartition(', ')[2]}")
        seen[value] = item.where
    return item


def _items(path: Path) -> Iterator[_Item]:
    with _opened(path) as stream:
        start = 1
        for raw in stream:
            raw = raw.removeprefix(_BOM) if start == 1 else raw
            if raw.strip():
                break
            start += 1
        else:
            raise CodemillError(f"{path}: the file is empty")
        if raw.lstrip().startswith(b"["):
            rest = stream.read()
            if not _is_stray(raw, rest):
                yield from _list_items(path, raw + rest, start)
                return
            stream = io.BytesIO(rest)
        yield _line_item(f"{path}, line {start}", raw)
        for number, raw in enumerate(stream, start + 1):
            if raw.strip():
                yield _line_item(f"{path}, line {number}", raw)


def _is_stray(first: bytes, rest: bytes) -> bool:
    """Whether a first line that begins as a list does is a damaged line before lines that are records by themselves."""
    line, following = first.strip(), next((line for line in io.BytesIO(rest) if line.strip()), b"")
    if line == b"[" or line.endswith(b","):
        return False
    return isinstance(_line_item("", following), Record)


def _line_item(where: str, raw: bytes) -> _Item:
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except _BAD_JSON as error:
        return CodemillError(f"{where}: {_reason(error)}")
    return _record(where, value)


def _list_items(path: Path, raw: bytes, line: int) -> Iterator[_Item]:
    """The elements of a JSON list, each with the line it starts on."""
    text = _decoded(path, raw, line)
    position, counted = _after_space(text, text.index("[") + 1), 0
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}, line {line}"
        if position >= len(text):
            raise CodemillError(f"{where}: the list does not end: the file is cut short")
        try:
            value, position = _DECODER.raw_decode(text, position)
        except _BAD_JSON as error:
            raise CodemillError(f"{where}: {_reason(error)}") from None
        yield _record(where, value)
        position = _after_space(text, position)
        if text.startswith(",", position):
            position = _after_space(text, position + 1)
        elif text[position : position + 1] not in ("]", ""):
            raise CodemillError(f"{where}: a comma is missing after the record that starts here")


def _decoded(path: Path, raw: bytes, line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise CodemillError(f"{path}, line {line}: {_reason(error)}") from None


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _record(where: str, value: Any) -> _Item:
    if not isinstance(value, dict):
        return CodemillError(f"{where}: a record must be a JSON object, not {_shown(value)}")
    return Record(where, value)


_DECODER = json.JSONDecoder()
# ValueError: not UTF-8, not JSON, or a number with more digits than Python converts.
_BAD_JSON = (ValueError, RecursionError)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg[:1].lower() + error.msg[1:]} (column {error.colno})"
    return f"not valid JSON: {error}"


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked. Errors of reading, wherever they come up, as CodemillError."""
    try:
        with path.open("rb") as file:
            head = file.peek(8)[:8]
            _check_format(path, head)
            yield io.BufferedReader(gzip.GzipFile(fileobj=file)) if head.startswith(_GZIP) else file
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise CodemillError(f"{path}: the gzip data is damaged or cut short: fetch the file again") from None
    except OSError as error:
        raise CodemillError(f"{path}: {error.strerror or error}") from None


def _check_format(path: Path, head: bytes) -> None:
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise CodemillError(f"{path}: a {name} file, where JSON Lines or a JSON list is wanted")


def _is_kind(value: Any, kind: Kind) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):  # to isinstance, also an int
        return bool in kinds or object in kinds
    return isinstance(value, int) if float in kinds and isinstance(value, int) else isinstance(value, kinds)


def _name(kind: Kind) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join("null" if one is type(None) else _NAMES.get(one, one.__name__) for one in kinds)


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return _NAMES[type(value)]
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a number with many digits"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    shown = list(names)[:12]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
