"""`config.json` in and out: the mapping between Hugging Face's keys and our dataclasses."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from codemill.config import (
    ARCHITECTURES,
    Fp8Config,
    LayerType,
    LinearAttentionConfig,
    ModelConfig,
    MoeConfig,
    QuantizationConfig,
    RopeConfig,
    YarnConfig,
)
from codemill.config_checks import check_kinds, check_sizes, is_size
from codemill.errors import CodemillError

# Keys that describe training, the library or generation and do not change the network's output.
_IGNORED = frozenset(
    "architectures transformers_version torch_dtype dtype use_cache attention_dropout output_attentions "
    "output_hidden_states output_router_logits router_aux_loss_coef return_dict return_dict_in_generate "
    "chunk_size_feed_forward is_encoder_decoder is_decoder id2label label2id problem_type max_window_layers "
    "sliding_window auto_map use_bfloat16 torchscript task_specific_params tokenizer_class "
    "generation_config finetuning_task sep_token_id decoder_start_token_id unsloth_fixed unsloth_version "
    "attn_implementation experts_implementation num_nextn_predict_layers mtp_num_hidden_layers mamba_ssm_dtype "
    # Defaults of generation, which transformers 4 wrote here.
    "do_sample temperature top_k top_p typical_p repetition_penalty diversity_penalty length_penalty max_length "
    "min_length num_beams num_beam_groups num_return_sequences".split()
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
          "quantization", "num_local_experts")  # fmt: skip
QUANT_METHOD = "codemill"
_QUANTIZATION = frozenset(("quant_method", *(field.name for field in fields(QuantizationConfig))))
_KNOWN = {*_IGNORED, *_SIZES, *_SCALARS, *_MOE, *_LINEAR, *_ROPE, *_OTHER}


def parse_model_config(raw: Mapping[str, Any], source: str) -> ModelConfig:
    """See `ModelConfig.from_dict`."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CodemillError(f"{source}: unknown architecture, model_type = {model_type!r}; Codemill runs {known}")
    check_kinds(raw, source)
    _check_keys(raw, source)
    try:
        config = ModelConfig(
            model_type=raw["model_type"],
            rope=_parse_rope(raw, source),
            moe=_parse_moe(raw, source) if model_type != "qwen3" else None,
            linear_attention=_parse_linear(raw) if model_type == "qwen3_next" else None,
            layer_types=_parse_layer_types(raw),
            **_parse_quantization(raw.get("quantization_config") or raw.get("quantization"), source),  # or that of MLX
            dtype=raw.get("dtype") or raw.get("torch_dtype"),
            eos_token_id=_as_tuple(raw.get("eos_token_id")),
            **_parse_sizes(raw),
            **{key: raw[key] for key in _SCALARS if raw.get(key) is not None},
        )
    except KeyError as missing:
        raise CodemillError(f"{source}: the key {missing} is missing") from None
    check_sizes(config, source)
    return config


def _check_keys(raw: Mapping[str, Any], source: str) -> None:
    fixed = {**_FIXED, "attn_output_gate": raw["model_type"] == "qwen3_next"}
    for key, value in raw.items():
        if value and key not in (*_KNOWN, *fixed) and not key.startswith("_"):  # what is empty or false changes nothing
            raise CodemillError(f"{source}: unknown key {key!r}; it may change the model, so it is not ignored")
        if key in fixed and value not in (None, fixed[key]):
            raise CodemillError(f"{source}: {key} = {value!r} is not supported (only {fixed[key]!r})")


def _require(raw: Mapping[str, Any], key: str) -> Any:
    value = raw.get(key)
    if value is None:
        raise KeyError(key)
    return value


def _parse_sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    heads = _require(raw, "num_attention_heads")
    derived = {
        "num_key_value_heads": heads,
        "head_dim": _require(raw, "hidden_size") // heads,
        "max_position_embeddings": 32768,
    }
    given = {key: raw[key] for key in _SIZES if raw.get(key) is not None}
    return {key: _require(derived | given, key) for key in _SIZES}


