"""Training files as documents: the records of JSON Lines files, and other text files whole, also under gzip."""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from codemill.errors import CodemillError, UsageError

_RECORDS = (".jsonl", ".ndjson")
_NO_TEXT = (".json", ".parquet", ".arrow", ".zip", ".zst", ".bz2", ".xz", ".tar", ".bin", ".npy")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TrainingFile:
    """A file of training data. name: its path below the folder that the user named, or just its name.

    is_json: a file of records that is JSON, not JSON Lines.
    """

    path: Path
    name: Path
    is_json: bool = False

    @property
    def is_gzip(self) -> bool:
        return self.path.suffix == ".gz"

    @property
    def has_records(self) -> bool:
        """Whether each line is a document, not the whole file."""
        name = self.path.with_suffix("") if self.is_gzip else self.path
        return name.suffix.lower() in _RECORDS


@dataclass(frozen=True)
class Document:
    """A record or a file. raw: its bytes with the line end. line: from 1, None for a whole file. text: all text in it.

    fault: why it cannot be read, empty if it can.
    """

    raw: bytes
    line: int | None = None
    text: str = ""
    fault: str = ""


def find_files(inputs: Sequence[Path]) -> list[TrainingFile]:
    """The files that are named, and all files below the folders that are; hidden ones are passed over.

    Raises UsageError for what does not exist, holds no file, or is named and cannot be cleaned document by document.
    """
    files: list[TrainingFile] = []
    for given in inputs:
        if given.is_dir():
            found = sorted(_below(given))
            if not found:
                raise UsageError(f"{given} holds no file")
            files += [TrainingFile(path, path.relative_to(given)) for path in found]
        elif not given.exists():
            raise UsageError(f"{given}: there is no such file or folder")
        elif given.suffix.lower() in _NO_TEXT:
            raise UsageError(f"{given}: convert it to JSON Lines (a record on each line) or text files")
        else:
            files.append(TrainingFile(given, Path(given.name)))
    return files


def read_documents(file: TrainingFile, progress: Callable[[int], None] = lambda _: None) -> Iterator[Document]:
    """The documents of a file, one at a time. progress: called with the bytes taken from the file for each.

    Blank lines come as documents without text, so that all documents' bytes together are the file's. Raises
    CodemillError for a file that cannot be decompressed.
    """
    with ExitStack() as stack:
        stored = stack.enter_context(file.path.open("rb"))
        content = stack.enter_context(gzip.open(stored)) if file.is_gzip else stored
        done = 0
        try:
            for document in _records(content) if file.has_records else _whole(content):
                progress(stored.tell() - done)
                done = stored.tell()
                yield document
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise CodemillError(f"{file.path} cannot be decompressed ({error}): get it again") from None


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _records(content: IO[bytes] | gzip.GzipFile) -> Iterator[Document]:
    for number, raw in enumerate(content, 1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if not line.strip():
            yield Document(raw, number)
            continue
        try:
            yield Document(raw, number, text=_text_of_record(line))
        except ValueError as error:
            yield Document(raw, number, fault=str(error))


def _whole(content: IO[bytes] | gzip.GzipFile) -> Iterator[Document]:
    raw = content.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Document(raw, fault=f"no UTF-8 text ({error.reason} at byte {error.start})")
        return
    yield Document(raw, fault="a binary file") if "\0" in text else Document(raw, text=text)


def _text_of_record(line: bytes) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return "\n\n".join(strings(record))


def strings(value: Any) -> Iterator[str]:
    """All text in a JSON value in its order, whatever the fields are called: chat messages, prompts, tool calls.

    Text that is JSON itself, as the arguments of tool calls are, is read as such.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            inner = _inner_json(item)
            if inner is None:
                yield item
            else:
                waiting.append(inner)
        elif isinstance(item, dict):
            waiting += reversed(item.values())
        elif isinstance(item, list):
            waiting += reversed(item)


def _inner_json(text: str) -> dict[str, Any] | list[Any] | None:
    if text[:1] not in ("{", "[") or text[-1:] not in ("}", "]"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None
