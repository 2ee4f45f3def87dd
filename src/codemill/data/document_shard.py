"""Tokenised documents in one file: a header, then arrays that are read memory-mapped.

Layout: a magic line; length and CRC-32 of the header in 8 hex digits each and a newline; the header, JSON with the
arrays' lengths and offsets and the CRC-32 of all that follows it; the arrays.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codemill.data.packing import Document
from codemill.errors import CodemillError

MAGIC = b"codemill documents 1\n"
_TYPES = {
    "ids": "<i4",  # [tokens]
    "weights": "<f4",  # [tokens]
    "offsets": "<i8",  # [documents + 1]
    "learned": "<i8",  # [documents]: tokens whose prediction has a weight
    "pieces": "<i4",  # [documents]: which piece of the segment it came from
    "lines": "<i8",  # [documents]: its line, from the first of the piece
    "domains": "<i4",  # [documents]
    "is_text": "|u1",  # [documents]: a text, which may be cut anywhere
}
_CHECKED = 1 << 24


class BrokenShard(CodemillError):
    """A file of tokenised documents that is not whole."""


@dataclass(frozen=True)
class ShardEntry:
    """A document, and where it came from."""

    document: Document
    piece: int
    line: int
    domain: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says besides its arrays. empty: (piece, line) of the records with nothing to learn from, and why."""

    domains: tuple[str, ...]
    empty: tuple[tuple[int, int, str], ...]
    records: int


@dataclass(frozen=True, eq=False)
class DocumentShard:
    """A shard, open: `arrays` as in the file, memory-mapped."""

    path: Path
    header: ShardHeader
    arrays: Mapping[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.arrays["lines"])

    def document(self, index: int) -> Document:
        start, end = self.arrays["offsets"][index : index + 2]
        return Document(self.arrays["ids"][start:end], self.arrays["weights"][start:end])


def learned_tokens(document: Document) -> int:
    """How many tokens have a weight; the first of a document is never predicted."""
    return int(np.count_nonzero(document.weights[1:]))


def write_shard(path: Path, entries: Sequence[ShardEntry], empty: Sequence[tuple[int, int, str]], records: int) -> None:
    """Write a shard; readers see all of it or nothing."""
    arrays = _arrays(entries)
    parts, described, offset, checksum = [], {}, 0, 0
    for name, array in arrays.items():
        data = array.tobytes() + b"\0" * (-array.nbytes % 8)
        described[name] = {"shape": array.shape[0], "offset": offset}
        offset, checksum = offset + len(data), zlib.crc32(data, checksum)
        parts.append(data)
    domains = sorted({entry.domain for entry in entries})
    header = {"arrays": described, "size": offset, "crc32": checksum, "domains": domains, "records": records}
    text = json.dumps({**header, "empty": list(empty)}).encode()
    text += b" " * (-(len(MAGIC) + 17 + len(text)) % 8)
    _write_atomically(path, [MAGIC, f"{len(text):08x}{zlib.crc32(text):08x}\n".encode(), text, *parts])


def open_shard(path: Path, verify: bool = False) -> DocumentShard:
    """Map a shard into memory; `verify` reads all of it. Raises BrokenShard naming a file that is not whole."""
    try:
        with path.open("rb") as file:
            raw, start = _read_header(file.read(len(MAGIC) + 17), file)
            if path.stat().st_size != start + raw["size"] or (verify and _checksum(file) != raw["crc32"]):
                raise ValueError("truncated or damaged")
        data = np.memmap(path, np.uint8, "r", offset=0) if raw["size"] else np.empty(start, np.uint8)
        arrays = {name: _view(data[start:], name, raw["arrays"][name]) for name in _TYPES}
        header = ShardHeader(tuple(raw["domains"]), tuple(map(tuple, raw["empty"])), raw["records"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenShard(f"{path} is no whole file of tokenised documents ({error}): delete it") from None
    return DocumentShard(path, header, arrays)


def _arrays(entries: Sequence[ShardEntry]) -> dict[str, npt.NDArray[Any]]:
    domains = {domain: i for i, domain in enumerate(sorted({entry.domain for entry in entries}))}
    documents = [entry.document for entry in entries]
    nothing: list[Any] = [np.empty(0)]
    values = {
        "ids": np.concatenate([document.ids for document in documents] or nothing),
        "weights": np.concatenate([document.weights for document in documents] or nothing),
        "offsets": np.cumsum([0, *map(len, documents)]),
        "learned": [learned_tokens(document) for document in documents],
        "pieces": [entry.piece for entry in entries],
        "lines": [entry.line for entry in entries],
        "domains": [domains[entry.domain] for entry in entries],
        "is_text": [entry.is_text for entry in entries],
    }
    return {name: np.asarray(values[name], dtype=kind) for name, kind in _TYPES.items()}


def _read_header(start: bytes, file: Any) -> tuple[dict[str, Any], int]:
    if not start.startswith(MAGIC):
        raise ValueError("another kind of file")
    length, checksum = int(start[len(MAGIC) :][:8], 16), int(start[len(MAGIC) :][8:], 16)
    text = file.read(length)
    if zlib.crc32(text) != checksum:
        raise ValueError("a damaged header")
    return json.loads(text), len(start) + length


def _checksum(file: Any) -> int:
    checksum = 0
    while block := file.read(_CHECKED):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _view(data: npt.NDArray[np.uint8], name: str, described: Mapping[str, int]) -> npt.NDArray[Any]:
    kind = np.dtype(_TYPES[name])
    offset, length = described["offset"], described["shape"] * kind.itemsize
    if offset < 0 or length < 0 or offset + length > len(data):
        raise ValueError(f"no room for {name}")
    return data[offset : offset + length].view(kind)


def _write_atomically(path: Path, parts: Sequence[bytes]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(parts)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise CodemillError(f"cannot write {path}: {error.strerror}") from error
