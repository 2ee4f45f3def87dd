"""A weight matrix in 4 or 8 bits: the one quantised form, in memory and on disk, for every processor.

A weight [N, K] (N outputs, K inputs) is cut into groups of `group_size` columns, and each row of a group has a scale.
Symmetric: w = scale * (q - 2^(bits - 1)); asymmetric: w = scale * q + minimum; q is unsigned. Rows are padded with
zeros to blocks of 16, columns to whole groups.

The bytes of one block of rows and one group are laid out for a kernel that has a row in each 32-bit lane of a vector:
8 bits: byte [quad][r][c] is column 4 quad + c of row r; 4 bits: byte [pair][r][c] holds column 8 pair + c in its low
half and column 8 pair + 4 + c in its high half. So 64 bytes are 16 rows by 4 columns, or by 8.

Shapes: N rows, K columns, B blocks of rows, G groups, g group size, n ids; [...] the experts, if there are any.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.errors import CodemillError, UsageError
from codemill.kernels.group_scales import choose_scales, quantize_groups
from codemill.kernels.worker_threads import for_each

BLOCK_ROWS = 16
COLUMNS = 4  # of a row, side by side: what one 32-bit lane holds at 8 bits
GROUP_SIZE_STEP = 32
MAX_GROUP_SIZE = 512  # the dot product of a group has to be exact in fp32
_FILL_ELEMENTS = 1 << 18  # quantised at a time by each thread: its fp32 temporaries stay in the CPU's cache
_SLICE_ELEMENTS = 1 << 20  # dequantised at a time, so that fp32 temporaries stay small


@dataclass(frozen=True)
class PackedMatrix:
    """A quantised matrix, or a stack of them. Bits and group size show in the shapes."""

    weight: Tensor  # uint8 [..., B, G, 16 * g * bits / 8]
    scale: Tensor  # fp16 [..., B, G, 16]
    minimum: Tensor | None  # fp16 as scale; None where symmetric
    num_rows: int  # N and K, before padding
    num_columns: int

    @classmethod
    def empty(
        cls,
        shape: tuple[int, ...],
        bits: int,
        group_size: int = 32,
        symmetric: bool = True,
        device: torch.device | str = "cpu",
    ) -> "PackedMatrix":
        """Memory for a matrix of `shape` [..., N, K]. Raises UsageError for bits or a group size that are none.

        No group is longer than the columns need: else bits and group size would not show in the shapes.
        """
        check_format(bits, group_size)
        *experts, num_rows, num_columns = shape
        group_size = min(group_size, _round_up(num_columns, GROUP_SIZE_STEP))
        grid = (*experts, -(-num_rows // BLOCK_ROWS), -(-num_columns // group_size))
        num_bytes = BLOCK_ROWS * group_size * bits // 8
        scales = [torch.empty(*grid, BLOCK_ROWS, dtype=torch.float16, device=device) for _ in range(2 - symmetric)]
        weight = torch.empty(*grid, num_bytes, dtype=torch.uint8, device=device)
        return cls(weight, scales[0], None if symmetric else scales[1], num_rows, num_columns)

    @classmethod
    def quantize(cls, weight: Tensor, bits: int, group_size: int = 32, symmetric: bool = True) -> "PackedMatrix":
        """The matrix nearest to weight [..., N, K] of any float dtype; see `fill` for what is raised."""
        matrix = cls.empty(tuple(weight.shape), bits, group_size, symmetric, weight.device)
        matrix.fill(weight)
        return matrix

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., N, K], before padding."""
        return (*self.weight.shape[:-3], self.num_rows, self.num_columns)

    @property
    def bits(self) -> int:
        group_size = self.weight.shape[-1] // BLOCK_ROWS  # at 8 bits; twice that at 4
        is_8 = group_size % GROUP_SIZE_STEP == 0 and -(-self.num_columns // group_size) == self.weight.shape[-2]
        return 8 if is_8 else 4

    @property
    def group_size(self) -> int:
        return self.weight.shape[-1] * 8 // (BLOCK_ROWS * self.bits)

    @property
    def symmetric(self) -> bool:
        return self.minimum is None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes + (0 if self.minimum is None else self.minimum.nbytes)

    def __getitem__(self, index: int) -> "PackedMatrix":
        """One matrix of a stack; it shares the memory."""
        minimum = None if self.minimum is None else self.minimum[index]
        return PackedMatrix(self.weight[index], self.scale[index], minimum, self.num_rows, self.num_columns)

    def __len__(self) -> int:
        """The number of matrices in a stack."""
        return self.weight.shape[0]

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Quantise weight [..., N, K] into this memory, a slice of rows at a time.

        Raises CodemillError if a weight is NaN or infinite, or too large for scales in fp16.
        """
        assert tuple(weight.shape) == self.shape
        if weight.ndim > 2:
            for index, part in enumerate(weight):
                self[index].fill(part)
            return
        step = max(1, _FILL_ELEMENTS // (BLOCK_ROWS * self.num_columns))
        slices = [slice(first, first + step) for first in range(0, self.weight.shape[0], step)]
        for_each(partial(self._fill_blocks, weight), slices)

    def fill_quantised(self, quantised: Tensor, scale: Tensor, minimum: Tensor | None) -> None:
        """Take over the q of one matrix, uint8 [N, G * g], and its scale (and minimum) fp16 [N, G]."""
        padding = (0, 0, 0, -self.num_rows % BLOCK_ROWS)
        rows = F.pad(quantised, padding).unflatten(0, (-1, BLOCK_ROWS)).unflatten(2, (-1, self.group_size))
        self.weight.copy_(_pack(rows.permute(3, 0, 2, 1), self.bits))
        self.scale.copy_(F.pad(scale, padding).unflatten(0, (-1, BLOCK_ROWS)).transpose(1, 2))
        if self.minimum is not None and minimum is not None:
            self.minimum.copy_(F.pad(minimum, padding).unflatten(0, (-1, BLOCK_ROWS)).transpose(1, 2))

    @torch.no_grad()  # which a thread does not inherit
    def _fill_blocks(self, weight: Tensor, blocks: slice) -> None:
        rows = weight[blocks.start * BLOCK_ROWS : blocks.stop * BLOCK_ROWS]
        groups = self._groups(rows)
        scale, minimum = choose_scales(groups, self.bits, self.symmetric)
        _check_finite(rows, scale, minimum)
        self.scale[blocks] = scale
        if self.minimum is not None and minimum is not None:
            self.minimum[blocks] = minimum
        self.weight[blocks] = _pack(quantize_groups(groups, scale, minimum, self.bits), self.bits)

    def _groups(self, rows: Tensor) -> Tensor:
        """Rows [n, K] -> fp32 [g, B, G, 16], padded with zeros."""
        padding = (0, -self.num_columns % self.group_size, 0, -rows.shape[0] % BLOCK_ROWS)
        padded = F.pad(rows, padding) if any(padding) else rows
        blocks = padded.unflatten(0, (-1, BLOCK_ROWS)).unflatten(2, (-1, self.group_size))
        return blocks.permute(3, 0, 2, 1).to(torch.float32, memory_format=torch.contiguous_format)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [..., N, K]; computed in fp32, rounded once."""
        if self.weight.ndim > 3:
            return torch.stack([self[index].dequantize(dtype) for index in range(len(self))])
        return torch.cat([rows.to(dtype) for rows in self.row_slices()])

    def row_slices(self) -> Iterator[Tensor]:
        """The rows of one matrix, fp32 [n, K], some at a time."""
        step = max(1, _SLICE_ELEMENTS // (BLOCK_ROWS * self.num_columns))
        for first in range(0, self.weight.shape[0], step):
            blocks = slice(first, first + step)
            minimum = None if self.minimum is None else self.minimum[blocks]
            values = self._scaled(self._unpack_blocks(blocks), self.scale[blocks], minimum)  # [b, G, 16, g]
            yield _as_rows(values, self.num_rows - first * BLOCK_ROWS).flatten(1)[:, : self.num_columns]

    def quantised_rows(self) -> Tensor:
        """q of one matrix, int32 [N, G, g], those of padding columns included."""
        return _as_rows(self._unpack_blocks(slice(None)), self.num_rows).to(torch.int32)

    def scale_rows(self, scale: Tensor) -> Tensor:
        """`scale` or `minimum` of one matrix by rows: [B, G, 16] -> [N, G]."""
        return _as_rows(scale, self.num_rows)

    def _unpack_blocks(self, blocks: slice) -> Tensor:
        """uint8 [b, G, 16, g]."""
        return _unpack(self.weight[blocks].unflatten(-1, (-1, BLOCK_ROWS, COLUMNS)), self.bits)

    def _scaled(self, quantised: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
        """uint8 [..., g] -> fp32; scale and minimum [...]."""
        if minimum is None:
            return (quantised.float() - 2 ** (self.bits - 1)) * scale.float()[..., None]
        return quantised.float() * scale.float()[..., None] + minimum.float()[..., None]

    def rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows ids [...] of one matrix, as an embedding looks them up -> [..., K]."""
        block, row = ids.flatten() // BLOCK_ROWS, ids.flatten() % BLOCK_ROWS
        packed = self.weight.unflatten(-1, (-1, BLOCK_ROWS, COLUMNS))[block, :, :, row]  # [n, G, g / 4 or g / 8, 4]
        scale = self.scale[block, :, row]  # [n, G]
        minimum = None if self.minimum is None else self.minimum[block, :, row]
        values = self._scaled(_unpack(packed.unsqueeze(-2), self.bits).squeeze(-2), scale, minimum)
        return values.flatten(1)[:, : self.num_columns].to(dtype).view(*ids.shape, -1)


def check_format(bits: int, group_size: int) -> None:
    """Raises UsageError for what no matrix can have."""
    if bits not in (4, 8):
        raise UsageError(f"{bits} bits are not supported: choose 4 or 8")
    if not is_group_size(group_size):
        raise UsageError(f"group size {group_size}: give a multiple of {GROUP_SIZE_STEP}, at most {MAX_GROUP_SIZE}")


def is_group_size(size: int) -> bool:
    """Whether groups may have so many columns."""
    return GROUP_SIZE_STEP <= size <= MAX_GROUP_SIZE and size % GROUP_SIZE_STEP == 0


def _check_finite(rows: Tensor, scale: Tensor, minimum: Tensor | None) -> None:
    if scale.isfinite().all() and (minimum is None or minimum.isfinite().all()):
        return
    if not rows.isfinite().all():
        raise CodemillError("a weight is NaN or infinite: the checkpoint is damaged")
    raise CodemillError(f"a weight of {rows.abs().max().item():.3g} is too large to quantise: scales are fp16")


def _pack(quantised: Tensor, bits: int) -> Tensor:
    """uint8 [g, B, G, 16] -> [B, G, 16 * g * bits / 8]."""
    if bits == 4:
        low, high = quantised.unflatten(0, (-1, 2, COLUMNS)).unbind(1)  # [g / 8, 4, B, G, 16] each
        quantised = (low | high << 4).flatten(0, 1)
    return quantised.unflatten(0, (-1, COLUMNS)).permute(2, 3, 0, 4, 1).flatten(2)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., p, r, 4] -> the columns of each row, uint8 [..., r, g]."""
    if bits == 4:
        packed = torch.stack((packed & 15, packed >> 4), dim=-3).flatten(-4, -3)
    return packed.transpose(-3, -2).flatten(-2)


def _as_rows(blocks: Tensor, num_rows: int) -> Tensor:
    """[b, G, 16, ...] -> the first `num_rows` rows [n, G, ...]."""
    return blocks.transpose(1, 2).flatten(0, 1)[: max(0, num_rows)]


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
