"""Keys and values of one full-attention layer, in the model's dtype, in another, or in int8 with scales.

Shapes: S slots, N new tokens, H_kv key/value heads, K head_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library

_LEAST_MAXIMUM = 1e-30  # a head vector of less is stored as zeros


@dataclass
class KVCache:
    """Keys and values [S, H_kv, K] with S = blocks * block_size slots.

    In int8 a number is its integer times the fp32 scale [S, H_kv] of its slot and head; other dtypes have no scales.
    """

    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    def write(self, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
        """Store new keys and values [N, H_kv, K] in the slots [N], rounded to what the cache holds."""
        _write(self.key, self.key_scale, key, slot_mapping)
        _write(self.value, self.value_scale, value, slot_mapping)

    def read(self, slots: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of some slots [n], [n, H_kv, K] each; a view where nothing has to be copied or converted."""
        pairs = ((self.key, self.key_scale), (self.value, self.value_scale))
        key, value = (_dequantize(x[slots], None if scale is None else scale[slots], dtype) for x, scale in pairs)
        return key, value

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a block consists of, slots first."""
        named = {"key": self.key, "value": self.value}
        if self.key_scale is not None and self.value_scale is not None:
            named |= {"key_scale": self.key_scale, "value_scale": self.value_scale}
        return named


def kv_vector_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that a cache of `dtype` takes for the key, or the value, of one token and head."""
    scale = torch.float32.itemsize if dtype == torch.int8 else 0
    return head_dim * dtype.itemsize + scale


def quantize_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> int8 [..., K] and scales [...] in fp32, the largest absolute value / 127.

    A vector with NaN or infinity gets the scale NaN. `cpu/kv_write.h` does the same, to the last bit.
    """
    x = x.float()
    largest = x.abs().amax(dim=-1) + (x - x).sum(dim=-1)  # NaN where x is not finite
    is_zero = largest < _LEAST_MAXIMUM
    scale = torch.where(is_zero, 0.0, largest / 127)
    is_usable = (scale > 0)[..., None]
    integers = torch.where(is_usable, x / torch.where(is_zero, 1.0, scale)[..., None], 0.0).round()
    return integers.to(torch.int8), scale


def _write(cache: Tensor, scales: Tensor | None, new: Tensor, slots: Tensor) -> None:
    if scales is None:
        cache.index_copy_(0, slots, new.to(cache.dtype))
        return
    library = load_cpu_library() if cache.device.type == "cpu" else None
    if library is None:
        integers, scale = quantize_vectors(new)
        cache.index_copy_(0, slots, integers)
        scales.index_copy_(0, slots, scale)
        return
    vectors, slots = new.detach().float().contiguous(), slots.contiguous()
    pointers = (x.data_ptr() for x in (vectors, slots, cache, scales))
    library.write_int8_kv(*pointers, *vectors.shape)


def _dequantize(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if scale is None else (x.float() * scale[..., None]).to(dtype)
