"""`config.json` in and out: the mapping between Hugging Face's keys and our dataclasses."""

from collections.abc import Mapping
from typing import Any

from codemill.config import (
    ARCHITECTURES,
    Fp8Config,
    LayerType,
    LinearAttentionConfig,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    YarnConfig,
)
from codemill.errors import CodemillError

# Keys that describe training, the library or generation and do not change the network's output.
_IGNORED = frozenset(
    "architectures transformers_version torch_dtype dtype use_cache attention_dropout output_attentions "
    "output_hidden_states output_router_logits router_aux_loss_coef return_dict return_dict_in_generate "
    "chunk_size_feed_forward is_encoder_decoder is_decoder id2label label2id problem_type max_window_layers "
    "sliding_window auto_map use_bfloat16 torchscript task_specific_params tokenizer_class "
    "generation_config finetuning_task sep_token_id decoder_start_token_id unsloth_fixed unsloth_version".split()
)
_SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "intermediate_size max_position_embeddings"
).split()
_SCALARS = "rms_norm_eps tie_word_embeddings attention_bias initializer_range bos_token_id pad_token_id".split()
_MOE = (
    "num_experts num_experts_per_tok moe_intermediate_size norm_topk_prob shared_expert_intermediate_size "
    "decoder_sparse_step mlp_only_layers"
).split()
_LINEAR = {
    "linear_num_key_heads": "num_key_heads",
    "linear_num_value_heads": "num_value_heads",
    "linear_key_head_dim": "key_head_dim",
    "linear_value_head_dim": "value_head_dim",
    "linear_conv_kernel_dim": "conv_kernel_dim",
}
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
# Keys whose only supported value is the one that every Qwen3 checkpoint has.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "use_qk_norm": True,
    "qkv_bias": False,
}
_OTHER = ("model_type", "eos_token_id", "layer_types", "full_attention_interval", "quantization_config",
          "num_local_experts")  # fmt: skip
_KNOWN = {*_IGNORED, *_SIZES, *_SCALARS, *_MOE, *_LINEAR, *_ROPE, *_FIXED, *_OTHER}


def parse_model_config(raw: Mapping[str, Any], source: str) -> ModelConfig:
    """See `ModelConfig.from_dict`."""
    model_type = raw.get("model_type")
    if model_type not in ARCHITECTURES:
        raise CodemillError(f"{source}: unknown architecture {model_type!r}; Codemill runs {', '.join(ARCHITECTURES)}")
    _check_keys(raw, source)
    try:
        config = ModelConfig(
            model_type=model_type,
            rope=_parse_rope(raw, source),
            moe=_parse_moe(raw, source) if model_type != "qwen3" else None,
            linear_attention=_parse_linear(raw) if model_type == "qwen3_next" else None,
            layer_types=_parse_layer_types(raw),
            fp8=_parse_quantization(raw.get("quantization_config"), source),
            dtype=raw.get("dtype") or raw.get("torch_dtype"),
            eos_token_id=_as_tuple(raw.get("eos_token_id")),
            **_parse_sizes(raw),
            **{key: raw[key] for key in _SCALARS if key in raw},
        )
    except KeyError as missing:
        raise CodemillError(f"{source}: the key {missing} is missing") from None
    _check_sizes(config, source)
    return config


def _check_keys(raw: Mapping[str, Any], source: str) -> None:
    for key, value in raw.items():
        if key not in _KNOWN and not key.startswith("_") and value not in (None, False):
            raise CodemillError(f"{source}: unknown key {key!r}; it may change the model, so it is not ignored")
        if key in _FIXED and value not in (None, _FIXED[key]):
            raise CodemillError(f"{source}: {key} = {value!r} is not supported (only {_FIXED[key]!r})")


def _parse_sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    derived = {
        "num_key_value_heads": raw["num_attention_heads"],
        "head_dim": raw["hidden_size"] // raw["num_attention_heads"],
        "max_position_embeddings": 32768,
    }
    sizes = {key: raw.get(key) or derived.get(key) for key in _SIZES}
    for key, value in sizes.items():
        if value is None:
            raise KeyError(key)
    return sizes


