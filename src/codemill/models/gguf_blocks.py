"""The number formats of GGUF tensors: blocks of bytes -> fp32, exactly as llama.cpp reads them, and back.

Layouts: `ggml-common.h` and `ggml-quants.c`; the `gguf` package's `quants.py` is the reference that tests compare with.
Shapes: B blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from codemill.gguf.types import BF16, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0, TensorType

FLOAT_DTYPES = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_CHUNK_ELEMENTS = 1 << 22  # whose temporaries take some tens of MB


def decode(raw: Tensor, kind: TensorType) -> Tensor:
    """Bytes uint8 [n], whole blocks of a type -> their elements, fp32 [n_elements]."""
    if kind in FLOAT_DTYPES:
        return raw.view(FLOAT_DTYPES[kind]).float()
    return _DECODERS[kind](raw.view(-1, kind.block_bytes)).view(-1)


def decode_into(raw: Tensor, kind: TensorType, out: Tensor) -> None:
    """Fill `out` [..., K], of any float dtype and any strides, from its bytes; a bounded part exists twice."""
    if out.dim() > 2:
        for part, target in zip(raw.chunk(len(out)), out, strict=True):
            decode_into(part, kind, target)
        return
    rows = out if out.dim() == 2 else out[None]
    stride = kind.num_bytes(rows.shape[1])
    step = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    for first in range(0, len(rows), step):
        target = rows[first : first + step]
        target.copy_(decode(raw[first * stride : (first + len(target)) * stride], kind).view(target.shape))


def encode(values: Tensor, kind: TensorType) -> Tensor:
    """Elements fp32 [..., K], K whole blocks -> bytes uint8 [n]: F32, F16, BF16, Q8_0 or Q4_0."""
    if kind in FLOAT_DTYPES:
        return values.to(FLOAT_DTYPES[kind]).contiguous().view(-1).view(torch.uint8)
    return _ENCODERS[kind](values.reshape(-1, kind.block_size).float()).view(-1)


def _half(raw: Tensor) -> Tensor:
    """Two bytes [B, 2] -> a number fp32 [B, 1]."""
    return raw.contiguous().view(torch.float16).float()


def _half_bytes(values: Tensor) -> Tensor:
    return values.to(torch.float16).view(torch.uint8)


def nibbles(raw: Tensor) -> Tensor:
    """[..., n] bytes -> [..., 2, n]: low halves, then high halves."""
    return torch.stack((raw & 15, raw >> 4), dim=-2)


def _decode_q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks[:, :2])


def _decode_q4_0(blocks: Tensor) -> Tensor:
    values = nibbles(blocks[:, 2:]).flatten(1).to(torch.int8) - 8
    return values.float() * _half(blocks[:, :2])


def q4_k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the amount to subtract of each of the 8 groups of 32: fp32 [B, 8] each."""
    scales = blocks[:, 4:16].view(-1, 3, 4)
    low_scale, low_minimum, high = scales.unbind(1)  # 6 bits each; those of groups 4 to 7 are in two pieces
    scale = torch.cat((low_scale & 63, (high & 15) | ((low_scale >> 2) & 48)), dim=1)
    minimum = torch.cat((low_minimum & 63, (high >> 4) | ((low_minimum >> 2) & 48)), dim=1)
    return _half(blocks[:, :2]) * scale.float(), _half(blocks[:, 2:4]) * minimum.float()


def q4_k_values(blocks: Tensor) -> Tensor:
    """The 4-bit numbers, uint8 [B, 8, 32]."""
    return nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32)


def _decode_q4_k(blocks: Tensor) -> Tensor:
    scale, minimum = q4_k_scales(blocks)
    return scale[:, :, None] * q4_k_values(blocks).float() - minimum[:, :, None]


def _decode_q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, factor = blocks.split((128, 64, 16, 2), dim=1)
    low = nibbles(low.view(-1, 2, 64)).view(-1, 8, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = ((high.view(-1, 2, 1, 32) >> shifts) & 3).view(-1, 8, 32)
    values = (low | (high << 4)).to(torch.int8) - 32
    scale = _half(factor) * scales.view(torch.int8).float()  # [B, 16]
    return scale[:, :, None] * values.view(-1, 16, 16).float()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _encode_q8_0(blocks: Tensor) -> Tensor:
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    size = scaled.abs()
    whole = size.floor()
    rounded = scaled.sign() * (whole + (2 * (size - whole)).floor())  # halves away from zero
    return torch.cat((_half_bytes(scale), rounded.to(torch.int8).view(torch.uint8)), dim=1)


def _encode_q4_0(blocks: Tensor) -> Tensor:
    extreme = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = extreme / -8
    values = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    low, high = values.chunk(2, dim=1)
    return torch.cat((_half_bytes(scale), low | (high << 4)), dim=1)


_DECODERS: dict[TensorType, Callable[[Tensor], Tensor]] = {
    Q8_0: _decode_q8_0,
    Q4_0: _decode_q4_0,
    Q4_K: _decode_q4_k,
    Q6_K: _decode_q6_k,
}
_ENCODERS: dict[TensorType, Callable[[Tensor], Tensor]] = {Q8_0: _encode_q8_0, Q4_0: _encode_q4_0}
