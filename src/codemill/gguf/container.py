"""Reads the container: magic, metadata and the list of tensors of a GGUF file, or of all files of a split one.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian: "GGUF", version, number of
tensors, number of metadata entries; the entries (key, type, value); for each tensor its name, dimensions (innermost
first), type and offset; then, aligned, the data. Nothing here trusts a number of the file before it is checked against
the file's size.
"""

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from codemill.errors import CodemillError
from codemill.gguf.types import SUPPORTED, TensorType, type_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
STRING, ARRAY = 8, 9
# Scalar value types: number -> struct format.
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4  # arrays in arrays
_MAX_NAME = 256
_MAX_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class GgufTensor:
    """A tensor on disk: the bytes from `begin` to `end` of `path`; `shape` has the outermost dimension first."""

    path: Path
    name: str
    type: TensorType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GgufFile:
    """Metadata, and tensors by name; `paths` are all files that belong together."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    paths: tuple[Path, ...]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read a GGUF file, and those after it if it is the first of a split one.

        Raises CodemillError naming the file and what is wrong: truncated, corrupt, foreign, or a part missing.
        """
        first = _read_file(path)
        count = _split_count(path, first.metadata)
        paths = (path, *(_split_path(path, number, count) for number in range(2, count + 1)))
        tensors = dict(first.tensors)
        for part in paths[1:]:
            for name, tensor in _read_file(part).tensors.items():
                if name in tensors:
                    raise CodemillError(f"{part}: tensor {name} is in {tensors[name].path.name} too")
                tensors[name] = tensor
        return cls(path, first.metadata, tensors, paths)


def _split_count(path: Path, metadata: Mapping[str, Any]) -> int:
    """How many files belong together. Raises CodemillError unless `path` is the first of them."""
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if type(count) is not int or type(number) is not int or not 0 <= number < max(count, 1) <= 99_999:
        raise CodemillError(f"{path}: split.no = {number!r} of split.count = {count!r} makes no sense")
    if number != 0:
        raise CodemillError(f"{path} is part {number + 1} of {count}: give the first part")
    return max(count, 1)


def _split_path(first: Path, number: int, count: int) -> Path:
    match = SPLIT_NAME.fullmatch(first.name)
    if match is None or (int(match[2]), int(match[3])) != (1, count):
        raise CodemillError(f"{first} is the first of {count} parts, but is not called NAME-00001-of-{count:05}.gguf")
    path = first.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")
    if not path.is_file():
        raise CodemillError(f"{first}: part {number} of {count}, {path.name}, does not lie beside it")
    return path


