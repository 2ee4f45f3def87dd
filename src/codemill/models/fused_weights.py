"""The weights of a decoder as the C++ library sees them: see `kernels/cpu/decoder.h`.

Shapes: D model, H query heads, G key/value heads, K head_dim, E experts, F ffn.
"""

import ctypes
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from codemill.kernels.cpu_structs import DecoderStruct, LayerStruct, MatrixStruct
from codemill.kernels.linear import Linear
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import QuantizedEmbedding, QuantizedLinear, packed_tensors
from codemill.models.attention import Attention
from codemill.models.gated_deltanet import DepthwiseConv, GatedDeltaNet
from codemill.models.layers import GatedRMSNorm, Mlp, RMSNorm
from codemill.models.moe import Experts, SparseMoe
from codemill.models.rope import inverse_frequencies
from codemill.models.weight_watch import WeightWatch

if TYPE_CHECKING:
    from codemill.models.decoder import CausalLM, DecoderLayer

_MATRICES = (Linear, QuantizedLinear, nn.Embedding, QuantizedEmbedding)
# What the library computes; anything else that somebody puts into the network, it would not.
_MODULES = {*_MATRICES, Attention, DepthwiseConv, Experts, GatedDeltaNet, GatedRMSNorm, Mlp, RMSNorm, SparseMoe}
_PLAIN = ("in_proj_ba", "router", "shared_gate")  # that are never packed
_SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "expert_gate_up"))


class NoKernel(Exception):
    """The library does not compute with these weights."""


