"""The network's configuration, and the defaults of generation, in GGUF metadata: in and out.

Keys: llama.cpp's `llama-arch.cpp` and the `gguf` package's `constants.py`. What a file cannot say is refused when
writing, because llama.cpp would compute something else.
"""

from collections.abc import Iterator
from typing import Any

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.gguf.container import GgufFile
from codemill.gguf.metadata import Metadata, shown
from codemill.gguf.types import TensorType

ARCHITECTURES = {"qwen3": "qwen3", "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next"}
_NAMES = {model_type: name for name, model_type in ARCHITECTURES.items()}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_SIZE = 1 << 24
# Ids that end an answer: of text, of a turn, of a message.
_END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
             "repetition_penalty": "penalty_repeat"}  # fmt: skip
# Stored as F32 whatever the type of the rest.
_ALWAYS_FLOAT = ("ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d")


def read_config(file: GgufFile) -> ModelConfig:
    """The configuration that metadata and tensors describe. Raises CodemillError naming the file and the key."""
    metadata = Metadata(file.path, file.metadata)
    architecture = metadata.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise CodemillError(f"{file.path}: architecture {architecture[:60]!r} is not supported (only {supported})")
    raw = _Reader(file, metadata, architecture).read()
    return ModelConfig.from_dict(raw, str(file.path))


