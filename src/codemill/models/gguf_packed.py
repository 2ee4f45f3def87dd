"""Rows of quantised GGUF tensors in the layout of packed matrices (kernels/packed_matrix.py), not dequantised.

Nearly all types have integers times a scale for 32 columns, as packed matrices do. Their integers are kept, those of 5
bits in 8, and so are scales and minima in fp16. What is not exact:

- Q4_K, Q5_K, IQ4_XS: the scale of a group is a product of two numbers, which is rounded to fp16.
- Q6_K: 16 columns have a scale, of which we need one for 32. A quarter of the larger of two is a step by which the
  weights of that half remain what they are; those of the other half are rounded to it.
- Q2_K: likewise scales for 16 columns, and minima; 32 columns become 256 steps between their smallest and largest.

Q3_K has scales for 16 columns too, but these are small integers, and so are their products with the numbers.

Shapes: n rows, N rows of a whole matrix, K columns, G groups of 32 columns, B blocks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.config import PackedFormat
from codemill.errors import CodemillError
from codemill.gguf.types import (
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TensorType,
)
from codemill.kernels.cpu_library import CpuLibrary, load_cpu_library
from codemill.kernels.cpu_structs import address
from codemill.kernels.packed_matrix import BLOCK_ROWS, PackedMatrix
from codemill.models.gguf_numbers import BlockNumbers, q3_k_parts, read_numbers

GROUP_SIZE = 32
_LIBRARY_ELEMENTS = 1 << 20  # repacked at a time by each thread
_ELEMENTS = 1 << 17  # the same in PyTorch, where temporaries are to stay in the CPU's cache
_IN_LIBRARY = frozenset((Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, IQ4_XS, Q3_K, Q4_K, Q5_K, Q6_K))
_FORMATS = {
    **dict.fromkeys((Q4_0,), PackedFormat(4, GROUP_SIZE, symmetric=True)),
    **dict.fromkeys((Q4_1, Q4_K), PackedFormat(4, GROUP_SIZE, symmetric=False)),
    **dict.fromkeys((Q8_0, Q5_0, IQ4_NL, IQ4_XS, Q3_K, Q6_K), PackedFormat(8, GROUP_SIZE, symmetric=True)),
    **dict.fromkeys((Q5_1, Q5_K, Q2_K), PackedFormat(8, GROUP_SIZE, symmetric=False)),
}


def kept_format(kinds: Iterable[TensorType]) -> PackedFormat | None:
    """The smallest format that holds rows of all these types; None if one of them is not quantised."""
    formats = [_FORMATS.get(kind) for kind in kinds]
    known = [each for each in formats if each is not None]
    if len(known) < len(formats):
        return None
    return PackedFormat(max(each.bits for each in known), GROUP_SIZE, all(each.symmetric for each in known))


@dataclass(frozen=True)
class RawRows:
    """Rows of a matrix as they are in a file: uint8 [n, bytes of a row]."""

    raw: Tensor
    kind: TensorType


@dataclass(frozen=True)
class Repacking:
    """A matrix [N, K] of the kept format of its `sources`, and the rows to fill it with.

    order: the source row of each row of the matrix, int64 [N], where the sources are numbered one after the other;
    None if that is their order.
    """

    matrix: PackedMatrix
    sources: Sequence[RawRows]
    order: Tensor | None = None

    @property
    def library(self) -> CpuLibrary | None:
        """That of the C++ kernels, if it does this: for rows of one type that it knows."""
        kinds = {source.kind for source in self.sources}
        return load_cpu_library() if len(kinds) == 1 and kinds <= _IN_LIBRARY else None

    def pieces(self) -> list["RepackedBlocks"]:
        """Parts that can be filled independently of each other."""
        num_blocks = self.matrix.weight.shape[0]
        elements = _ELEMENTS if self.library is None else _LIBRARY_ELEMENTS
        step = max(1, elements // (BLOCK_ROWS * self.matrix.num_columns))
        return [RepackedBlocks(self, slice(first, first + step)) for first in range(0, num_blocks, step)]


@dataclass(frozen=True)
class RepackedBlocks:
    """Some blocks of 16 rows."""

    whole: Repacking
    blocks: slice

    @torch.no_grad()  # which a thread does not inherit
    def fill(self) -> None:
        """Raises CodemillError for scales that are NaN, infinite or beyond fp16."""
        whole, matrix = self.whole, self.whole.matrix
        stop = min(self.blocks.stop * BLOCK_ROWS, matrix.num_rows)
        ids = torch.arange(self.blocks.start * BLOCK_ROWS, stop)
        if whole.order is not None:
            ids = whole.order[ids]
        target = _blocks_of(matrix, self.blocks, len(ids))
        if whole.library is not None:
            _repack(whole.library, whole.sources, ids, target)
        else:
            wanted = PackedFormat(matrix.bits, matrix.group_size, matrix.symmetric)
            _gather(whole.sources, ids, wanted).padded().write(target)
        scales = [target.scale] if target.minimum is None else [target.scale, target.minimum]
        if not all(bool(each.isfinite().all()) for each in scales):
            raise CodemillError("a scale is NaN, infinite or too large: the file is damaged")


def _blocks_of(matrix: PackedMatrix, blocks: slice, num_rows: int) -> PackedMatrix:
    """Some blocks of a matrix; they share its memory."""
    minimum = None if matrix.minimum is None else matrix.minimum[blocks]
    return PackedMatrix(matrix.weight[blocks], matrix.scale[blocks], minimum, num_rows, matrix.num_columns)


def _repack(library: CpuLibrary, sources: Sequence[RawRows], ids: Tensor, target: PackedMatrix) -> None:
    """The rows `ids`, all of one type, by the C++ library."""
    rows, first = torch.empty_like(ids), 0
    for source in sources:
        inside = (ids >= first) & (ids < first + len(source.raw))
        rows[inside] = source.raw.data_ptr() + (ids[inside] - first) * source.raw.shape[1]
        first += len(source.raw)
    tensors = target.weight, target.scale, target.minimum
    num_groups = target.num_columns // GROUP_SIZE
    library.repack_gguf(address(rows), sources[0].kind.number, len(ids), num_groups, *map(address, tensors))


@dataclass(frozen=True)
class _Groups:
    """Rows in a packed format, not yet in its layout: q uint8 [n, G, 32]; scale and minimum fp16 [n, G]."""

    q: Tensor
    scale: Tensor
    minimum: Tensor | None

    def padded(self) -> "_Groups":
        """With rows of zeros, so that they are whole blocks."""
        rows = -len(self.q) % BLOCK_ROWS
        if not rows:
            return self
        minimum = None if self.minimum is None else F.pad(self.minimum, (0, 0, 0, rows))
        return _Groups(F.pad(self.q, (0, 0, 0, 0, 0, rows)), F.pad(self.scale, (0, 0, 0, rows)), minimum)

    def write(self, matrix: PackedMatrix) -> None:
        lanes = self.q.view(torch.int32).flatten(1)  # [n, K / 4]: four columns
        if matrix.bits == 4:
            lanes = lanes[:, 0::2] | lanes[:, 1::2] << 4
        _write_transposed(lanes, matrix.weight.view(torch.int32).flatten(1))
        _write_transposed(self.scale, matrix.scale.flatten(1))
        if self.minimum is not None and matrix.minimum is not None:
            _write_transposed(self.minimum, matrix.minimum.flatten(1))


def _write_transposed(rows: Tensor, out: Tensor) -> None:
    """[n, x] -> out [n / 16, x * 16]: each 16 rows transposed."""
    out.view(len(out), -1, BLOCK_ROWS).copy_(rows.view(len(out), BLOCK_ROWS, -1).transpose(1, 2))


def _gather(sources: Sequence[RawRows], ids: Tensor, wanted: PackedFormat) -> _Groups:
    """The rows `ids` of the sources, which are numbered one after the other."""
    if len(sources) == 1:
        return _groups(sources[0].raw[ids], sources[0].kind, wanted)
    found, places, first = [], [], 0
    for source in sources:
        inside = (ids >= first) & (ids < first + len(source.raw))
        if inside.any():
            places.append(inside.nonzero().flatten())
            found.append(_groups(source.raw[ids[inside] - first], source.kind, wanted))
        first += len(source.raw)
    where = torch.cat(places).argsort()
    minima = [each.minimum for each in found if each.minimum is not None]
    minimum = torch.cat(minima)[where] if minima else None
    return _Groups(torch.cat([x.q for x in found])[where], torch.cat([x.scale for x in found])[where], minimum)


def _groups(raw: Tensor, kind: TensorType, wanted: PackedFormat) -> _Groups:
    """Rows uint8 [n, bytes] of a type in a format that holds them."""
    own = _FORMATS[kind]
    number, scale, minimum = _in_groups(raw.view(-1, kind.block_bytes), kind)
    num_groups = number.numel() // GROUP_SIZE // len(raw)
    if own.symmetric:
        offset = 1 << ((wanted if wanted.symmetric else own).bits - 1)
        number = number.view(torch.uint8) + offset  # of a signed number, modulo 256
        minimum = None if wanted.symmetric else scale * -offset
    q = number.contiguous().view(len(raw), num_groups, GROUP_SIZE)
    shape = len(raw), num_groups
    return _Groups(q, scale.view(shape), None if minimum is None else minimum.view(shape))


def _in_groups(blocks: Tensor, kind: TensorType) -> tuple[Tensor, Tensor, Tensor | None]:
    """Integers [B, S, 32], signed where there is no minimum; their scale, and minimum, fp16 [B, S]."""
    if kind is Q3_K:
        return _share_factor(*q3_k_parts(blocks))
    numbers = read_numbers(blocks, kind)
    if kind is Q6_K:
        return _share_scale(numbers)
    if kind is Q2_K:
        return _share_range(numbers)
    return numbers.number, numbers.scale.half(), None if numbers.minimum is None else numbers.minimum.half()


def _share_factor(number: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, None]:
    """Of Q3_K: the products of number and scale lie within -124 and 128, which fits a byte in one direction."""
    product = number.short() * scale[:, :, None]
    groups = product.view(len(number), 8, GROUP_SIZE)
    sign = torch.where(groups.amax(dim=2) > 127, -1, 1).short()
    return (groups * sign[:, :, None]).to(torch.int8), factor * sign.half(), None


def _share_scale(numbers: BlockNumbers) -> tuple[Tensor, Tensor, None]:
    """Of Q6_K: numbers of -32 to 31; four times that is within a byte."""
    scales = numbers.scale.unflatten(1, (8, 2))
    first, second = scales.unbind(2)
    shared = (torch.where(first.abs() >= second.abs(), first, second) / 4).half()
    ratio = scales / shared.float()[:, :, None]
    ratio.masked_fill_((shared == 0)[:, :, None], 0)
    scaled = numbers.number.float().mul_(ratio.view(len(ratio), 16, 1)).round_().clamp_(-128, 127)
    return scaled.to(torch.int8).view(-1, 8, GROUP_SIZE), shared, None


def _share_range(numbers: BlockNumbers) -> tuple[Tensor, Tensor, Tensor]:
    """Of Q2_K."""
    weights = numbers.weights().view(-1, 8, GROUP_SIZE)
    minimum = weights.amin(dim=2).half()
    scale = ((weights.amax(dim=2) - minimum) / 255).half()
    inverse = (1 / scale.float()).masked_fill_(scale == 0, 0)
    scaled = weights.sub_(minimum.float()[:, :, None]).mul_(inverse[:, :, None]).round_().clamp_(0, 255)
    return scaled.to(torch.uint8), scale, minimum
