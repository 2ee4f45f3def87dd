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
from codemill.kernels.paged_attention import PagedAttention
from codemill.kernels.quantized_linear import packed_tensors
from codemill.models.attention import Attention
from codemill.models.cache import Cache, LayerState, LinearState
from codemill.models.context import ForwardContext
from codemill.models.gated_deltanet import GatedDeltaNet
from codemill.models.layers import Mlp, RMSNorm
from codemill.models.moe import SparseMoe
from codemill.models.rope import inverse_frequencies, rotary_tables

if TYPE_CHECKING:
    from codemill.models.decoder import CausalLM, DecoderLayer

PLAIN_ROWS = 16  # with plain weights; beyond, PyTorch's products are faster
_HEAD_DIM_UNIT = 8
_LANES = 256  # of the widest variant, AMX with its tiles; the tests try the others

_PLAIN = ("in_proj_ba", "router", "shared_gate")  # that are never packed
_SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "expert_gate_up"))

Weight = Tensor | PackedMatrix


class _NoKernel(Exception):
    """The library does not compute with these weights."""


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
        layers = [cast("DecoderLayer", layer) for layer in model.model.layers]
        self._mixers = [layer.linear_attn if layer.layer_type == "linear_attention" else None for layer in layers]
        self._layers = (LayerStruct * len(layers))(*map(self._layer, layers))
        self._decoder = self._describe(model)
        self._versions = self._current_versions()
        self._is_packed = any(layer.q_proj.group_size or layer.in_proj_qkvz.group_size for layer in self._layers)

    @classmethod
    def build(cls, model: "CausalLM") -> "FusedDecoder | None":
        """None where there is no library, or no kernel for these weights."""
        library = load_cpu_library()
        config = model.config
        if library is None or config.attention_bias or config.head_dim % _HEAD_DIM_UNIT:
            return None
        try:
            fused = cls(model, library)
        except _NoKernel:
            return None
        return fused if all(map(_is_consistent, fused._layers)) else None

    @property
    def is_current(self) -> bool:
        """Whether the weights that were copied are still what they were."""
        return self._versions == self._current_versions()

    def takes(self, context: ForwardContext, cache: Cache | None, num_rows: int, batch_invariant: bool) -> bool:
        """Whether this pass is one for the kernel."""
        if cache is None or context.segments is None or context.adapters or not num_rows:
            return False
        if not self._is_packed and not batch_invariant and num_rows > PLAIN_ROWS:
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
        ids = input_ids.contiguous()
        call = PassStruct(
            address(ids), address(cos), address(sin), address(segments.slot_mapping),
            address(attention.lengths), address(attention.block_tables),
            address(delta.rows), address(delta.copies), ctypes.addressof(states), address(hidden),
            num_rows, *attention.block_tables.shape, segments.block_size, len(delta.rows) if cache.linear_states else 0,
            _cache_dtype(cache), _has_bf16_windows(cache),
        )  # fmt: skip
        threads = torch.get_num_threads()
        self._library.decoder_step(ctypes.byref(self._decoder), ctypes.byref(call), threads, _LANES)
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

    def _describe(self, model: "CausalLM") -> DecoderStruct:
        config = model.config
        moe, linear = config.moe, config.linear_attention
        return DecoderStruct(
            embedding=self._matrix(weight_of(model.model.embed_tokens)),
            layers=ctypes.addressof(self._layers),
            norm=self._norm(model.model.norm),
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_dim=2 * len(inverse_frequencies(config.rope, config.head_dim)[0]),
            is_gated=config.is_hybrid,
            num_experts=moe.num_experts if moe else 0,
            top_k=moe.num_experts_per_tok if moe else 0,
            normalise_top_k=moe.norm_topk_prob if moe else 0,
            experts_on_disk=model.experts_on_disk,
            num_key_heads=linear.num_key_heads if linear else 0,
            num_value_heads=linear.num_value_heads if linear else 0,
            key_dim=linear.key_head_dim if linear else 0,
            value_dim=linear.value_head_dim if linear else 0,
            conv_width=linear.conv_kernel_dim if linear else 0,
            eps=config.rms_norm_eps,
        )

    def _layer(self, layer: "DecoderLayer") -> LayerStruct:
        struct = LayerStruct(
            input_norm=self._norm(layer.input_layernorm), post_norm=self._norm(layer.post_attention_layernorm)
        )
        if layer.layer_type == "full_attention":
            self._add_attention(struct, layer.self_attn)
        else:
            self._add_delta_net(struct, layer.linear_attn)
        if isinstance(layer.mlp, SparseMoe):
            self._add_experts(struct, layer.mlp)
        else:
            self._add_mlp(struct, layer.mlp)
        return struct

    def _add_attention(self, struct: LayerStruct, attention: Attention) -> None:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(struct, name, self._matrix(weight_of(getattr(attention, name))))
        struct.q_norm, struct.k_norm = self._norm(attention.q_norm), self._norm(attention.k_norm)

    def _add_delta_net(self, struct: LayerStruct, delta: GatedDeltaNet) -> None:
        for name in ("in_proj_qkvz", "in_proj_ba", "out_proj"):
            setattr(struct, name, self._matrix(weight_of(getattr(delta, name))))
        struct.conv_weight = self._copy(delta.conv1d.weight)
        struct.A_log, struct.dt_bias = self._copy(delta.A_log), self._copy(delta.dt_bias)
        struct.delta_norm = self._copy(delta.norm.weight)

    def _add_mlp(self, struct: LayerStruct, mlp: Mlp) -> None:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(struct, name, self._matrix(weight_of(getattr(mlp, name))))

    def _add_experts(self, struct: LayerStruct, moe: SparseMoe) -> None:
        struct.router = self._matrix(weight_of(moe.gate))
        struct.expert_gate_up = self._matrix(moe.experts.matrices("gate_up_proj"))
        struct.expert_down = self._matrix(moe.experts.matrices("down_proj"))
        if moe.moe.shared_expert_intermediate_size:
            self._add_mlp(struct, moe.shared_expert)
            struct.shared_gate = self._matrix(weight_of(moe.shared_expert_gate))

    def _matrix(self, weight: Weight) -> MatrixStruct:
        if not MatrixStruct.takes(weight):
            raise _NoKernel
        self._kept += packed_tensors("", weight).values() if isinstance(weight, PackedMatrix) else [weight]
        return MatrixStruct.of(weight)

    def _norm(self, norm: RMSNorm) -> int:
        return self._copy(norm.weight, 1.0 if norm.zero_centered else 0.0)

    def _copy(self, weight: Tensor, offset: float = 0.0) -> int:
        """Where a copy of a small weight lies, in fp32 and with `offset` added."""
        self._copied.append(weight)
        self._kept.append(weight.detach().float() + offset)
        return self._kept[-1].data_ptr()

    def _current_versions(self) -> list[int]:
        return [weight._version for weight in self._copied]


def weight_of(module: nn.Module) -> Weight:
    """The weight of a linear layer or an embedding, packed or not."""
    matrix = getattr(module, "matrix", None)
    weight = module.get_parameter("weight").detach() if matrix is None else matrix
    assert isinstance(weight, Tensor | PackedMatrix)
    return weight


def _is_consistent(layer: LayerStruct) -> bool:
    """Whether weights that share their input want it quantised in the same way."""
    if any(getattr(layer, name).group_size for name in _PLAIN):
        return False
    groups = ([getattr(layer, name) for name in names] for names in _SHARED_INPUTS)
    return all(len({matrix.group_size for matrix in matrices if matrix.weight}) <= 1 for matrices in groups)


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
