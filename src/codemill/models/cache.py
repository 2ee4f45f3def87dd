"""What the network remembers between calls: keys and values, or the recurrent and conv state, for each layer.

Rows are filled from slot 0 and slot equals position, so a mask of `slot <= position` hides both the future and
whatever stale values lie beyond a row's length. That is why padding on the right needs no mask of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.config import ModelConfig


@dataclass
class KVCache:
    """Keys and values of one full-attention layer, [B, S, H_kv, K] with S slots."""

    key: Tensor
    value: Tensor

    def write(self, key: Tensor, value: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Store the first `lengths[b]` of the new keys and values [B, T, H_kv, K] from slot `starts[b]` on."""
        if len({*starts}) == 1 and len({*lengths}) == 1:
            slots = slice(starts[0], starts[0] + lengths[0])
            self.key[:, slots] = key[:, : lengths[0]]
            self.value[:, slots] = value[:, : lengths[0]]
            return
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            self.key[row, start : start + length] = key[row, :length]
            self.value[row, start : start + length] = value[row, :length]


@dataclass
class LinearState:
    """State of one Gated DeltaNet layer: recurrent [B, H_v, K, V] in fp32, and the conv window [B, W - 1, C]."""

    recurrent: Tensor
    conv: Tensor


LayerState = KVCache | LinearState


@dataclass
class Cache:
    """The states of all layers for a batch, and how many tokens each row holds."""

    layers: list[LayerState]
    lengths: list[int]
    capacity: int

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Cache":
        """Empty states for `batch_size` rows of at most `capacity` tokens."""
        layers = [_allocate_layer(config, kind, batch_size, capacity, dtype, device) for kind in config.layer_types]
        return cls(layers, [0] * batch_size, capacity)


def _allocate_layer(
    config: ModelConfig, kind: str, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device | str
) -> LayerState:
    if kind == "full_attention":
        shape = (batch_size, capacity, config.num_key_value_heads, config.head_dim)
        # Zeros, not empty: a masked slot still takes part as 0 * value, and stray NaN would survive that.
        return KVCache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
    linear = config.linear_attention
    assert linear is not None
    # The recurrent state is fp32 whatever the model's dtype: bf16 state visibly corrupts long generations.
    recurrent = (batch_size, linear.num_value_heads, linear.key_head_dim, linear.value_head_dim)
    conv = (batch_size, linear.conv_kernel_dim - 1, linear.conv_channels)
    return LinearState(
        torch.zeros(recurrent, dtype=torch.float32, device=device), torch.zeros(conv, dtype=dtype, device=device)
    )
