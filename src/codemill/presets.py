"""The published Qwen3 and Qwen3-Coder models as configurations, so that a shape needs no download.

Sources: the models' `config.json` files and the Qwen3 technical report (arXiv:2505.09388), tables 1 and 2.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from codemill.config import LayerType, LinearAttentionConfig, ModelConfig, MoeConfig, RopeConfig
from codemill.errors import UsageError

FULL_ATTENTION_INTERVAL = 4  # in the hybrid models, every fourth decoder layer is full attention
_FULL: LayerType = "full_attention"
_COMMON: dict[str, Any] = {
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}


@dataclass(frozen=True)
class Preset:
    """A published model: `name` is what the command line takes, `hub_id` where its weights are."""

    name: str
    title: str
    hub_id: str
    config: ModelConfig


def find_preset(name: str) -> Preset:
    """The preset called `name`, in any case, by its name or hub id. Raises UsageError with the closest names.

    NAME:num_hidden_layers=N is the same with its first N layers only: a large shape for a smaller machine.
    """
    wanted, colon, change = name.strip().lower().partition(":")
    for preset in PRESETS.values():
        if wanted in (preset.name, preset.hub_id.lower()):
            return _first_layers(preset, change) if colon else preset
    close = get_close_matches(wanted, PRESETS, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(PRESETS)}"
    raise UsageError(f"unknown preset {name!r}: {hint}")


def _first_layers(preset: Preset, change: str) -> Preset:
    config = preset.config
    match = re.fullmatch(r"num_hidden_layers=(\d{1,6})", change)
    least = config.layer_types.index("full_attention") + 1  # without one there would be no KV cache to plan
    if match is None or not least <= int(match[1]) <= config.num_hidden_layers:
        limits = f"num_hidden_layers=N, with N from {least} to {config.num_hidden_layers}"
        raise UsageError(f"{preset.name}:{change}: after the colon there can only be {limits}")
    layers = int(match[1])
    fewer = replace(config, num_hidden_layers=layers, layer_types=config.layer_types[:layers])
    return Preset(f"{preset.name}:{change}", f"{preset.title}, {layers} layers", preset.hub_id, fewer)


def _qwen3(
    hidden_size: int,
    layers: int,
    query_heads: int,
    kv_heads: int,
    intermediate_size: int,
    *,
    tied: bool = False,
    theta: float = 1e6,
    context: int = 40960,
    moe: MoeConfig | None = None,
) -> ModelConfig:
    """A model of full-attention layers: dense, or with experts where `moe` is given."""
    return ModelConfig(
        model_type="qwen3" if moe is None else "qwen3_moe",
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        intermediate_size=intermediate_size,
        rope=RopeConfig(theta),
        layer_types=(_FULL,) * layers,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        moe=moe,
        **_COMMON,
    )


def _qwen3_next(theta: float) -> ModelConfig:
    """The hybrid: three Gated DeltaNet layers, then one of gated full attention, twelve times over."""
    layers = 48
    return ModelConfig(
        model_type="qwen3_next",
        hidden_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=256,
        intermediate_size=5120,
        rope=RopeConfig(theta, partial_rotary_factor=0.25),
        layer_types=tuple(_hybrid_layer_type(layer) for layer in range(layers)),
        max_position_embeddings=262144,
        moe=MoeConfig(512, 10, moe_intermediate_size=512, shared_expert_intermediate_size=512),
        linear_attention=LinearAttentionConfig(16, 32, key_head_dim=128, value_head_dim=128),
        **_COMMON,
    )


def _hybrid_layer_type(layer: int) -> LayerType:
    return _FULL if (layer + 1) % FULL_ATTENTION_INTERVAL == 0 else "linear_attention"


def _preset(title: str, config: ModelConfig, hub_suffix: str = "") -> Preset:
    return Preset(title.lower(), title, f"Qwen/{title}{hub_suffix}", config)


_EXPERTS_30B = MoeConfig(128, 8, moe_intermediate_size=768)
_EXPERTS_235B = MoeConfig(128, 8, moe_intermediate_size=1536)
_EXPERTS_480B = MoeConfig(160, 8, moe_intermediate_size=2560)
_CODER: dict[str, Any] = {"theta": 1e7, "context": 262144}

_ALL = (
    _preset("Qwen3-0.6B", _qwen3(1024, 28, 16, 8, 3072, tied=True)),
    _preset("Qwen3-1.7B", _qwen3(2048, 28, 16, 8, 6144, tied=True)),
    _preset("Qwen3-4B", _qwen3(2560, 36, 32, 8, 9728, tied=True)),
    _preset("Qwen3-8B", _qwen3(4096, 36, 32, 8, 12288)),
    _preset("Qwen3-14B", _qwen3(5120, 40, 40, 8, 17408)),
    _preset("Qwen3-32B", _qwen3(5120, 64, 64, 8, 25600)),
    _preset("Qwen3-30B-A3B", _qwen3(2048, 48, 32, 4, 6144, moe=_EXPERTS_30B)),
    _preset("Qwen3-235B-A22B", _qwen3(4096, 94, 64, 4, 12288, moe=_EXPERTS_235B)),
    _preset("Qwen3-Coder-30B-A3B", _qwen3(2048, 48, 32, 4, 5472, moe=_EXPERTS_30B, **_CODER), "-Instruct"),
    _preset("Qwen3-Coder-480B-A35B", _qwen3(6144, 62, 96, 8, 8192, moe=_EXPERTS_480B, **_CODER), "-Instruct"),
    _preset("Qwen3-Next-80B-A3B", _qwen3_next(theta=1e7), "-Instruct"),
    _preset("Qwen3-Coder-Next", _qwen3_next(theta=5e6)),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
