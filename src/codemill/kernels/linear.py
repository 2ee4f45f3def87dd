"""Matrix products with a weight [out, in]."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemill.kernels.low_rank import AdaptedRows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, row_block: int = 0) -> Tensor:
    """x [..., in] @ weight^T + bias -> [..., out].

    How a matrix product rounds a row may depend on the number of rows. With `row_block` every product has that many,
    the last filled up with zeros, so that a row gets the same result in any company.

    One row on the CPU goes through the matrix-vector product where that reads the weights faster than PyTorch's matrix
    product does: in fp32, and in bf16 with AMX (21 to 25 GB/s against 14 to 16). Without AMX, on Zen 5, bf16 is read
    fastest for two rows (27 to 31 GB/s against 16 to 23), so the row is doubled. In float16 the matrix product is best.
    """
    if row_block:
        out = torch.cat([F.linear(rows, weight, bias) for rows in _row_blocks(x, row_block)])
        return out[: x.numel() // x.shape[-1]].view(*x.shape[:-1], len(weight))
    is_row = x.numel() == x.shape[-1] and x.dtype == weight.dtype  # or autocast has to make them alike
    if is_row and x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float32):
        if x.dtype == torch.bfloat16 and not _has_amx():
            return F.linear(x.reshape(1, -1).expand(2, -1), weight, bias)[0].view(*x.shape[:-1], -1)
        out = torch.mv(weight, x.reshape(-1))
        return (out if bias is None else out + bias).view(*x.shape[:-1], -1)
    # As rows: a batch of strided slices would otherwise be expanded into copies of the weight.
    out = F.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], len(weight))  # -1 would not be known of no rows


@cache
def _has_amx() -> bool:
    """Whether the processor has matrix units for bf16."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_bf16" in flags.read_text()


def _row_blocks(x: Tensor, size: int) -> Sequence[Tensor]:
    """x [..., in] as blocks [size, in] of one contiguous tensor, zeros at the end."""
    rows = x.reshape(-1, x.shape[-1])
    return F.pad(rows, (0, 0, 0, -rows.shape[0] % size)).contiguous().split(size)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`. `name` is the one under which adapters know the layer; they leave one without alone."""

    name = ""
    row_block = 0

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows] = ()) -> Tensor:
        """x [..., in] -> [..., out]; rows that have an adapter get its update."""
        out = linear(x, self.weight, self.bias, self.row_block)
        for adapter in adapters:
            adapter.add_linear(self.name, x, out, self.bias)
        return out
