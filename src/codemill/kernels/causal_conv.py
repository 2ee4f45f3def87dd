"""Causal depthwise convolution with a carried window. Shapes: B batch, T tokens, C channels, W width."""

import torch
from torch import Tensor


def causal_conv(x: Tensor, weight: Tensor, window: Tensor) -> Tensor:
    """out[t] = sum over j of weight[:, j] * x[t - (W - 1) + j], summed in fp32.

    x [B, T, C], weight [C, W], window [B, W - 1, C] (the inputs before x; zeros at a sequence's start) -> [B, T, C].
    """
    num_tokens = x.shape[1]
    history = torch.cat((window, x), dim=1)  # [B, W - 1 + T, C]
    out = torch.zeros_like(x, dtype=torch.float32)
    for tap, scale in enumerate(weight.float().unbind(dim=1)):
        out = out + history[:, tap : tap + num_tokens].float() * scale
    return out.to(x.dtype)


def next_window(x: Tensor, window: Tensor) -> Tensor:
    """The last W - 1 inputs of each row once x [B, T, C] has been consumed, [B, W - 1, C]."""
    return torch.cat((window, x), dim=1)[:, x.shape[1] :]
