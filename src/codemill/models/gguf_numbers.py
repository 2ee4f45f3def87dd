"""The integers and scales in the quantised blocks of GGUF tensors, as llama.cpp lays them out.

Layouts: `ggml-common.h` and `ggml-quants.c`; the `gguf` package's `quants.py` is the reference that tests compare with.
Shapes: B blocks, S groups in a block, s columns in a group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

# The weights, less their scale, that the 4-bit numbers of IQ4_NL and IQ4_XS stand for.
_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockNumbers:
    """Some blocks: w = scale * number + minimum, in fp32."""

    number: Tensor  # int8 or uint8 [B, S, s]
    scale: Tensor  # fp32 [B, S]
    minimum: Tensor | None = None  # the same; None for zeros

    def weights(self) -> Tensor:
        """fp32 [B, S * s]."""
        scaled = self.number.float().mul_(self.scale[:, :, None])
        return (scaled if self.minimum is None else scaled.add_(self.minimum[:, :, None])).flatten(1)


def read_numbers(blocks: Tensor, kind: TensorType) -> BlockNumbers:
    """Blocks uint8 [B, bytes] of a quantised type, taken apart."""
    return _READERS[kind](blocks)


def _halves(raw: Tensor) -> Tensor:
    """Numbers of two bytes each [B, 2n] -> fp32 [B, n]."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """[..., n] bytes -> [..., 2, n]: low halves, then high halves."""
    out = raw.new_empty(*raw.shape[:-1], 2, raw.shape[-1])
    torch.bitwise_and(raw, 15, out=out[..., 0, :])
    torch.bitwise_right_shift(raw, 4, out=out[..., 1, :])
    return out


def _shifted(raw: Tensor, shifts: Sequence[int], mask: int) -> Tensor:
    """[..., n] bytes -> [..., shifts, n]: the bits of `mask` after each shift."""
    amounts = torch.tensor(shifts, dtype=torch.uint8, device=raw.device)[:, None]
    return (raw[..., None, :] >> amounts).bitwise_and_(mask)


def _fifth_bits(raw: Tensor) -> Tensor:
    """4 bytes of bits [B, 4] -> 16 or 0 for each of 32 numbers, uint8 [B, 32]."""
    bits = raw[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=raw.device)
    return bits.bitwise_and_(1).bitwise_left_shift_(4).flatten(1)


def _read_q8_0(blocks: Tensor) -> BlockNumbers:
    return BlockNumbers(blocks[:, None, 2:].view(torch.int8), _halves(blocks[:, :2]))


def _read_q4_0(blocks: Tensor) -> BlockNumbers:
    number = _nibbles(blocks[:, 2:]).view(torch.int8).sub_(8)
    return BlockNumbers(number.view(-1, 1, 32), _halves(blocks[:, :2]))


def _read_q4_1(blocks: Tensor) -> BlockNumbers:
    scale, minimum = _halves(blocks[:, :4]).chunk(2, dim=1)
    return BlockNumbers(_nibbles(blocks[:, 4:]).view(-1, 1, 32), scale, minimum)


def _read_q5_0(blocks: Tensor) -> BlockNumbers:
    number = _nibbles(blocks[:, 6:]).flatten(1).bitwise_or_(_fifth_bits(blocks[:, 2:6])).view(torch.int8).sub_(16)
    return BlockNumbers(number[:, None], _halves(blocks[:, :2]))


def _read_q5_1(blocks: Tensor) -> BlockNumbers:
    scale, minimum = _halves(blocks[:, :4]).chunk(2, dim=1)
    number = _nibbles(blocks[:, 8:]).flatten(1).bitwise_or_(_fifth_bits(blocks[:, 4:8]))
    return BlockNumbers(number[:, None], scale, minimum)


def _read_iq4_nl(blocks: Tensor) -> BlockNumbers:
    return BlockNumbers(_iq4_numbers(blocks[:, None, 2:]), _halves(blocks[:, :2]))


def _read_iq4_xs(blocks: Tensor) -> BlockNumbers:
    factor, high, low, numbers = blocks.split((2, 2, 4, 128), dim=1)
    low_bits = _nibbles(low[:, :, None]).flatten(1)  # of 8 scales, two a byte
    high_bits = _shifted(high[:, :, None], (0, 2, 4, 6), 3).flatten(1).bitwise_left_shift_(4)
    scale = (low_bits | high_bits).view(torch.int8).sub_(32)
    return BlockNumbers(_iq4_numbers(numbers.unflatten(1, (8, 16))), _halves(factor) * scale.float())


def _iq4_numbers(raw: Tensor) -> Tensor:
    """[B, S, 16] bytes -> int8 [B, S, 32]."""
    values = torch.tensor(_IQ4_VALUES, dtype=torch.int8, device=raw.device)
    return values[_nibbles(raw).flatten(2).int()]


def _read_q2_k(blocks: Tensor) -> BlockNumbers:
    scales, numbers, factors = blocks.split((16, 64, 4), dim=1)
    factor, factor_of_minimum = _halves(factors).chunk(2, dim=1)
    scale, subtracted = factor * (scales & 15).float(), factor_of_minimum * (scales >> 4).float()
    return BlockNumbers(_shifted(numbers.unflatten(1, (2, 32)), (0, 2, 4, 6), 3).view(-1, 16, 16), scale, -subtracted)


def q3_k_parts(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of -4 to 3 int8 [B, 16, 16], their scales of -32 to 31 int8 [B, 16], and the factor fp16 [B, 1]."""
    high, low, scales, factor = blocks.split((32, 64, 12, 2), dim=1)
    low_bits = _shifted(low.unflatten(1, (2, 32)), (0, 2, 4, 6), 3).view(-1, 16, 16)
    high_bits = _shifted(high, range(8), 1).bitwise_left_shift_(2).view(-1, 16, 16)
    low_scale = _nibbles(scales[:, :8]).flatten(1)
    high_scale = _shifted(scales[:, 8:], (0, 2, 4, 6), 3).flatten(1).bitwise_left_shift_(4)
    number = low_bits.bitwise_or_(high_bits).view(torch.int8).sub_(4)
    return number, (low_scale | high_scale).view(torch.int8).sub_(32), factor.contiguous().view(torch.float16)


