"""The number formats of GGUF tensors: blocks of bytes -> fp32, exactly as llama.cpp reads them, and back.

Of the quantised types, `gguf_numbers.py` reads all and this file writes two. Shapes: B blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from codemill.gguf.types import BF16, F16, F32, Q4_0, Q8_0, TensorType
from codemill.models.gguf_numbers import read_numbers

FLOAT_DTYPES = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_CHUNK_ELEMENTS = 1 << 22  # whose temporaries take some tens of MB


def decode(raw: Tensor, kind: TensorType) -> Tensor:
    """Bytes uint8 [n], whole blocks of a type -> their elements, fp32 [n_elements]."""
    if kind in FLOAT_DTYPES:
        return raw.view(FLOAT_DTYPES[kind]).float()
    return read_numbers(raw.view(-1, kind.block_bytes), kind).weights().view(-1)


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


def _half_bytes(values: Tensor) -> Tensor:
    return values.to(torch.float16).view(torch.uint8)


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


_ENCODERS: dict[TensorType, Callable[[Tensor], Tensor]] = {Q8_0: _encode_q8_0, Q4_0: _encode_q4_0}
