"""GGUF files of random weights of a given shape, for peers that read them: all families that GGUF has a form for.

Blocks are written as they lie in the file, so 17 GB take as long as the disk does. All matrices have one format, the
embedding and the experts too; norms, routers and other small tensors are fp32, as converters leave them. Shapes: rows
first. Needs numpy.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zlib import crc32

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.gguf.config import ARCHITECTURES, write_config
from codemill.gguf.types import BF16, F16, F32, Q4_0, Q8_0, TensorType
from codemill.gguf.writer import PlannedTensor, padding, write_header

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]
_KINDS = {kind.name: kind for kind in (F32, F16, BF16, Q8_0, Q4_0)}
_SCALE = 0.02
# Blocks after which the random numbers come again. A prime, so that no two rows of a matrix are alike.
_PERIOD = 32749
_ALWAYS_FLOAT = ("ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d")


def write_gguf(path: Path, raw: Mapping[str, Any], kind: str) -> None:
    """Write a model of the `config.json` `raw`, with matrices of `kind`: Q4_0, Q8_0, BF16, F16 or F32.

    Raises CodemillError for a shape that cannot be written.
    """
    if raw["model_type"] not in ARCHITECTURES.values():
        raise CodemillError(f"GGUF has no form for a {raw['model_type']}")
    config = ModelConfig.from_dict(raw)
    tensors = [_planned(name, shape, _KINDS[kind]) for name, shape in tensor_shapes(config)]
    # llama.cpp runs on token ids alone.
    metadata = write_config(config, "random weights", _KINDS[kind]) | {"tokenizer.ggml.model": "no_vocab"}
    half_written = path.with_suffix(".part")
    with half_written.open("wb") as file:
        write_header(file, metadata, tensors)
        for tensor in tensors:
            _write_random(file, tensor)
            file.write(bytes(padding(tensor.num_bytes)))
    half_written.rename(path)


def _planned(name: str, shape: Shape, kind: TensorType) -> PlannedTensor:
    if len(shape) == 1 or name.split(".")[-2] in _ALWAYS_FLOAT:
        kind = F32
    if shape[-1] % kind.block_size:
        raise CodemillError(
            f"{kind.name} needs rows that are multiples of {kind.block_size}; {name} has rows of {shape[-1]}"
        )
    return PlannedTensor(name, kind, shape)


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """GGUF's names and shapes of all tensors."""
    yield "token_embd.weight", (config.vocab_size, config.hidden_size)
    yield "output_norm.weight", (config.hidden_size,)
    if not config.tie_word_embeddings:
        yield "output.weight", (config.vocab_size, config.hidden_size)
    for layer, layer_type in enumerate(config.layer_types):
        mixer = _full_attention(config) if layer_type == "full_attention" else _linear_attention(config)
        second_norm = "post_attention_norm" if config.is_hybrid else "ffn_norm"
        norms = {f"{name}.weight": (config.hidden_size,) for name in ("attn_norm", second_norm)}
        shapes = {**norms, **mixer, **_feed_forward(config)}
        yield from ((f"blk.{layer}.{name}", shape) for name, shape in shapes.items())


def _full_attention(config: ModelConfig) -> dict[str, Shape]:
    hidden, head_dim = config.hidden_size, config.head_dim
    query, key = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    gated = query * (2 if config.is_hybrid else 1)
    return {
        "attn_q.weight": (gated, hidden),
        "attn_k.weight": (key, hidden),
        "attn_v.weight": (key, hidden),
        "attn_output.weight": (hidden, query),
        "attn_q_norm.weight": (head_dim,),
        "attn_k_norm.weight": (head_dim,),
    }


def _linear_attention(config: ModelConfig) -> dict[str, Shape]:
    linear, hidden = config.linear_attention, config.hidden_size
    assert linear is not None
    return {
        "attn_qkv.weight": (linear.conv_channels, hidden),
        "attn_gate.weight": (linear.value_dim, hidden),
        "ssm_ba.weight": (2 * linear.num_value_heads, hidden),
        "ssm_conv1d.weight": (linear.conv_channels, linear.conv_kernel_dim),
        "ssm_a": (linear.num_value_heads,),
        "ssm_dt.bias": (linear.num_value_heads,),
        "ssm_norm.weight": (linear.value_head_dim,),
        "ssm_out.weight": (hidden, linear.value_dim),
    }


def _feed_forward(config: ModelConfig) -> dict[str, Shape]:
    hidden, moe = config.hidden_size, config.moe
    if moe is None:
        return _mlp((), hidden, config.intermediate_size, "")
    count, size, shared = moe.num_experts, moe.moe_intermediate_size, moe.shared_expert_intermediate_size
    shapes = {"ffn_gate_inp.weight": (count, hidden), **_mlp((count,), hidden, size, "_exps")}
    if shared:
        shapes |= {"ffn_gate_inp_shexp.weight": (hidden,), **_mlp((), hidden, shared, "_shexp")}
    return shapes


def _mlp(leading: Shape, hidden: int, size: int, suffix: str) -> dict[str, Shape]:
    return {
        f"ffn_gate{suffix}.weight": (*leading, size, hidden),
        f"ffn_up{suffix}.weight": (*leading, size, hidden),
        f"ffn_down{suffix}.weight": (*leading, hidden, size),
    }


def _write_random(file: BinaryIO, tensor: PlannedTensor) -> None:
    """Weights of about _SCALE; ones for norms and biases, and the decay of a state."""
    import numpy as np

    if len(tensor.shape) == 1:
        file.write(np.full(tensor.shape, -1.0 if tensor.name.endswith("ssm_a") else 1.0, np.float32).data)
        return
    period = _random_period(tensor.type)
    period = np.roll(period, crc32(tensor.name.encode()) % len(period), axis=0)  # layers differ from one another
    whole, rest = divmod(tensor.num_bytes, period.nbytes)
    for _ in range(whole):
        file.write(period.data)
    file.write(period.reshape(-1)[:rest].data)


def _random_period(kind: TensorType) -> "np.ndarray[Any, Any]":
    """Blocks as they lie in a file, uint8 [_PERIOD, bytes]; of a float type, as many as a quantised block has."""
    import numpy as np

    generator = np.random.default_rng(0)
    if kind.is_float:
        numbers = generator.standard_normal((_PERIOD, 32), np.float32) * np.float32(_SCALE)
        if kind is BF16:
            return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return numbers.astype(np.float16 if kind is F16 else np.float32).view(np.uint8)
    blocks = generator.integers(0, 256, (_PERIOD, kind.block_bytes), np.uint8)
    largest = 8 if kind is Q4_0 else 128
    scales = np.full((_PERIOD, 1), 2 * _SCALE / largest, np.float16)  # both formats begin a block with its scale
    blocks[:, :2] = scales.view(np.uint8)
    return blocks