class FusedWeights:
    """The structs of a network. Its matrices stay where they are; small weights are copied to fp32."""

    def __init__(self, model: "CausalLM") -> None:
        """Raises NoKernel."""
        self._config = model.config
        self._kept: list[Tensor] = []  # an address does not keep what it points at
        self._copied: list[Tensor] = []
        _check_modules(model.model)
        layers = [cast("DecoderLayer", layer) for layer in model.model.layers]
        self._layers = (LayerStruct * len(layers))(*map(self._layer, layers))
        self.decoder = self._describe(model)
        self._check_groups()
        self.is_packed = any(layer.q_proj.group_size or layer.in_proj_qkvz.group_size for layer in self._layers)
        self.watch = WeightWatch(model, self._copied)

    def _describe(self, model: "CausalLM") -> DecoderStruct:
        config = model.config
        moe, linear = config.moe, config.linear_attention
        return DecoderStruct(
            embedding=self._matrix(model.model.embed_tokens, config.vocab_size, config.hidden_size),
            layers=ctypes.addressof(self._layers),
            norm=self._norm(model.model.norm, config.hidden_size),
            num_layers=len(self._layers),
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
        size = self._config.hidden_size
        norms = layer.input_layernorm, layer.post_attention_layernorm
        struct = LayerStruct(input_norm=self._norm(norms[0], size), post_norm=self._norm(norms[1], size))
        if layer.layer_type == "full_attention":
            self._add_attention(struct, layer.self_attn)
        else:
            self._add_delta_net(struct, layer.linear_attn)
        if isinstance(layer.mlp, SparseMoe):
            self._add_experts(struct, layer.mlp)
        else:
            self._add_mlp(struct, layer.mlp, self._config.intermediate_size)
        return struct

    def _add_attention(self, struct: LayerStruct, attention: Attention) -> None:
        config = self._config
        size = config.hidden_size
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        struct.q_proj = self._matrix(attention.q_proj, queries * (2 if config.is_hybrid else 1), size)
        struct.k_proj = self._matrix(attention.k_proj, keys, size)
        struct.v_proj = self._matrix(attention.v_proj, keys, size)
        struct.o_proj = self._matrix(attention.o_proj, size, queries)
        struct.q_norm = self._norm(attention.q_norm, config.head_dim)
        struct.k_norm = self._norm(attention.k_norm, config.head_dim)

    def _add_delta_net(self, struct: LayerStruct, delta: GatedDeltaNet) -> None:
        size, linear = self._config.hidden_size, delta.linear
        struct.in_proj_qkvz = self._matrix(delta.in_proj_qkvz, 2 * (linear.key_dim + linear.value_dim), size)
        struct.in_proj_ba = self._matrix(delta.in_proj_ba, 2 * linear.num_value_heads, size)
        struct.out_proj = self._matrix(delta.out_proj, size, linear.value_dim)
        struct.conv_weight = self._copy(delta.conv1d.weight, linear.conv_channels * linear.conv_kernel_dim)
        struct.A_log = self._copy(delta.A_log, linear.num_value_heads)
        struct.dt_bias = self._copy(delta.dt_bias, linear.num_value_heads)
        struct.delta_norm = self._copy(delta.norm.weight, linear.value_head_dim)

    def _add_mlp(self, struct: LayerStruct, mlp: Mlp, ffn: int) -> None:
        size = self._config.hidden_size
        struct.gate_proj, struct.up_proj = (self._matrix(each, ffn, size) for each in (mlp.gate_proj, mlp.up_proj))
        struct.down_proj = self._matrix(mlp.down_proj, size, ffn)

    def _add_experts(self, struct: LayerStruct, moe: SparseMoe) -> None:
        size, num_experts, ffn = self._config.hidden_size, moe.moe.num_experts, moe.moe.moe_intermediate_size
        struct.router = self._matrix(moe.gate, num_experts, size)
        struct.expert_gate_up = self._weight(moe.experts.matrices("gate_up_proj"), num_experts, 2 * ffn, size)
        struct.expert_down = self._weight(moe.experts.matrices("down_proj"), num_experts, size, ffn)
        if moe.moe.shared_expert_intermediate_size:
            self._add_mlp(struct, moe.shared_expert, moe.moe.shared_expert_intermediate_size)
            struct.shared_gate = self._matrix(moe.shared_expert_gate, 1, size)

    def _matrix(self, module: nn.Module, num_rows: int, num_columns: int) -> MatrixStruct:
        if type(module) not in _MATRICES or getattr(module, "bias", None) is not None:
            raise NoKernel
        weight = module.matrix if isinstance(module, QuantizedLinear | QuantizedEmbedding) else module.weight
        return self._weight(cast(Tensor | PackedMatrix, weight), num_rows, num_columns)

    def _weight(self, weight: Tensor | PackedMatrix, *shape: int) -> MatrixStruct:
        if not MatrixStruct.takes(weight) or tuple(weight.shape) != shape:
            raise NoKernel
        tensors = packed_tensors("", weight).values() if isinstance(weight, PackedMatrix) else [weight]
        self._kept += (tensor.detach() for tensor in tensors)
        return MatrixStruct.of(weight)

    def _norm(self, norm: RMSNorm, size: int) -> int:
        return self._copy(norm.weight, size, 1.0 if norm.zero_centered else 0.0)

    def _copy(self, weight: Tensor, size: int, offset: float = 0.0) -> int:
        """Where a copy of a small weight lies, in fp32 and with `offset` added."""
        if weight.device.type != "cpu" or not weight.is_contiguous() or weight.numel() != size:
            raise NoKernel
        self._copied.append(weight)
        self._kept.append(weight.detach().float() + offset)
        return self._kept[-1].data_ptr()

    def _check_groups(self) -> None:
        """Weights that share their input have to want it quantised in the same way."""
        for layer in self._layers:
            groups = ([getattr(layer, name) for name in names] for names in _SHARED_INPUTS)
            sizes = ({matrix.group_size for matrix in matrices if matrix.weight} for matrices in groups)
            if any(getattr(layer, name).group_size for name in _PLAIN) or any(len(each) > 1 for each in sizes):
                raise NoKernel


def _check_modules(decoder: nn.Module) -> None:
    from codemill.models.decoder import Decoder, DecoderLayer  # which imports this file

    known = {*_MODULES, Decoder, DecoderLayer, nn.ModuleList}
    if any(type(each) not in known or "forward" in vars(each) for each in decoder.modules()):
        raise NoKernel
