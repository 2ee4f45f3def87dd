"""Which GGUF tensors hold a parameter. Shapes: E experts, F ffn, D model, C conv channels, W conv width."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.config import ModelConfig

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}
_WHOLE = {
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
QKVZ = "linear_attn.in_proj_qkvz.weight"
GATE_UP = "mlp.experts.gate_up_proj"


@dataclass(frozen=True)
class Part:
    """A GGUF tensor that holds a parameter or part of it; `shape` with the outermost dimension first."""

    name: str
    shape: tuple[int, ...]


def parts_of(name: str, parameter: Tensor, config: ModelConfig, stored: Collection[str] = ()) -> list[Part]:
    """The tensors for the parameter `name`; of several forms that there are, the one that is in `stored`."""
    layer, suffix = _split(name)
    if layer is None:
        return [Part(_TOP[name], tuple(parameter.shape))]
    prefix = f"blk.{layer}."
    if suffix == GATE_UP:
        return _gate_up_parts(prefix, parameter, stored)
    if suffix == QKVZ:
        return _qkvz_parts(prefix, parameter, config, stored)
    return [Part(prefix + _layer_name(suffix, config), stored_shape(suffix, parameter))]


def _split(name: str) -> tuple[str | None, str]:
    match = _LAYER.fullmatch(name)
    return (None, name) if match is None else (match[1], match[2])


def _layer_name(suffix: str, config: ModelConfig) -> str:
    module, _, leaf = suffix.rpartition(".")
    if module == "post_attention_layernorm":
        return f"{'post_attention_norm' if config.is_hybrid else 'ffn_norm'}.{leaf}"
    return _WHOLE.get(suffix) or f"{_MODULES[module]}.{leaf}"


def stored_shape(suffix: str, parameter: Tensor) -> tuple[int, ...]:
    """The shape on disk: [C, 1, W] is [C, W] there, [1, D] is [D]."""
    if suffix.endswith(("conv1d.weight", "shared_expert_gate.weight")):
        return tuple(size for dim, size in enumerate(parameter.shape) if dim != parameter.dim() - 2)
    return tuple(parameter.shape)


def _gate_up_parts(prefix: str, parameter: Tensor, stored: Collection[str]) -> list[Part]:
    experts, double, hidden = parameter.shape
    fused = f"{prefix}ffn_gate_up_exps.weight"
    if fused in stored:
        return [Part(fused, (experts, double, hidden))]
    return [Part(f"{prefix}ffn_{kind}_exps.weight", (experts, double // 2, hidden)) for kind in ("gate", "up")]


def _qkvz_parts(prefix: str, parameter: Tensor, config: ModelConfig, stored: Collection[str]) -> list[Part]:
    linear, hidden = config.linear_attention, parameter.shape[1]
    assert linear is not None
    older = f"{prefix}ssm_in.weight"
    if older in stored:
        return [Part(older, tuple(parameter.shape))]
    return [
        Part(f"{prefix}attn_qkv.weight", (linear.conv_channels, hidden)),
        Part(f"{prefix}attn_gate.weight", (linear.value_dim, hidden)),
    ]


def is_folded_norm(name: str, config: ModelConfig) -> bool:
    """Whether the tensor holds 1 + w of this zero-centred norm."""
    return config.is_hybrid and name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")


def is_always_float(part: Part) -> bool:
    """Whether llama.cpp expects F32 whatever the type of the file."""
    module = part.name.removesuffix(".weight").rpartition(".")[2]
    return len(part.shape) < 2 or module in ("ffn_gate_inp", "ssm_conv1d")


def split_qkvz(weight: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Rows grouped by key head as [q | k | v | z] -> rows of all q, all k, all v; and rows of all z."""
    query, key, value, gate = (part.flatten(0, 1) for part in _grouped(weight, config))
    return torch.cat((query, key, value)), gate


def join_qkvz(qkv: Tensor, gate: Tensor, config: ModelConfig, out: Tensor) -> None:
    """The inverse of `split_qkvz`, written to `out`."""
    linear = config.linear_attention
    assert linear is not None
    sources = (*qkv.split((linear.key_dim, linear.key_dim, linear.value_dim)), gate)
    for target, source in zip(_grouped(out, config), sources, strict=True):
        target.copy_(source.view(target.shape))


def _grouped(weight: Tensor, config: ModelConfig) -> Iterator[Tensor]:
    """Views [key heads, rows, D] of q, k, v and z."""
    linear = config.linear_attention
    assert linear is not None
    values = linear.value_dim // linear.num_key_heads
    by_head = weight.unflatten(0, (linear.num_key_heads, -1))
    yield from by_head.split((linear.key_head_dim, linear.key_head_dim, values, values), dim=1)
