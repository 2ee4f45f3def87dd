"""Rotary position embedding, half-split layout (Su et al. 2021, arXiv:2104.09864), and YaRN."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from codemill.config import ModelConfig, RopeConfig, YarnConfig


def rotary_tables(config: ModelConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [B, T, 1, R] for positions [B, T]; R is the rotated part of head_dim.

    Computed in fp32. The first half of the sines is negated, as `apply_rotary` wants it.
    """
    frequencies, scale = inverse_frequencies(config.rope, config.head_dim)
    angles = position_ids[:, :, None, None].float() * frequencies.to(position_ids.device)
    cos, sin = (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R dims of x [B, T, H, K] by tables [B, T, 1, R]."""
    rotated = cos.shape[-1]
    head, rest = x[..., :rotated], x[..., rotated:]
    head = torch.addcmul(head * cos, head.roll(rotated // 2, dims=-1), sin)  # a roll by half swaps the halves
    return head if rest.shape[-1] == 0 else torch.cat((head, rest), dim=-1)


@lru_cache(maxsize=32)
def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Frequencies fp32 [R / 2] and the factor that scales cosines and sines (1 without YaRN).

    An odd share of head_dim gives one frequency more than its half, so R is the next even number, as in the reference.
    """
    rotated = int(head_dim * rope.partial_rotary_factor)
    with torch.device("cpu"):
        frequencies = 1.0 / rope.theta ** (torch.arange(0, rotated, 2, dtype=torch.float32) / rotated)
        if rope.yarn is None:
            return frequencies, 1.0
        keep = _extrapolated_share(rope, rope.yarn, rotated)
    frequencies = frequencies * keep + frequencies / rope.yarn.factor * (1 - keep)
    scale = rope.yarn.attention_factor
    return frequencies, max(1.0, 0.1 * math.log(rope.yarn.factor) + 1.0) if scale is None else scale


def _extrapolated_share(rope: RopeConfig, yarn: YarnConfig, rotated: int) -> Tensor:
    """1 for dims that turn often enough in the original context to be left alone, 0 for those interpolated."""

    def dim_that_turns(rotations: float) -> float:
        span = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rotated * math.log(span) / (2 * math.log(rope.theta))

    low, high = dim_that_turns(yarn.beta_fast), dim_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    ramp = (torch.arange((rotated + 1) // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)
    return 1 - ramp.clamp(0, 1)
