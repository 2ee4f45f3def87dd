"""Reads safetensors files by memory mapping, and writes them so that they can be mapped.

The format (https://huggingface.co/docs/safetensors): the header's length as 8 bytes, little endian; the header, a JSON
object {name: {dtype, shape, data_offsets}}; the tensors' bytes. We read it ourselves so that an error can name the
tensor it is about, and so that each tensor can be mapped alone and its pages given back once it is copied. We write it
ourselves so that the tensors are aligned.
"""

import json
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from codemill.errors import CodemillError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}
# MKL, which computes fp32 products, rounds by where the data lie: equal weights are sure to yield equal bits only at
# multiples of 64 bytes. Packed weights (uint8) are read in vectors of 64 bytes. The kernels of the other dtypes do not
# look at addresses.
ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk; its bytes are those from `begin` to `end` of the file."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self) -> Tensor:
        """The tensor, on a mapping of its own that goes when the tensor goes."""
        return self._shaped(map_bytes(self.path, self.begin, self.end), self.dtype.itemsize)

    def view(self, mapped_file: Tensor) -> Tensor:
        """The tensor as part of a mapping of the whole file (uint8 [size]), to compute with."""
        alignment = ALIGNMENT if self.dtype in (torch.float32, torch.uint8) else self.dtype.itemsize
        return self._shaped(mapped_file[self.begin : self.end], alignment)

    def _shaped(self, raw: Tensor, alignment: int) -> Tensor:
        if raw.data_ptr() % alignment:
            raw = raw.clone()  # the format does not promise alignment
        return raw.view(self.dtype).view(self.shape)


def map_bytes(path: Path, begin: int = 0, end: int | None = None) -> Tensor:
    """Bytes of a file, uint8 [end - begin], mapped privately: the file never sees what is written to the tensor."""
    start = begin - begin % mmap.ALLOCATIONGRANULARITY
    length = 0 if end is None else end - start  # 0 maps all there is
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    except (OSError, ValueError) as error:
        raise CodemillError(f"{path}: cannot be read ({error}): was the file replaced or cut meanwhile?") from error
    return torch.frombuffer(mapping, dtype=torch.uint8)[begin - start :]


class SafetensorsWriter:
    """Writes a file whose tensors come one by one, in any order; their shapes and dtypes are known before."""

    def __init__(self, path: Path, metas: Mapping[str, Tensor]) -> None:
        """metas: tensors of the meta device, or any others of the same shapes and dtypes, by name."""
        # The format has no gaps: a tensor of an odd size goes last, where it shifts none that is large.
        names = sorted(metas, key=lambda name: -min(ALIGNMENT, metas[name].nbytes & -metas[name].nbytes))
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name in names:
            begin, end = end, end + metas[name].nbytes
            self._places[name] = begin, end
        header = {"__metadata__": {"format": "pt"}, **{name: self._entry(name, metas[name]) for name in names}}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
        self._data_start = 8 + len(encoded)
        self._missing = set(names)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(encoded)) + encoded)

    def _entry(self, name: str, meta: Tensor) -> dict[str, Any]:
        return {"dtype": _NAMES[meta.dtype], "shape": list(meta.shape), "data_offsets": list(self._places[name])}

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one of the tensors that were announced."""
        begin, end = self._places[name]
        assert tensor.nbytes == end - begin
        self._missing.remove(name)
        self._file.seek(self._data_start + begin)
        self._file.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._missing, f"never written: {self._missing}"


def write_file(
    path: Path, tensors: Mapping[str, Tensor], read: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
) -> None:
    """Write tensors by name; the data of each begin at a multiple of ALIGNMENT, where the sizes allow it.

    read: where the tensors are on the meta device, gives the values of each when it is its turn.
    """
    with SafetensorsWriter(path, tensors) as writer:
        for name, tensor in tensors.items():
            writer.write(name, read(name, tensor))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name. Raises CodemillError naming the file, and the tensor where one is at fault."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if _LFS_POINTER.startswith(prefix) and prefix:
                raise CodemillError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise CodemillError(f"{path} is truncated or no safetensors file ({size} bytes): fetch it again")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CodemillError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CodemillError(f"{path}: the header is corrupt ({error}): fetch the file again") from None
    return _parse_header(path, header, data_start=8 + length, size=size)


def _parse_header(path: Path, header: Any, data_start: int, size: int) -> dict[str, StoredTensor]:
    if not isinstance(header, dict):
        raise CodemillError(f"{path}: the header is corrupt (no JSON object): fetch the file again")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _parse_entry(path, name, entry, data_start) for name, entry in entries.items()}
    for tensor in tensors.values():
        if tensor.end > size:
            raise CodemillError(
                f"{path} is truncated: tensor {tensor.name} ends at byte {tensor.end}, "
                f"the file at {size}: fetch it again"
            )
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != end:
            raise CodemillError(
                f"{path} is corrupt: tensor {tensor.name} begins at byte {tensor.begin}, but the data before it ends "
                f"at {end}: fetch it again"
            )
        end = tensor.end
    if end != size:
        raise CodemillError(f"{path} is corrupt: its tensors do not add up to its {size} bytes: fetch it again")
    return tensors


def _parse_entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not isinstance(dtype, str) or not all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CodemillError(f"{path}: the header entry of tensor {name} is corrupt: fetch the file again") from None
    if dtype not in DTYPES:
        supported = ", ".join(DTYPES)
        raise CodemillError(f"{path}: tensor {name} has dtype {dtype}, which is not supported (only {supported})")
    if end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise CodemillError(
            f"{path} is corrupt: tensor {name} is {dtype} {list(shape)}, but has {end - begin} bytes: fetch it again"
        )
    return StoredTensor(path, name, DTYPES[dtype], shape, data_start + begin, data_start + end)
