"""Random numbers as a function of a key and a token id. Shapes: B rows, K tokens."""

import torch
from torch import Tensor

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)  # multipliers, as signed 32-bit integers


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, fp32 [B, K], for keys from `as_keys` [B, 2] and token ids, int32 [B, K] or [1, K].

    The token of the largest log-probability plus noise is a draw from the distribution (Gumbel 1954; Maddison et al.
    2014, arXiv:1411.0030). The noise is a hash (`lowbias32` by C. Wellons, 2018, twice), so it is the same in every
    batch, in any order of the tokens and on every device; and if logits differ by rounding, the token changes only
    where the two best are that near. Inverting the cumulative distribution would shift every later token's share too.
    """
    low, high = keys[:, :1], keys[:, 1:]
    bits = _mix_(_mix_(token_ids + low).bitwise_xor_(high))
    # Uniform in (0, 1), both ends excluded, and finest near 0, which the largest noise comes from.
    uniforms = bits.float().add_(0.5).abs_().mul_(2.0**-31).clamp_max_(1 - 2.0**-24)
    return uniforms.neg_().log1p_().neg_().log_().neg_()


def as_keys(numbers: list[int], device: torch.device) -> Tensor:
    """Numbers of 64 bits as int32 [B, 2]."""
    halves = [[number & 0xFFFFFFFF, number >> 32] for number in numbers]
    return torch.tensor(halves, device=device).sub_(1 << 31).int()


def _mix_(x: Tensor) -> Tensor:
    """Mix the bits of int32 `x`, in place: temporaries of a whole vocabulary cost more than the arithmetic."""
    x.bitwise_xor_(_shift_right(x, 16)).mul_(_FIRST)
    x.bitwise_xor_(_shift_right(x, 15)).mul_(_SECOND)
    return x.bitwise_xor_(_shift_right(x, 16))


def _shift_right(x: Tensor, count: int) -> Tensor:
    """As for unsigned integers, which torch lacks."""
    return (x >> count).bitwise_and_((1 << (32 - count)) - 1)