def _read_q3_k(blocks: Tensor) -> BlockNumbers:
    number, scale, factor = q3_k_parts(blocks)
    return BlockNumbers(number, factor.float() * scale.float())


def _read_q4_k(blocks: Tensor) -> BlockNumbers:
    scale, minimum = _k_scales(blocks)
    return BlockNumbers(_nibbles(blocks[:, 16:].unflatten(1, (4, 32))).view(-1, 8, 32), scale, minimum)


def _read_q5_k(blocks: Tensor) -> BlockNumbers:
    scale, minimum = _k_scales(blocks)
    low = _nibbles(blocks[:, 48:].unflatten(1, (4, 32))).view(-1, 8, 32)
    high = _shifted(blocks[:, 16:48], range(8), 1).bitwise_left_shift_(4)
    return BlockNumbers(low.bitwise_or_(high), scale, minimum)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each of the 8 groups of a block of Q4_K or Q5_K: fp32 [B, 8] each."""
    scales = blocks[:, 4:16].unflatten(1, (3, 4))
    low_scale, low_minimum, high = scales.unbind(1)  # 6 bits each; those of groups 4 to 7 are in two pieces
    scale = torch.cat((low_scale & 63, (high & 15) | ((low_scale >> 2) & 48)), dim=1)
    subtracted = torch.cat((low_minimum & 63, (high >> 4) | ((low_minimum >> 2) & 48)), dim=1)
    factor, factor_of_minimum = _halves(blocks[:, :4]).chunk(2, dim=1)
    return factor * scale.float(), -(factor_of_minimum * subtracted.float())


def _read_q6_k(blocks: Tensor) -> BlockNumbers:
    low, high, scales, factor = blocks.split((128, 64, 16, 2), dim=1)
    low_bits = _nibbles(low.unflatten(1, (2, 64))).view(-1, 2, 4, 32)
    high_bits = _shifted(high.unflatten(1, (2, 32)), (0, 2, 4, 6), 3).bitwise_left_shift_(4)
    number = low_bits.bitwise_or_(high_bits).view(torch.int8).sub_(32)
    return BlockNumbers(number.view(-1, 16, 16), _halves(factor) * scales.view(torch.int8).float())


_READERS: dict[TensorType, Callable[[Tensor], BlockNumbers]] = {
    Q8_0: _read_q8_0,
    Q4_0: _read_q4_0,
    Q4_1: _read_q4_1,
    Q5_0: _read_q5_0,
    Q5_1: _read_q5_1,
    IQ4_NL: _read_iq4_nl,
    IQ4_XS: _read_iq4_xs,
    Q2_K: _read_q2_k,
    Q3_K: _read_q3_k,
    Q4_K: _read_q4_k,
    Q5_K: _read_q5_k,
    Q6_K: _read_q6_k,
}
