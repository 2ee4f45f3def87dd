"""Random numbers as a function of a key and a token id. Shapes: B rows, K tokens."""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # the increments and multipliers of SplitMix64, as signed 64-bit integers
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, fp64 [B, K], for int64 keys [B, 1] and token ids, [B, K] or [1, K].

    The token of the largest log-probability plus noise is a draw from the distribution (Gumbel 1954; Maddison et al.
    2014, arXiv:1411.0030). The noise is a hash (SplitMix64; Steele et al. 2014), so it is the same in every batch, in
    any order of the tokens and on every device; and if logits differ by rounding, the token changes only where the two
    best are that near. Inverting the cumulative distribution would shift every later token's share as well.
    """
    bits = _mix(_mix(keys) + token_ids * _GOLDEN)
    uniforms = (_shift_right(bits, 11).double() + 0.5) * 2.0**-53
    return -(-uniforms.log()).log()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, count: int) -> Tensor:
    """As for unsigned integers, which torch lacks."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def as_column(keys: list[int], device: torch.device) -> Tensor:
    """Keys of 64 bits as int64 [B, 1]."""
    return torch.tensor([key - (1 << 64) if key >> 63 else key for key in keys], device=device)[:, None]
