"""A whole pass of the decoder in one call of the C++ library, for the CPU.

PyTorch's modules remain the definition, and do what the kernel does not: training, packed documents, adapters, other
devices and dtypes. Between products the kernel computes in fp32, where PyTorch rounds to the model's dtype.

Plain weights go through it only for few rows: PyTorch's products of many rows are faster. Packed ones always do, and a
token gets the same bits however many others there are; see `cpu/product.h`.

Shapes: B batch, T tokens, N of all rows, D model.
"""

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codemill.kernels.cpu_library import CpuLibrary, load_cpu_library
from codemill.kernels.cpu_structs import (
    CACHE_DTYPES,
    DecoderStruct,
    LayerStateStruct,
    LayerStruct,
    MatrixStruct,
    PassStruct,
    address,
)
from codemill.kernels.gated_delta import DeltaSegments
from codemill.kernels.kv_cache import KVCache
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.cache import Cache, LinearState
from codemill.models.context import ForwardContext
from codemill.models.layers import Mlp, RMSNorm
from codemill.models.moe import SparseMoe
from codemill.models.rope import rotary_tables

if TYPE_CHECKING:
    from codemill.models.decoder import CausalLM, DecoderLayer

PLAIN_ROWS = 16  # with plain weights; beyond, PyTorch's products are faster
_HEAD_DIM_UNIT = 8
_LANES = 16  # of the widest variant; the tests try the others

Weight = Tensor | PackedMatrix


@dataclass(frozen=True)
class Buffers:
    """What the drafts of a pass need later: the inputs of a layer's recurrence, fp32 [N, ...]."""

    qkvz: Tensor
    ba: Tensor


class FusedDecoder:
    """The decoder of a model as the library sees it. The weights stay where they are; small ones are copied to fp32."""

    def __init__(self, model: "CausalLM", library: CpuLibrary) -> None:
        """See `build`."""
        self._config = model.config
        self._library = library
        self._kept: list[Tensor] = []  # an address does not keep what it points at
        self._copied: list[Tensor] = []
        self._packed = True
        self._layers = (LayerStruct * model.config.num_hidden_layers)(*map(self._layer, model.model.layers))
        self._decoder = self._describe(model)
        self._versions = self._current_versions()

    @classmethod
    def build(cls, model: "CausalLM") -> "FusedDecoder | None":
        """None where there is no library, or no kernel for these weights."""
        library = load_cpu_library()
        config = model.config
        if library is None or config.attention_bias or config.head_dim % _HEAD_DIM_UNIT:
            return None
        if not all(map(MatrixStruct.takes, _all_weights(model))) or not all(map(_share_groups, model.model.layers)):
            return None
        return cls(model, library)

    @property
    def is_current(self) -> bool:
        """Whether the weights that were copied are still what they were."""
        return self._versions == self._current_versions()

    def takes(self, context: ForwardContext, cache: Cache | None, num_rows: int, batch_invariant: bool) -> bool:
        """Whether this pass is one for the kernel."""
        if cache is None or context.segments is None or context.adapters or not num_rows:
            return False
        if not self._packed and not batch_invariant and num_rows > PLAIN_ROWS:
            return False
        return all(map(_takes_state, cache.layers))

    def compute(self, input_ids: Tensor, context: ForwardContext, cache: Cache) -> Tensor:
        """Token ids [B, T] -> final hidden states fp32 [B, T, D]; writes what the cache is to remember."""
        segments = context.segments
        assert segments is not None
        num_rows = input_ids.numel()
        hidden = torch.empty(*input_ids.shape, self._config.hidden_size)
        buffers = self._buffers(num_rows) if any(each.num_uncertain for each in segments.each) else {}
        states = (LayerStateStruct * len(cache.layers))(
            *(_state(layer, buffers.get(index)) for index, layer in enumerate(cache.layers))
        )
        cos, sin = self._tables(context, input_ids)
        attention, delta = context.paged_attention, DeltaSegments.of(segments)
        ids = input_ids.contiguous()
        call = PassStruct(
            address(ids), address(cos), address(sin), address(segments.slot_mapping),
            address(attention.lengths), address(attention.block_tables),
            address(delta.rows), address(delta.copies), ctypes.addressof(states), address(hidden),
            num_rows, *attention.block_tables.shape, segments.block_size, len(delta.rows),
            _cache_dtype(cache), _has_bf16_windows(cache),
        )  # fmt: skip
        threads = torch.get_num_threads()
        self._library.decoder_step(ctypes.byref(self._decoder), ctypes.byref(call), threads, _LANES)
        return hidden

    def _tables(self, context: ForwardContext, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines fp32 [N, R]."""
        cos, sin = rotary_tables(self._config, context.positions.expand(input_ids.shape), torch.float32)
        return cos.contiguous(), sin.contiguous()
