"""Whether the values of a `config.json` can be right: each fault is one line that names the file and the key."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from codemill.config import ModelConfig
from codemill.errors import CodemillError

_MAX_LAYERS = 10_000  # beyond is a corrupt file, over which we would loop for hours


def is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_depth(value: Any) -> bool:
    return is_size(value) and value <= _MAX_LAYERS


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_eos(value: Any) -> bool:
    return is_count(value) or _is_counts(value)


_SIZES = (
    "vocab_size hidden_size num_attention_heads num_key_value_heads head_dim intermediate_size "
    "max_position_embeddings num_experts num_local_experts num_experts_per_tok moe_intermediate_size "
    "decoder_sparse_step full_attention_interval linear_num_key_heads linear_num_value_heads linear_key_head_dim "
    "linear_value_head_dim linear_conv_kernel_dim original_max_position_embeddings"
).split()
_COUNTS = ("shared_expert_intermediate_size", "bos_token_id", "pad_token_id")
_NUMBERS = (
    "rms_norm_eps initializer_range rope_theta partial_rotary_factor factor attention_factor beta_fast beta_slow"
).split()
_FLAGS = ("tie_word_embeddings", "attention_bias", "norm_topk_prob", "truncate")
_OBJECTS = ("rope_scaling", "rope_parameters", "quantization_config", "quantization")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_SIZES, (is_size, "a positive integer")),
    **dict.fromkeys(_COUNTS, (is_count, "an integer that is not negative")),
    **dict.fromkeys(_NUMBERS, (is_number, "a number that is not negative")),
    **dict.fromkeys(_FLAGS, (lambda value: isinstance(value, bool), "true or false")),
    **dict.fromkeys(_OBJECTS, (lambda value: isinstance(value, Mapping), "an object")),
    **dict.fromkeys(("dtype", "torch_dtype"), (lambda value: isinstance(value, str), "a string")),
    **dict.fromkeys(("layer_types", "modules_to_not_convert"), (_is_strings, "a list of strings")),
    "num_hidden_layers": (_is_depth, f"an integer from 1 to {_MAX_LAYERS}"),
    "mlp_only_layers": (_is_counts, "a list of layer numbers"),
    "eos_token_id": (_is_eos, "a token id or a list of them"),
}


def check_kinds(raw: Mapping[str, Any], source: str) -> None:
    """Every value has the type of its key, or is null. Raises CodemillError."""
    for key, value in raw.items():
        is_valid, description = _KINDS.get(key, (None, ""))
        if is_valid is not None and value is not None and not is_valid(value):
            raise CodemillError(f"{source}: {key} = {value!r} must be {description}")


def check_sizes(config: ModelConfig, source: str) -> None:
    """The sizes agree with each other. Raises CodemillError."""
    moe, linear, rope = config.moe, config.linear_attention, config.rope
    problems = {
        "num_attention_heads is not a multiple of num_key_value_heads": (
            config.num_attention_heads % config.num_key_value_heads != 0
        ),
        "linear_num_value_heads is not a multiple of linear_num_key_heads": (
            linear is not None and linear.num_value_heads % linear.num_key_heads != 0
        ),
        "partial_rotary_factor must leave an even number of head_dim to rotate": (
            not 0 < rope.partial_rotary_factor <= 1 or _num_rotated(config) > config.head_dim
        ),
        "rope_theta must be larger than 1": rope.theta <= 1,
        "factor, attention_factor, beta_fast and beta_slow of YaRN must be larger than 0": (
            rope.yarn is not None
            and 0 in (rope.yarn.factor, rope.yarn.attention_factor, rope.yarn.beta_fast, rope.yarn.beta_slow)
        ),
        "layer_types must name full_attention or linear_attention for each layer": not _are_layer_types(config),
        "num_experts_per_tok is larger than num_experts": moe is not None and moe.num_experts_per_tok > moe.num_experts,
    }
    for problem, found in problems.items():
        if found:
            raise CodemillError(f"{source}: {problem}")


def _num_rotated(config: ModelConfig) -> int:
    """Dims of a head that turn: they come in pairs, so an odd share takes one more."""
    share = int(config.head_dim * config.rope.partial_rotary_factor)
    return share + share % 2


def _are_layer_types(config: ModelConfig) -> bool:
    kinds = {"full_attention"} if config.linear_attention is None else {"full_attention", "linear_attention"}
    return len(config.layer_types) == config.num_hidden_layers and all(kind in kinds for kind in config.layer_types)
