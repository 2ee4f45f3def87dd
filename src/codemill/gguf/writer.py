"""Writes the container: first the header with every tensor's place, then the tensors, one by one."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from codemill.gguf.container import ARRAY, DEFAULT_ALIGNMENT, MAGIC, STRING
from codemill.gguf.types import TensorType

VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL = 4, 5, 6, 7


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written; `shape` has the outermost dimension first."""

    name: str
    type: TensorType
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.type.num_bytes(prod(self.shape))


def write_header(file: BinaryIO, metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> None:
    """Everything before the data: int (as uint32), float (as float32), bool, str, and lists of int, float or str."""
    chunks = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        chunks += [_string(key), *_value(value)]
    offset = 0
    for tensor in tensors:
        dimensions = tuple(reversed(tensor.shape))
        layout = f"<I{len(dimensions)}QIQ"
        chunks += [_string(tensor.name), struct.pack(layout, len(dimensions), *dimensions, tensor.type.number, offset)]
        offset += tensor.num_bytes + padding(tensor.num_bytes)
    header = b"".join(chunks)
    file.write(header + bytes(padding(len(header))))


def padding(num_bytes: int) -> int:
    """Bytes to the next place where data may begin."""
    return -num_bytes % DEFAULT_ALIGNMENT


def _value(value: Any) -> Iterable[bytes]:
    if isinstance(value, list):
        kind, _ = _scalar(value[0] if value else 0, in_array=True)
        return [struct.pack("<IIQ", ARRAY, kind, len(value)), *(_scalar(item, in_array=True)[1] for item in value)]
    kind, encoded = _scalar(value)
    return [struct.pack("<I", kind), encoded]


def _scalar(value: Any, in_array: bool = False) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    # llama.cpp reads token types as int32, and sizes as uint32.
    return (_INT32, struct.pack("<i", value)) if in_array else (_UINT32, struct.pack("<I", value))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
