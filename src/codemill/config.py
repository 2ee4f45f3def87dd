"""Model configuration, parsed once from a Hugging Face `config.json` into frozen dataclasses.

A key that we do not know fails instead of being ignored: it might change what the network computes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codemill.errors import CodemillError, UsageError

ModelType = Literal["qwen3", "qwen3_moe", "qwen3_next"]
LayerType = Literal["full_attention", "linear_attention"]
ARCHITECTURES: dict[str, str] = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
}


@dataclass(frozen=True)
class YarnConfig:
    """Context extension by YaRN (Peng et al. 2023, arXiv:2309.00071); `factor` multiplies the original context."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; only the first `partial_rotary_factor` of each head is rotated."""

    theta: float
    partial_rotary_factor: float = 1.0
    yarn: YarnConfig | None = None


@dataclass(frozen=True)
class MoeConfig:
    """Mixture of experts; `shared_expert_intermediate_size` 0 means that there is no shared expert."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool = True
    shared_expert_intermediate_size: int = 0
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class LinearAttentionConfig:
    """Gated DeltaNet layers (Yang et al. 2024, arXiv:2412.06464)."""

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel_dim: int = 4

    @property
    def key_dim(self) -> int:
        return self.num_key_heads * self.key_head_dim

    @property
    def value_dim(self) -> int:
        return self.num_value_heads * self.value_head_dim

    @property
    def conv_channels(self) -> int:
        """Channels that pass the causal convolution: queries, keys and values."""
        return 2 * self.key_dim + self.value_dim


@dataclass(frozen=True)
class Fp8Config:
    """Block-FP8 weights on disk: one scale for each `block_size` block of a weight."""

    block_size: tuple[int, int] = (128, 128)
    modules_to_not_convert: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackedFormat:
    """How one matrix is packed, see `kernels/packed_matrix.py`."""

    bits: int
    group_size: int = 32
    symmetric: bool = True


@dataclass(frozen=True)
class QuantizationConfig:
    """Weights in 4 or 8 bits, on disk and in memory; embedding and head may have bits of their own."""

    bits: int
    group_size: int = 32
    symmetric: bool = True
    head_bits: int | None = None

    def format_of(self, name: str) -> PackedFormat:
        """The format of the weight `name`."""
        is_head = name in ("model.embed_tokens.weight", "lm_head.weight")
        bits = self.head_bits if is_head and self.head_bits is not None else self.bits
        return PackedFormat(bits, self.group_size, self.symmetric)

    def __str__(self) -> str:
        """The notation that `parse` reads."""
        group = "" if self.group_size == 32 else f":g{self.group_size}"
        head = "" if self.head_bits is None else f":head{self.head_bits}"
        return f"int{self.bits}{group}{'' if self.symmetric else ':asym'}{head}"

    @classmethod
    def parse(cls, text: str) -> "QuantizationConfig":
        """What "int4", "int8" or a longer form such as "int4:g64:asym:head8" means. Raises UsageError."""
        match = re.fullmatch(r"int([48])(?::g(32|64|128))?(?::(sym|asym))?(?::head([48]))?", text)
        if match is None:
            raise UsageError(f"quantization {text!r} is unknown: choose int4, int8, or a form like int4:g64:asym:head8")
        bits, group_size, symmetry, head_bits = match.groups()
        return cls(int(bits), int(group_size or 32), symmetry != "asym", None if head_bits is None else int(head_bits))


@dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the network. Names follow `config.json`."""

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rope: RopeConfig
    layer_types: tuple[LayerType, ...]
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    initializer_range: float = 0.02
    moe: MoeConfig | None = None
    linear_attention: LinearAttentionConfig | None = None
    fp8: Fp8Config | None = None
    quantization: QuantizationConfig | None = None
    dtype: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def is_hybrid(self) -> bool:
        """Qwen3-Next: zero-centred norms, gated attention, and Gated DeltaNet in most layers."""
        return self.model_type == "qwen3_next"

    def is_moe_layer(self, layer: int) -> bool:
        """Whether decoder layer `layer` (from 0) holds experts instead of a dense MLP."""
        moe = self.moe
        if moe is None or layer in moe.mlp_only_layers:
            return False
        return (layer + 1) % moe.decoder_sparse_step == 0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> "ModelConfig":
        """Parse a `config.json` mapping. Raises CodemillError naming `source` and the offending key."""
        from codemill.config_io import parse_model_config

        return parse_model_config(raw, source)

    @classmethod
    def load(cls, directory: Path) -> "ModelConfig":
        """Read `directory/config.json`."""
        path = directory / "config.json"
        return cls.from_dict(read_json_object(path, "is this a Hugging Face model directory?"), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that `transformers` reads back into the same network."""
        from codemill.config_io import dump_model_config

        return dump_model_config(self)


def read_json_object(path: Path, hint: str = "the file may be truncated") -> dict[str, Any]:
    """The JSON object in `path`. Raises CodemillError if it is missing, unreadable or not an object."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CodemillError(f"{path} does not exist: {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CodemillError(f"{path} is not readable JSON ({error}): {hint}") from None
    if not isinstance(raw, dict):
        raise CodemillError(f"{path} holds no JSON object: {hint}")
    return raw
