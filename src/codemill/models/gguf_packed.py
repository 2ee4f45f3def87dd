"""Quantised GGUF tensors in the layout of packed matrices (kernels/packed_matrix.py), without a detour over floats.

Shapes: N rows, K columns, in groups of 32 columns; blocks of 16 rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.gguf.types import Q4_0, Q4_K, Q8_0, TensorType
from codemill.models.gguf_blocks import nibbles, q4_k_scales, q4_k_values

GROUP_SIZE = 32
ROWS = 16
PACKABLE = (Q8_0, Q4_0, Q4_K)


@dataclass(frozen=True)
class PackedParts:
    """What a packed matrix is made of: `weight` uint8 [..., N/16, K/32, 512 or 256], `scale` and `minimum` fp16
    [..., N/16, K/32, 16]; no minimum where symmetric.
    """

    weight: Tensor
    scale: Tensor
    minimum: Tensor | None
    bits: int


def repack(raw: Tensor, kind: TensorType, shape: tuple[int, ...]) -> PackedParts:
    """The bytes uint8 [n] of a tensor [..., N, K] of type Q8_0, Q4_0 or Q4_K, rearranged.

    Q8_0 and Q4_0 keep every number. Q4_K has products of two numbers as scales and minima, which are rounded to fp16:
    each weight moves by up to 2^-11 of its group's largest scaled value and minimum.
    """
    *leading, num_rows, num_columns = shape
    blocks = raw.view(-1, kind.block_bytes)
    values, scale, minimum = _unpack(blocks, kind)
    values = _pad_rows(values.view(*leading, num_rows, num_columns // GROUP_SIZE, GROUP_SIZE))
    scales = [
        None if part is None else _by_block(_pad_rows(part.view(*leading, num_rows, num_columns // GROUP_SIZE, 1)))
        for part in (scale, minimum)
    ]
    assert scales[0] is not None
    bits = 8 if kind is Q8_0 else 4
    pack = _pack_bytes if bits == 8 else _pack_nibbles
    return PackedParts(pack(values), scales[0].flatten(-2), None if scales[1] is None else scales[1].flatten(-2), bits)


def _unpack(blocks: Tensor, kind: TensorType) -> tuple[Tensor, Tensor, Tensor | None]:
    """Unsigned numbers, scale and minimum: w = scale * (q - 2^(bits-1)), or scale * q + minimum."""
    if kind is Q4_K:
        scale, subtracted = q4_k_scales(blocks)
        return q4_k_values(blocks), scale.half(), -subtracted.half()
    scale = blocks[:, :2].contiguous().view(torch.float16)
    if kind is Q8_0:
        return blocks[:, 2:] ^ 128, scale, None
    return nibbles(blocks[:, 2:]), scale, None


def _pad_rows(x: Tensor) -> Tensor:
    """[..., N, groups, g] -> [..., N rounded up to 16, groups, g], zeros below."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[-3] % ROWS))


def _by_block(x: Tensor) -> Tensor:
    """[..., N, groups, g] -> [..., N/16, groups, 16, g]."""
    return x.unflatten(-3, (-1, ROWS)).transpose(-3, -2).contiguous()


def _pack_bytes(values: Tensor) -> Tensor:
    """[..., N, groups, 32] -> [..., N/16, groups, 512]: byte [quad][row][column of the quad]."""
    blocks = _by_block(values).unflatten(-1, (-1, 4))  # [..., row, quad, 4]
    return blocks.transpose(-3, -2).flatten(-3)


def _pack_nibbles(values: Tensor) -> Tensor:
    """[..., N, groups, 32] -> [..., N/16, groups, 256]: byte [p][row][c] holds columns 8p + c and 8p + 4 + c."""
    blocks = _by_block(values).unflatten(-1, (-1, 2, 4))  # [..., row, p, low or high, 4]
    low, high = blocks.unbind(-2)
    return (low | (high << 4)).transpose(-3, -2).flatten(-3)
