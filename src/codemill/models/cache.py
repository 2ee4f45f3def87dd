"""What the network remembers between calls: keys and values in blocks, recurrent and conv states in slots.

Who owns which block and slot is the caller's business: `Segment` says it for each pass. `Cache.allocate` is the simple
case, rows of a fixed capacity.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.kernels.kv_cache import KVCache
from codemill.kernels.segments import Segment, Segments

_ALIGNMENT = 64


@dataclass
class LinearState:
    """States of one Gated DeltaNet layer: recurrent [n, H_v, K, V] in fp32, and conv windows [n, W - 1, C]."""

    recurrent: Tensor
    conv: Tensor

    def copy_slot(self, source: int, target: int) -> None:
        """Make slot `target` hold what slot `source` holds."""
        self.recurrent[target].copy_(self.recurrent[source])
        self.conv[target].copy_(self.conv[source])

    def reset_slot(self, slot: int) -> None:
        """The state before the first token."""
        self.recurrent[slot].zero_()
        self.conv[slot].zero_()


LayerState = KVCache | LinearState


@dataclass
class Cache:
    """The states of all layers. `lengths` says how many tokens each row holds where blocks are rows."""

    make_layers: Callable[[], list[LayerState]]
    block_size: int
    lengths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layers = self.make_layers()

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kv_dtype: torch.dtype | None = None,
    ) -> "Cache":
        """Rows of at most `capacity` tokens: row b owns block b and state slot b."""
        cache = cls.allocate_blocks(config, batch_size, capacity, batch_size, dtype, device, kv_dtype)
        cache.lengths = [0] * batch_size
        return cache

    @classmethod
    def allocate_blocks(
        cls,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        num_states: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kv_dtype: torch.dtype | None = None,
    ) -> "Cache":
        """Empty blocks and state slots. On the CPU a page takes memory only once something is written to it.

        dtype: the model's. kv_dtype: of keys and values, if it is another; int8 comes with scales.
        """
        device = torch.device(device)

        def make_layers() -> list[LayerState]:
            return [
                _allocate_kv(config, num_blocks * block_size, kv_dtype or dtype, device)
                if kind == "full_attention"
                else _allocate_states(config, num_states, dtype, device)
                for kind in config.layer_types
            ]

        return cls(make_layers, block_size)

    def free(self) -> None:
        """Give the memory back, with all that it holds, until `refill`."""
        self.layers = []

    def refill(self) -> None:
        """Have the memory again, empty."""
        self.layers = self.make_layers()

    @property
    def device(self) -> torch.device:
        layer = self.layers[0]
        return layer.recurrent.device if isinstance(layer, LinearState) else layer.key.device

    def next_rows(self, num_new: int) -> Segments:
        """Segments of `num_new` tokens that continue every row. Raises ValueError if they do not fit."""
        if max(self.lengths) + num_new > self.block_size:
            raise ValueError(f"{max(self.lengths) + num_new} tokens do not fit a cache of {self.block_size}")
        segments = (Segment(num_new, past, (row,), row) for row, past in enumerate(self.lengths))
        return Segments(tuple(segments), self.block_size, self.device)

    @property
    def linear_states(self) -> list[LinearState]:
        """The states of the linear-attention layers, in the order of the layers."""
        return [layer for layer in self.layers if isinstance(layer, LinearState)]

    @property
    def kv_caches(self) -> list[KVCache]:
        """The caches of the full-attention layers, in the order of the layers."""
        return [layer for layer in self.layers if isinstance(layer, KVCache)]


def _allocate_kv(config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    shape = (num_slots, config.num_key_value_heads, config.head_dim)
    # Zeros, not empty: a masked slot still takes part as 0 * value, and stray NaN would survive that.
    tensors = [_zeros(shape, dtype, device) for _ in range(2)]
    if dtype == torch.int8:
        tensors += [_zeros(shape[:2], torch.float32, device) for _ in range(2)]
    return KVCache(*tensors)


def _allocate_states(config: ModelConfig, num_states: int, dtype: torch.dtype, device: torch.device) -> LinearState:
    linear = config.linear_attention
    assert linear is not None
    # The recurrent state is fp32 whatever the model's dtype: bf16 state visibly corrupts long generations.
    recurrent = (num_states, linear.num_value_heads, linear.key_head_dim, linear.value_head_dim)
    conv = (num_states, linear.conv_kernel_dim - 1, linear.conv_channels)
    return LinearState(_zeros(recurrent, torch.float32, device), _zeros(conv, dtype, device))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU from calloc, which unlike `torch.zeros` leaves large memory untouched until it is used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    probe = torch.empty(0, dtype=dtype)
    size = int(np.prod(shape)) * probe.element_size()
    raw = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[offset : offset + size]).view(probe.dtype).view(shape)
