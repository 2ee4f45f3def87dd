"""GGUF files of random weights of a given shape, for peers that read them: qwen3 and qwen3_moe.

All matrices have one format, the embedding and the experts too; norms and routers are fp32, as converters leave them.
Needs the packages gguf and numpy.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.errors import CodemillError

if TYPE_CHECKING:
    import gguf
    import numpy as np

Shape = tuple[int, ...]
_ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
_SCALE = 0.02
_PERIOD = 1 << 20  # weights, after which the random numbers come again; speed does not depend on them


def write_gguf(path: Path, config: Mapping[str, Any], kind: str, *, words: bool = False) -> None:
    """Write a model whose matrices are of `kind`: Q4_0, Q8_0, BF16, F16 or F32. words: with a made-up vocabulary.

    Raises CodemillError for a shape that cannot be written.
    """
    import gguf

    if config["model_type"] not in _ARCHITECTURES:
        raise CodemillError(f"no GGUF of random weights of a {config['model_type']}: qwen3 and qwen3_moe only")
    half_written = path.with_suffix(".part")
    writer = gguf.GGUFWriter(half_written, _ARCHITECTURES[config["model_type"]])
    _write_metadata(writer, config)
    _write_vocabulary(writer, int(config["vocab_size"]), words)
    tensors = [(name, shape, _type_of(name, shape, kind)) for name, shape in _tensors(config)]
    for name, shape, dtype in tensors:
        writer.add_tensor_info(name, shape, _placeholder(), _num_bytes(name, shape, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, dtype in tensors:
        writer.write_tensor_data(_random_bytes(_num_bytes(name, shape, dtype), dtype, len(shape) == 1))
    writer.close()
    half_written.rename(path)


def _placeholder() -> "np.dtype[Any]":
    """The writer asks for a numpy type even where the GGUF type is given."""
    import numpy as np

    return np.dtype(np.float32)


def _write_metadata(writer: "gguf.GGUFWriter", config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or config
    writer.add_name("random weights")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _write_vocabulary(writer: "gguf.GGUFWriter", size: int, words: bool) -> None:
    """llama.cpp runs on token ids alone; OpenVINO insists on a tokenizer."""
    if not words:
        writer.add_vocab_size(size)
        writer.add_tokenizer_model("no_vocab")
        return
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 324)]]  # GPT-2's byte alphabet
    tokens = [*letters, *(f"<{number}>" for number in range(size - len(letters)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens[:size])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(size - 1)
    writer.add_bos_token_id(size - 1)
    writer.add_pad_token_id(size - 1)


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """GGUF's names and shapes, the rows first as in PyTorch."""
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    yield "token_embd.weight", (config["vocab_size"], hidden)
    yield "output_norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "output.weight", (config["vocab_size"], hidden)
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, Shape] = {
        "attn_norm": (hidden,),
        "attn_q": (query, hidden),
        "attn_k": (key, hidden),
        "attn_v": (key, hidden),
        "attn_output": (hidden, query),
        "attn_q_norm": (head_dim,),
        "attn_k_norm": (head_dim,),
        "ffn_norm": (hidden,),
        **_feed_forward(config),
    }
    for layer in range(config["num_hidden_layers"]):
        yield from ((f"blk.{layer}.{name}.weight", shape) for name, shape in shapes.items())


def _feed_forward(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden = config["hidden_size"]
    if "num_experts" not in config:
        size = config["intermediate_size"]
        return {"ffn_gate": (size, hidden), "ffn_up": (size, hidden), "ffn_down": (hidden, size)}
    count, size = config["num_experts"], config["moe_intermediate_size"]
    return {
        "ffn_gate_inp": (count, hidden),
        "ffn_gate_exps": (count, size, hidden),
        "ffn_up_exps": (count, size, hidden),
        "ffn_down_exps": (count, hidden, size),
    }


def _type_of(name: str, shape: Shape, kind: str) -> "gguf.GGMLQuantizationType":
    import gguf

    return gguf.GGMLQuantizationType["F32" if len(shape) == 1 or "ffn_gate_inp" in name else kind]


def _num_bytes(name: str, shape: Shape, dtype: "gguf.GGMLQuantizationType") -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[dtype]
    if shape[-1] % block:
        raise CodemillError(f"{dtype.name} needs rows that are multiples of {block}; {name} has rows of {shape[-1]}")
    return math.prod(shape) // block * size


def _random_bytes(num_bytes: int, dtype: "gguf.GGMLQuantizationType", ones: bool) -> "np.ndarray[Any, Any]":
    """Weights of about _SCALE, as the format has them; ones for norms."""
    import numpy as np

    if ones:
        return np.ones(num_bytes // 4, np.float32).view(np.uint8)
    period = _random_period(dtype)
    return np.resize(period, num_bytes)


def _random_period(dtype: "gguf.GGMLQuantizationType") -> "np.ndarray[Any, Any]":
    import gguf
    import numpy as np

    generator = np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    if block == 1:
        numbers = generator.standard_normal(_PERIOD, np.float32) * np.float32(_SCALE)
        if dtype == gguf.GGMLQuantizationType.BF16:
            return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return numbers.astype(np.float16 if size == 2 else np.float32).view(np.uint8)
    blocks = generator.integers(0, 256, (_PERIOD // block, size), np.uint8)
    largest = 8 if size < block else 128
    scales = np.full((len(blocks), 1), 2 * _SCALE / largest, np.float16)  # both formats begin a block with its scale
    blocks[:, :2] = scales.view(np.uint8)
    return blocks.reshape(-1)