def _parse_rope(raw: Mapping[str, Any], source: str) -> RopeConfig:
    # transformers 5 gathers in `rope_parameters` what earlier versions spread over three keys.
    spread = {key: raw.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    merged = {**spread, **(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    given = {key: value for key, value in merged.items() if value is not None}
    old_kind = given.pop("type", "default")
    kind = given.pop("rope_type", old_kind)
    if kind not in ("default", "yarn"):
        raise CodemillError(f"{source}: rope_type = {kind!r} is not supported (only 'default' and 'yarn')")
    check_kinds(given, source)
    theta, partial = given.pop("rope_theta", 10000.0), given.pop("partial_rotary_factor", 0.25)
    if raw.get("max_position_embeddings") is not None:
        given.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    for key in given:
        if key not in {field.name for field in fields(YarnConfig)}:
            raise CodemillError(f"{source}: unknown key {key!r} among the rope parameters")
    if raw["model_type"] != "qwen3_next":
        partial = 1.0  # the reference rotates whole heads in the other families, whatever the file says
    return RopeConfig(float(theta), float(partial), _parse_yarn(given) if kind == "yarn" else None)


def _parse_yarn(settings: Mapping[str, Any]) -> YarnConfig:
    for field in fields(YarnConfig):
        if field.default is MISSING:
            _require(settings, field.name)
    return YarnConfig(**settings)


def _parse_moe(raw: Mapping[str, Any], source: str) -> MoeConfig:
    values = {key: raw[key] for key in _MOE if raw.get(key) is not None}
    values.setdefault("num_experts", raw.get("num_local_experts"))
    values.setdefault("norm_topk_prob", raw["model_type"] == "qwen3_next")  # the reference's defaults
    for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
        _require(values, key)
    values["mlp_only_layers"] = tuple(values.get("mlp_only_layers", ()))
    if raw["model_type"] == "qwen3_moe" and values.get("shared_expert_intermediate_size"):
        raise CodemillError(f"{source}: qwen3_moe has no shared expert, but shared_expert_intermediate_size is set")
    return MoeConfig(**values)


def _parse_linear(raw: Mapping[str, Any]) -> LinearAttentionConfig:
    return LinearAttentionConfig(**{name: _require(raw, key) for key, name in _LINEAR.items()})


def _parse_layer_types(raw: Mapping[str, Any]) -> tuple[LayerType, ...]:
    if raw.get("layer_types"):
        return tuple(raw["layer_types"])
    interval = (raw.get("full_attention_interval") or 4) if raw["model_type"] == "qwen3_next" else 1
    return tuple(
        "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
        for layer in range(_require(raw, "num_hidden_layers"))
    )


def _parse_quantization(raw: Mapping[str, Any] | None, source: str) -> dict[str, Any]:
    """How the weights are quantised, as arguments of `ModelConfig`."""
    if raw is None:
        return {}
    check_kinds(raw, source)
    if raw.get("quant_method") == QUANT_METHOD:
        return {"quantization": _parse_packed(raw, source)}
    return {"fp8": _parse_fp8(raw, source)}


def _parse_packed(raw: Mapping[str, Any], source: str) -> QuantizationConfig:
    unknown = set(raw) - _QUANTIZATION
    if unknown:
        raise CodemillError(
            f"{source}: unknown key {min(unknown)!r} in quantization_config: is it of a newer Codemill?"
        )
    config = QuantizationConfig(**{"bits": 0, **{key: value for key, value in raw.items() if key != "quant_method"}})
    sizes = (config.bits, config.head_bits or config.bits)
    is_packed = all(type(bits) is int and bits in (4, 8) for bits in sizes)
    is_grouped = is_size(config.group_size) and config.group_size % 32 == 0
    if not (is_packed and is_grouped and isinstance(config.symmetric, bool)):
        raise CodemillError(f"{source}: quantization_config {dict(raw)} is none that Codemill writes")
    return config


def _parse_fp8(raw: Mapping[str, Any], source: str) -> Fp8Config:
    method, fmt, block = raw.get("quant_method"), raw.get("fmt") or "e4m3", raw.get("weight_block_size")
    if method != "fp8" or fmt != "e4m3" or not block:
        raise CodemillError(
            f"{source}: quantization_config with quant_method {method!r}, fmt {fmt!r} and weight_block_size {block!r} "
            "is not supported (only fp8 e4m3 in blocks, and codemill): take the unquantised checkpoint"
        )
    if not (isinstance(block, list) and len(block) == 2 and all(map(is_size, block))):
        raise CodemillError(f"{source}: weight_block_size = {block!r} must be two positive integers")
    return Fp8Config((block[0], block[1]), tuple(raw.get("modules_to_not_convert") or ()))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def dump_model_config(config: ModelConfig) -> dict[str, Any]:
    """See `ModelConfig.to_dict`. FP8 weights are always written dequantised, packed ones as they are."""
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
    if config.quantization is not None:
        raw["quantization_config"] = {"quant_method": QUANT_METHOD, **asdict(config.quantization)}
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