class _Reader:
    """Metadata -> the keys of a `config.json`."""

    def __init__(self, file: GgufFile, metadata: Metadata, architecture: str) -> None:
        self.file, self.metadata, self.architecture = file, metadata, architecture

    def read(self) -> dict[str, Any]:
        heads, hidden = self._size("attention.head_count"), self._size("embedding_length")
        tokens = self._token_rows(hidden)
        is_hybrid = self.architecture == "qwen3next"
        raw = {
            "model_type": ARCHITECTURES[self.architecture],
            "vocab_size": tokens,
            "hidden_size": hidden,
            "num_hidden_layers": self._num_layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": self._size("attention.head_count_kv", heads),
            "head_dim": self._head_dim(hidden // heads),
            "max_position_embeddings": self._size("context_length", limit=1 << 40),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": "output.weight" not in self.file.tensors,
            "attention_bias": "blk.0.attn_output.bias" in self.file.tensors,
            "dtype": stored_dtype(self.file),
            **self._rope(),
            **self._special_tokens(tokens),
        }
        raw["intermediate_size"] = self._size("feed_forward_length", 4 * hidden if self._has_experts else None)
        raw |= self._experts(raw["intermediate_size"]) if self._has_experts else {}
        return raw | (self._linear(raw) if is_hybrid else {})

    @property
    def _has_experts(self) -> bool:
        return self.architecture != "qwen3"

    def _key(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _size(self, key: str, default: int | None = None, limit: int = _MAX_SIZE) -> int:
        arguments = () if default is None else (default,)
        value = self.metadata.get(self._key(key), int, *arguments)
        if not 0 < value <= limit:
            raise CodemillError(f"{self.file.path}: {self._key(key)} = {value} cannot be right")
        return int(value)

    def _number(self, key: str, *default: float) -> float:
        return shortest(self.metadata.get(self._key(key), float, *default))

    def _token_rows(self, hidden: int) -> int:
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != hidden:
            shape = "is missing" if embedding is None else f"has shape {list(embedding.shape)}"
            raise CodemillError(f"{self.file.path}: tensor token_embd.weight {shape}, but embedding_length is {hidden}")
        return embedding.shape[0]

    def _num_layers(self) -> int:
        layers = self._size("block_count") - self.metadata.get(self._key("nextn_predict_layers"), int, 0)
        last = f"blk.{layers - 1}.attn_norm.weight"  # before anything loops over layers that are not there
        if last not in self.file.tensors:
            raise CodemillError(f"{self.file.path}: tensor {last} is missing, but block_count makes it the last layer")
        return layers

    def _head_dim(self, default: int) -> int:
        head_dim = self._size("attention.key_length", default)
        value_length = self._size("attention.value_length", head_dim)
        if value_length != head_dim:
            raise CodemillError(
                f"{self.file.path}: attention.key_length {head_dim} and value_length {value_length} differ, "
                "which is not supported"
            )
        return head_dim

    def _experts(self, intermediate_size: int) -> dict[str, Any]:
        used = self._size("expert_used_count")
        size = self._size("expert_feed_forward_length", max(1, intermediate_size // used))
        raw = {"num_experts": self._size("expert_count"), "num_experts_per_tok": used, "moe_intermediate_size": size}
        if self.architecture == "qwen3next":
            raw["shared_expert_intermediate_size"] = self._size("expert_shared_feed_forward_length", intermediate_size)
        return raw | {"norm_topk_prob": True}

    def _linear(self, raw: dict[str, Any]) -> dict[str, Any]:
        value_heads, inner = self._size("ssm.time_step_rank"), self._size("ssm.inner_size")
        if inner % value_heads:
            raise CodemillError(f"{self.file.path}: ssm.inner_size {inner} is no multiple of ssm.time_step_rank")
        return {
            "linear_num_key_heads": self._size("ssm.group_count"),
            "linear_num_value_heads": value_heads,
            "linear_key_head_dim": self._size("ssm.state_size"),
            "linear_value_head_dim": inner // value_heads,
            "linear_conv_kernel_dim": self._size("ssm.conv_kernel"),
            "layer_types": list(self._layer_types(raw["num_hidden_layers"])),
            "partial_rotary_factor": self._size("rope.dimension_count") / raw["head_dim"],
        }

    def _layer_types(self, num_layers: int) -> Iterator[str]:
        key = self._key("attention.recurrent_layers")
        interval = self._size("full_attention_interval", 4)
        recurrent = [(layer + 1) % interval != 0 for layer in range(num_layers)]
        if key in self.metadata.values:
            recurrent = self.metadata.items(key, bool)[:num_layers]
        for is_recurrent in recurrent:
            yield "linear_attention" if is_recurrent else "full_attention"

    def _rope(self) -> dict[str, Any]:
        raw: dict[str, Any] = {"rope_theta": self._number("rope.freq_base", 10000.0)}
        kind, factor = self.metadata.get(self._key("rope.scaling.type"), str, "none"), 1.0
        if kind != "none":
            factor = self._number("rope.scaling.factor", 1.0)
        if kind == "none" or factor == 1.0:
            return raw
        if kind != "yarn":
            raise CodemillError(f"{self.file.path}: rope.scaling.type = {kind[:60]!r} is not supported (only 'yarn')")
        original = self._size("rope.scaling.original_context_length", limit=1 << 40)
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        for name in ("beta_fast", "beta_slow"):
            if self._key(f"rope.scaling.yarn_{name}") in self.metadata.values:
                scaling[name] = self._number(f"rope.scaling.yarn_{name}")
        return raw | {"rope_scaling": scaling}

    def _special_tokens(self, tokens: int) -> dict[str, int]:
        names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
        keys = {name: f"tokenizer.ggml.{key}_token_id" for name, key in names.items()}
        found = {name: self.metadata.get(key, int) for name, key in keys.items() if key in self.metadata.values}
        for name, token_id in found.items():
            if not 0 <= token_id < tokens:
                raise CodemillError(f"{self.file.path}: {keys[name]} = {token_id}, but there are {tokens} tokens")
        return found


def shortest(value: float) -> float:
    """The float with the fewest digits that has this value in 32 bits."""
    import numpy as np

    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def stored_dtype(file: GgufFile) -> str:
    """The dtype of the matrices; bfloat16 where they are quantised, or of several kinds."""
    types = {
        tensor.type.name
        for name, tensor in file.tensors.items()
        if len(tensor.shape) > 1 and name.split(".")[-2] not in _ALWAYS_FLOAT
    }
    return _DTYPES.get(next(iter(types)), "bfloat16") if len(types) == 1 else "bfloat16"


def read_generation_config(file: GgufFile) -> dict[str, Any]:
    """The keys of a `generation_config.json`; empty where the file has no defaults."""
    metadata = Metadata(file.path, file.metadata)
    kinds: dict[str, Any] = {"top_k": int}
    raw: dict[str, Any] = {}
    for name, key in _SAMPLING.items():
        if f"general.sampling.{key}" in metadata.values:
            kind = kinds.get(name, float)
            value = metadata.get(f"general.sampling.{key}", kind)
            raw[name] = value if kind is int else shortest(value)
    ends = [metadata.get(key, int) for key in _END_KEYS if key in metadata.values]
    return {"do_sample": bool(raw), **raw} | ({"eos_token_id": list(dict.fromkeys(ends))} if ends else {})


def write_config(config: ModelConfig, name: str, kind: TensorType) -> dict[str, Any]:
    """Metadata of a model whose matrices have the type `kind`. Raises CodemillError for what GGUF cannot express."""
    _check_expressible(config, name)
    architecture = _NAMES[config.model_type]
    sizes: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": int(config.head_dim * config.rope.partial_rotary_factor),
        "rope.freq_base": float(config.rope.theta),
        "vocab_size": config.vocab_size,
        **_write_yarn(config),
        **_write_experts(config),
        **_write_linear(config),
    }
    general = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[kind.name],
        "general.quantization_version": 2,
    }
    return general | {f"{architecture}.{key}": value for key, value in sizes.items()}


def _write_yarn(config: ModelConfig) -> dict[str, Any]:
    yarn = config.rope.yarn
    if yarn is None:
        return {}
    values = {
        "type": "yarn",
        "factor": float(yarn.factor),
        "original_context_length": yarn.original_max_position_embeddings,
        "yarn_beta_fast": float(yarn.beta_fast),
        "yarn_beta_slow": float(yarn.beta_slow),
    }
    return {f"rope.scaling.{key}": value for key, value in values.items()}


def _write_experts(config: ModelConfig) -> dict[str, Any]:
    moe = config.moe
    if moe is None:
        return {}
    values = {
        "expert_count": moe.num_experts,
        "expert_used_count": moe.num_experts_per_tok,
        "expert_feed_forward_length": moe.moe_intermediate_size,
    }
    shared = moe.shared_expert_intermediate_size
    return values | ({"expert_shared_feed_forward_length": shared} if shared else {})


def _write_linear(config: ModelConfig) -> dict[str, Any]:
    linear = config.linear_attention
    if linear is None:
        return {}
    return {
        "ssm.conv_kernel": linear.conv_kernel_dim,
        "ssm.state_size": linear.key_head_dim,
        "ssm.group_count": linear.num_key_heads,
        "ssm.time_step_rank": linear.num_value_heads,
        "ssm.inner_size": linear.value_dim,
        "full_attention_interval": _interval(config),
    }


def _interval(config: ModelConfig) -> int:
    """Every how many layers one has full attention; beyond the model where none has."""
    types = config.layer_types
    return types.index("full_attention") + 1 if "full_attention" in types else len(types) + 1


def _check_expressible(config: ModelConfig, name: str) -> None:
    moe, yarn = config.moe, config.rope.yarn
    regular = tuple((layer + 1) % _interval(config) == 0 for layer in range(config.num_hidden_layers))
    problems = {
        "layers with and without experts in one model": moe is not None
        and not all(map(config.is_moe_layer, range(config.num_hidden_layers))),
        "experts whose weights are not renormalised (norm_topk_prob false)": moe is not None and not moe.norm_topk_prob,
        "a hybrid model without a shared expert": config.is_hybrid
        and (moe is None or not moe.shared_expert_intermediate_size),
        "full attention at irregular layers": config.is_hybrid
        and regular != tuple(kind == "full_attention" for kind in config.layer_types),
        "YaRN with an attention_factor, or untruncated": yarn is not None
        and (yarn.attention_factor is not None or not yarn.truncate),
    }
    for problem, found in problems.items():
        if found:
            raise CodemillError(f"{shown(name)}: GGUF has no form for {problem}; convert to a directory instead")


def write_more_ends(token_ids: list[int], source: str) -> dict[str, Any]:
    """Metadata of ids that end an answer beside eos_token_id. Raises CodemillError if GGUF has no place for so many."""
    keys = _END_KEYS[1:]
    if len(token_ids) > len(keys):
        raise CodemillError(f"{source}: GGUF has no form for eos_token_id with {token_ids} beside the tokenizer's own")
    return dict(zip(keys, token_ids, strict=False))


def write_generation_config(raw: dict[str, Any]) -> dict[str, Any]:
    """`generation_config.json` -> metadata; a greedy model has no sampling defaults."""
    if not raw.get("do_sample"):
        return {}
    found = {key: raw[name] for name, key in _SAMPLING.items() if raw.get(name) is not None}
    return {f"general.sampling.{key}": value if key == "top_k" else float(value) for key, value in found.items()}