def _read_file(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            return _Reader(path, mapping).read()
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or "the file is empty"
        raise CodemillError(f"{path}: cannot be read ({reason})") from error


class _Reader:
    """Walks through the header of one file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.position = path, data, len(data), 0

    def read(self) -> GgufFile:
        num_tensors, num_entries = self._read_start()
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._name("a metadata key")
            if key in metadata:
                raise self._corrupt(f"the key {key!r} occurs twice")
            metadata[key] = self._value(self._scalar("I"), key)
        return GgufFile(self.path, metadata, self._read_tensors(num_tensors, metadata), (self.path,))

    def _read_start(self) -> tuple[int, int]:
        magic = self.data[:4]
        if magic != MAGIC:
            pointer = b"version https://git-lfs".startswith(self.data[:20]) and self.size >= 20
            what = "a Git LFS pointer: run `git lfs pull` there" if pointer else f"no GGUF file (it begins {magic!r})"
            raise CodemillError(f"{self.path} is {what}")
        self.position = 4
        version = self._scalar("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "written for big-endian machines" if swapped else f"GGUF version {version}"
            raise CodemillError(f"{self.path} is {what}; versions 2 and 3, little endian, can be read")
        num_tensors, num_entries = self._scalar("Q"), self._scalar("Q")
        if num_tensors * 24 + num_entries * 13 > self.size:  # their smallest sizes
            raise self._corrupt(
                f"{num_tensors} tensors and {num_entries} metadata entries cannot be in so small a file"
            )
        return num_tensors, num_entries

    def _read_tensors(self, count: int, metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._corrupt(f"general.alignment = {alignment!r} is no power of two")
        entries = [self._tensor_entry() for _ in range(count)]
        start = self.position + -self.position % alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in entries:
            if name in tensors:
                raise self._corrupt(f"tensor {name} occurs twice")
            if offset % alignment:
                raise self._corrupt(f"tensor {name} begins at offset {offset}, no multiple of {alignment}")
            begin = start + offset
            tensors[name] = GgufTensor(self.path, name, kind, shape, begin, begin + kind.num_bytes(prod(shape)))
        self._check_extents(tensors)
        return tensors

    def _tensor_entry(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        name = self._name("a tensor's name")
        num_dimensions = self._scalar("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise self._corrupt(f"tensor {name} has {num_dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(num_dimensions)]))
        number, offset = self._scalar("I"), self._scalar("Q")
        kind = SUPPORTED.get(number)
        if kind is None:
            names = ", ".join(each.name for each in SUPPORTED.values())
            raise CodemillError(f"{self.path}: tensor {name} has type {type_name(number)}; only {names} can be read")
        if 0 in shape or (shape and shape[-1] % kind.block_size) or (not shape and not kind.is_float):
            raise self._corrupt(f"tensor {name} of type {kind.name} has shape {list(shape)}")
        return name, kind, shape, offset

    def _check_extents(self, tensors: Mapping[str, GgufTensor]) -> None:
        end = 0
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.begin):
            if tensor.end > self.size:
                raise CodemillError(
                    f"{self.path} is truncated: tensor {tensor.name} ends at byte {tensor.end}, "
                    f"the file at {self.size}: fetch it again"
                )
            if tensor.begin < end:
                raise self._corrupt(f"tensor {tensor.name} overlaps the one before it")
            end = tensor.end

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self._string(key)
        if kind == ARRAY:
            return self._array(key, depth + 1)
        if kind not in SCALARS:
            raise self._corrupt(f"{key} has the unknown value type {kind}")
        return self._scalar(SCALARS[kind])

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth > _MAX_NESTING:
            raise self._corrupt(f"{key} is an array nested more than {_MAX_NESTING} deep")
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind in SCALARS:
            layout = f"<{count}{SCALARS[kind]}"
            begin = self._take(count * struct.calcsize(SCALARS[kind]), key)
            return list(struct.unpack_from(layout, self.data, begin))
        if count * 8 > self.size - self.position:  # a string, or an array, has at least a length
            raise self._truncated(key)
        if kind == STRING:
            return list(self._strings(key, count))
        return [self._value(kind, key, depth) for _ in range(count)]

    def _strings(self, key: str, count: int) -> Iterator[str]:
        """Many strings, quickly: vocabularies have some 300,000."""
        data, size, position, length_at = self.data, self.size, self.position, struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                begin = position + 8
                position = begin + length_at(data, position)[0]
                if position > size:
                    raise self._truncated(key)
                yield data[begin:position].decode()
        except struct.error:
            raise self._truncated(key) from None
        except UnicodeDecodeError:
            raise self._corrupt(f"{key} is not UTF-8") from None
        self.position = position

    def _name(self, what: str) -> str:
        """A string that messages can show."""
        name = self._string(what)
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise self._corrupt(f"{what} is {name[:40]!r}")
        return name

    def _string(self, what: str) -> str:
        length = self._scalar("Q")
        begin = self._take(length, what)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise self._corrupt(f"{what} is not UTF-8") from None

    def _scalar(self, layout: str) -> Any:
        begin = self._take(struct.calcsize("<" + layout), "the header")
        return struct.unpack_from("<" + layout, self.data, begin)[0]

    def _take(self, num_bytes: int, what: str) -> int:
        """Where the next `num_bytes` begin; moves behind them."""
        begin = self.position
        if num_bytes > self.size - begin:
            raise self._truncated(what)
        self.position = begin + num_bytes
        return begin

    def _truncated(self, what: str) -> CodemillError:
        return CodemillError(f"{self.path} is truncated or corrupt: {what} goes beyond its {self.size} bytes")

    def _corrupt(self, why: str) -> CodemillError:
        return CodemillError(f"{self.path} is corrupt: {why}")