def _parse_rope(raw: Mapping[str, Any], source: str) -> RopeConfig:
    # transformers 5 gathers in `rope_parameters` what earlier versions spread over three keys.
    scaling = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = scaling.pop("rope_theta", raw.get("rope_theta", 10000.0))
    default_factor = 0.25 if raw["model_type"] == "qwen3_next" else 1.0
    partial = scaling.pop("partial_rotary_factor", raw.get("partial_rotary_factor", default_factor))
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind == "default":
        return RopeConfig(float(theta), float(partial))
    if kind != "yarn":
        raise CodemillError(f"{source}: rope type {kind!r} is not supported (only 'default' and 'yarn')")
    scaling.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    try:
        yarn = YarnConfig(**scaling)
    except TypeError as error:
        raise CodemillError(f"{source}: bad YaRN settings in rope_scaling ({error})") from None
    return RopeConfig(float(theta), float(partial), yarn)


def _parse_moe(raw: Mapping[str, Any], source: str) -> MoeConfig:
    values = {key: raw[key] for key in _MOE if raw.get(key) is not None}
    values.setdefault("num_experts", raw.get("num_local_experts"))
    if values["num_experts"] is None:
        raise KeyError("num_experts")
    values["mlp_only_layers"] = tuple(values.get("mlp_only_layers", ()))
    if raw["model_type"] == "qwen3_moe" and values.get("shared_expert_intermediate_size"):
        raise CodemillError(f"{source}: qwen3_moe has no shared expert, but shared_expert_intermediate_size is set")
    try:
        return MoeConfig(**values)
    except TypeError as error:
        raise CodemillError(f"{source}: incomplete mixture-of-experts settings ({error})") from None


def _parse_linear(raw: Mapping[str, Any]) -> LinearAttentionConfig:
    return LinearAttentionConfig(**{name: raw[key] for key, name in _LINEAR.items()})


def _parse_layer_types(raw: Mapping[str, Any]) -> tuple[LayerType, ...]:
    if raw.get("layer_types"):
        return tuple(raw["layer_types"])
    interval = raw.get("full_attention_interval", 4) if raw["model_type"] == "qwen3_next" else 1
    return tuple(
        "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
        for layer in range(raw["num_hidden_layers"])
    )


def _parse_quantization(raw: Mapping[str, Any] | None, source: str) -> Fp8Config | None:
    if raw is None:
        return None
    method, fmt = raw.get("quant_method"), raw.get("fmt", "e4m3")
    if method != "fp8" or fmt != "e4m3" or not raw.get("weight_block_size"):
        raise CodemillError(f"{source}: quantisation {method!r} is not supported (only block-wise fp8 e4m3)")
    rows, columns = raw["weight_block_size"]
    return Fp8Config((rows, columns), tuple(raw.get("modules_to_not_convert") or ()))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_sizes(config: ModelConfig, source: str) -> None:
    problems = {
        "sizes must be positive integers": any(
            not isinstance(getattr(config, key), int) or getattr(config, key) <= 0 for key in _SIZES
        ),
        "num_attention_heads is not a multiple of num_key_value_heads": (
            config.num_attention_heads % config.num_key_value_heads != 0
        ),
        "layer_types does not name one known type for each layer": (
            len(config.layer_types) != config.num_hidden_layers
            or any(kind not in ("full_attention", "linear_attention") for kind in config.layer_types)
            or (config.linear_attention is None and "linear_attention" in config.layer_types)
        ),
        "num_experts_per_tok is larger than num_experts": (
            config.moe is not None and config.moe.num_experts_per_tok > config.moe.num_experts
        ),
    }
    for problem, found in problems.items():
        if found:
            raise CodemillError(f"{source}: {problem}")


def dump_model_config(config: ModelConfig) -> dict[str, Any]:
    """See `ModelConfig.to_dict`. Weights are always written dequantised, so there is no quantization_config."""
    eos = list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        **{key: getattr(config, key) for key in (*_SIZES, *_SCALARS)},
        "eos_token_id": eos,
        "torch_dtype": config.dtype,
        "hidden_act": "silu",
        **_dump_rope(config.rope),
        "layer_types": list(config.layer_types),
    }
    if config.moe is not None:
        raw |= {key: getattr(config.moe, key) for key in _MOE}
        raw["mlp_only_layers"] = list(config.moe.mlp_only_layers)
    if config.linear_attention is not None:
        raw |= {key: getattr(config.linear_attention, name) for key, name in _LINEAR.items()}
    return raw


def _dump_rope(rope: RopeConfig) -> dict[str, Any]:
    # The spelling of published checkpoints: transformers 4 and 5, vLLM and llama.cpp all read it.
    raw: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if rope.partial_rotary_factor != 1.0:
        raw["partial_rotary_factor"] = rope.partial_rotary_factor
    if rope.yarn is not None:
        settings = {key: value for key, value in vars(rope.yarn).items() if value is not None}
        raw["rope_scaling"] = {"rope_type": "yarn", **settings}
    return raw
