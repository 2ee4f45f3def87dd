"""A whole pass of the decoder in one call of the C++ library, for the CPU.

PyTorch's modules remain the definition, and do what the kernel does not: training, packed documents, adapters, other
devices and dtypes. Between products the kernel computes in fp32, where PyTorch rounds to the model's dtype.

Plain weights go through it only for few rows: PyTorch's products of many rows are faster. Packed ones always do, and a
token gets the same bits however many others there are; see `cpu/product.h`.

Shapes: B batch, T tokens, N of all rows, D model.
"""

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from codemill.kernels.cpu_library import CpuLibrary, load_cpu_library
from codemill.kernels.cpu_structs import (
    CACHE_DTYPES,
    LayerStateStruct,
    PassStruct,
    address,
)
from codemill.kernels.gated_delta import DeltaSegments
from codemill.kernels.kv_cache import KVCache
from codemill.kernels.paged_attention import PagedAttention
from codemill.models.cache import Cache, LayerState, LinearState
from codemill.models.context import ForwardContext
from codemill.models.fused_weights import FusedWeights, NoKernel
from codemill.models.rope import rotary_tables

if TYPE_CHECKING:
    from codemill.models.decoder import CausalLM, DecoderLayer

PLAIN_ROWS = 16  # with plain weights; beyond, PyTorch's products are faster
_HEAD_DIM_UNIT = 8
_LANES = 256  # of the widest variant, AMX with its tiles; the tests try the others
_ID_DTYPES = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Buffers:
    """What the drafts of a pass need later: the inputs of a layer's recurrence, fp32 [N, ...]."""

    qkvz: Tensor
    ba: Tensor


class FusedDecoder:
    """Passes of a model's decoder through the library."""

    def __init__(self, model: "CausalLM", library: CpuLibrary) -> None:
        """See `build`."""
        self._config = model.config
        self._library = library
        self._weights = FusedWeights(model)
        layers = [cast("DecoderLayer", layer) for layer in model.model.layers]
        self._mixers = [layer.linear_attn if layer.layer_type == "linear_attention" else None for layer in layers]

    @classmethod
    def build(cls, model: "CausalLM") -> "FusedDecoder | None":
        """None where there is no library, or no kernel for these weights."""
        library = load_cpu_library()
        config = model.config
        if library is None or config.attention_bias or config.head_dim % _HEAD_DIM_UNIT:
            return None
        try:
            return cls(model, library)
        except NoKernel:
            return None

    @property
    def is_current(self) -> bool:
        """Whether the network still has the weights that this was made of."""
        return self._weights.watch.is_same

    def takes(self, input_ids: Tensor, context: ForwardContext, cache: Cache, batch_invariant: bool) -> bool:
        """Whether this pass is one for the kernel."""
        num_rows = input_ids.numel()
        if context.segments is None or context.adapters or not num_rows or input_ids.dtype not in _ID_DTYPES:
            return False
        if self._weights.watch.has_hooks or self._weights.watch.wants_gradients:
            return False
        if not self._weights.is_packed and not batch_invariant and num_rows > PLAIN_ROWS:
            return False
        return isinstance(context.attention, PagedAttention) and all(map(_takes_state, cache.layers))

    def compute(self, input_ids: Tensor, context: ForwardContext, cache: Cache) -> Tensor:
        """Token ids [B, T] -> final hidden states fp32 [B, T, D]; writes what the cache is to remember."""
        segments = context.segments
        assert segments is not None
        num_rows = input_ids.numel()
        if int(input_ids.min()) < 0 or int(input_ids.max()) >= self._config.vocab_size:
            raise IndexError("a token id lies outside the vocabulary")  # as PyTorch's embedding does
        hidden = torch.empty(*input_ids.shape, self._config.hidden_size)
        buffers = self._buffers(num_rows) if any(each.num_uncertain for each in segments.each) else {}
        states = (LayerStateStruct * len(cache.layers))(
            *(_state(layer, buffers.get(index)) for index, layer in enumerate(cache.layers))
        )
        cos, sin = self._tables(context, input_ids)
        attention, delta = context.attention, DeltaSegments.of(segments)
        assert isinstance(attention, PagedAttention)
        ids = input_ids.long().contiguous()
        call = PassStruct(
            address(ids), address(cos), address(sin), address(segments.slot_mapping),
            address(attention.lengths), address(attention.block_tables),
            address(delta.rows), address(delta.copies), ctypes.addressof(states), address(hidden),
            num_rows, *attention.block_tables.shape, segments.block_size, len(delta.rows) if cache.linear_states else 0,
            _cache_dtype(cache), _has_bf16_windows(cache), attention.may_use_tiles,
        )  # fmt: skip
        threads = torch.get_num_threads()
        self._library.decoder_step(ctypes.byref(self._weights.decoder), ctypes.byref(call), threads, _LANES)
        self._defer(buffers, context, cache)
        return hidden

    def _tables(self, context: ForwardContext, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines fp32 [N, R]."""
        cos, sin = rotary_tables(self._config, context.positions.expand(input_ids.shape), torch.float32)
        return cos.contiguous(), sin.contiguous()

    def _buffers(self, num_rows: int) -> dict[int, Buffers]:
        """Room for what drafts need later, by the number of the layer."""
        linear = self._config.linear_attention
        if linear is None:
            return {}
        sizes = 2 * (linear.key_dim + linear.value_dim), 2 * linear.num_value_heads
        kinds = enumerate(self._config.layer_types)
        return {
            index: Buffers(*(torch.empty(num_rows, size) for size in sizes))
            for index, kind in kinds
            if kind == "linear_attention"
        }

    def _defer(self, buffers: dict[int, Buffers], context: ForwardContext, cache: Cache) -> None:
        for index, each in buffers.items():
            state, mixer = cache.layers[index], self._mixers[index]
            assert isinstance(state, LinearState)
            assert mixer is not None
            mixer.defer_drafts(each.qkvz, each.ba, context, state)


def _state(layer: LayerState, buffers: Buffers | None) -> LayerStateStruct:
    if isinstance(layer, KVCache):
        scales = layer.key_scale, layer.value_scale
        return LayerStateStruct(*map(address, (layer.key, layer.value, *scales)))
    kept = (buffers.qkvz, buffers.ba) if buffers else (None, None)
    return LayerStateStruct(None, None, None, None, *map(address, (layer.recurrent, layer.conv, *kept)))


def _takes_state(layer: LayerState) -> bool:
    tensors = [layer.recurrent, layer.conv] if isinstance(layer, LinearState) else [layer.key, layer.value]
    return all(x.device.type == "cpu" and x.dtype in CACHE_DTYPES and x.is_contiguous() for x in tensors)


def _cache_dtype(cache: Cache) -> int:
    return CACHE_DTYPES[cache.kv_caches[0].key.dtype] if cache.kv_caches else 0


def _has_bf16_windows(cache: Cache) -> bool:
    return bool(cache.linear_states) and cache.linear_states[0].conv.dtype == torch.bfloat16
