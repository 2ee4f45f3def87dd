"""Quantised tensors rearranged into packed matrices are the same numbers. The layout is written out here, as loops."""

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from codemill.gguf.types import SUPPORTED
from codemill.models.gguf_blocks import q4_k_scales
from codemill.models.gguf_packed import PackedParts, repack
from models.gguf_files import random_blocks

EXACT = [Kind.Q8_0, Kind.Q4_0]


def number(parts: PackedParts, block: int, group: int, row: int, column: int) -> int:
    """The unsigned number of a place, by the definition of the layout."""
    if parts.bits == 8:
        return int(parts.weight[block, group, (column // 4) * 64 + row * 4 + column % 4])
    byte = int(parts.weight[block, group, (column // 8) * 64 + row * 4 + column % 4])
    return byte >> 4 if column % 8 >= 4 else byte & 15


def weights(parts: PackedParts, num_rows: int, num_columns: int) -> Tensor:
    out = torch.empty(num_rows, num_columns)
    for row in range(num_rows):
        for column in range(num_columns):
            place = (row // 16, column // 32, row % 16)
            value = number(parts, place[0], place[1], place[2], column % 32)
            scale = parts.scale[place].float()
            if parts.minimum is None:
                out[row, column] = scale * (value - (1 << (parts.bits - 1)))
            else:
                out[row, column] = scale * value + parts.minimum[place].float()
    return out


@pytest.mark.parametrize("num_rows", [16, 21])
@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_symmetric_formats_keep_every_number(kind: Kind, num_rows: int) -> None:
    raw = random_blocks(kind, num_rows, 96)
    parts = repack(torch.from_numpy(raw).flatten(), SUPPORTED[kind.value], (num_rows, 96))
    size = 512 if kind is Kind.Q8_0 else 256
    assert parts.weight.shape == (-(-num_rows // 16), 3, size)
    assert parts.weight.dtype == torch.uint8
    assert parts.scale.shape == (-(-num_rows // 16), 3, 16)
    assert parts.scale.dtype == torch.float16
    assert parts.minimum is None
    assert torch.equal(weights(parts, num_rows, 96), torch.from_numpy(gguf.dequantize(raw, kind)))


def test_q4_k_differs_by_the_rounding_of_scales_only() -> None:
    raw = random_blocks(Kind.Q4_K, 19, 256)
    blocks = torch.from_numpy(raw)
    parts = repack(blocks.flatten(), SUPPORTED[Kind.Q4_K.value], (19, 256))
    assert parts.minimum is not None
    scale, minimum = q4_k_scales(blocks)
    limit = ((15 * scale.abs() + minimum.abs()) * 2**-11 + 15 * 2.0**-24).repeat_interleave(32, dim=1)
    error = (weights(parts, 19, 256) - torch.from_numpy(gguf.dequantize(raw, Kind.Q4_K))).abs()
    assert (error <= limit).all()
    assert error.max() > 0  # fp16 cannot hold the products


@pytest.mark.parametrize("kind", [*EXACT, Kind.Q4_K], ids=lambda kind: kind.name)
def test_experts_are_packed_one_by_one(kind: Kind) -> None:
    raw = torch.from_numpy(random_blocks(kind, 3 * 18, 256))
    together = repack(raw.flatten(), SUPPORTED[kind.value], (3, 18, 256))
    for expert, part in enumerate(raw.chunk(3)):
        alone = repack(part.flatten(), SUPPORTED[kind.value], (18, 256))
        assert torch.equal(together.weight[expert], alone.weight)
        assert torch.equal(together.scale[expert], alone.scale)
        if alone.minimum is not None and together.minimum is not None:
            assert torch.equal(together.minimum[expert], alone.minimum)
