"""Block-FP8 weights: E4M3 values with one scale for each block, dequantised when they are loaded.

The layout is that of DeepSeek-V3 (arXiv:2412.19437, section 3.3), which the Qwen3 FP8 checkpoints follow. A weight is
dequantised if it is stored as E4M3, whether or not `modules_to_not_convert` lists its module.
Shapes: O rows (out features), I columns (in features).
"""

import torch
from torch import Tensor

FP8_DTYPE = torch.float8_e4m3fn
SCALE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CHUNK_ELEMENTS = 1 << 22  # bounds the fp32 intermediate to 16 MiB


def scale_shape(shape: tuple[int, ...], block_size: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the scales of a weight [..., O, I]: [..., ceil(O / rows), ceil(I / columns)]."""
    rows, columns = block_size
    return (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))


def dequantize(weight: Tensor, scale: Tensor, block_size: tuple[int, int], out: Tensor) -> None:
    """Write weight * scale into `out` [..., O, I] of any dtype; products are fp32, rounded once.

    weight: E4M3 [..., O, I]; scale: `scale_shape`, of a dtype in SCALE_DTYPES. Blocks at the edges may be partial.
    """
    if weight.ndim > 2:
        for parts in zip(weight, scale, out, strict=True):
            dequantize(parts[0], parts[1], block_size, parts[2])
        return
    rows, columns = block_size
    wide = scale.float().repeat_interleave(columns, dim=1)[:, : weight.shape[1]]  # [ceil(O / rows), I]
    step = max(1, _CHUNK_ELEMENTS // (rows * weight.shape[1]))  # block rows at a time
    for first in range(0, wide.shape[0], step):
        part = slice(first * rows, (first + step) * rows)
        values = weight[part].float()
        values *= wide[first : first + step].repeat_interleave(rows, dim=0)[: values.shape[0]]
        out[part].copy_(values)
