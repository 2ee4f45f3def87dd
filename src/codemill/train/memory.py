"""How much memory a step of training takes, before anything is loaded."""

from dataclasses import dataclass

from codemill.config import ModelConfig
from codemill.kernels.cpu_library import load_cpu_library

LOGITS = 192_000_000  # at most, of a piece of the loss: in fp32, and once more in bf16
RUNTIME = 450_000_000  # Python, PyTorch, and the products that oneDNN compiled
_FRAGMENTS = 0.25  # of what a step allocates, in bf16: documents of many lengths leave holes in the heap
_FP32 = 4


@dataclass(frozen=True)
class StepShape:
    """A micro-batch: its tokens, whether matrix products are in bf16, and whether layers are recomputed."""

    tokens: int
    is_bf16: bool
    recompute: bool


def step_memory(
    config: ModelConfig, weight_bytes: int, trainable: int, optimizer_bytes: float, shape: StepShape
) -> dict[str, int]:
    """Bytes by purpose at the peak of a step. trainable: parameters; optimizer_bytes: of state for each of them.

    Activations are counted from what autograd keeps of each module, in fp32, or about so under autocast.
    """
    is_frozen = weight_bytes > _FP32 * trainable  # then weights are in the precision of the products, or packed
    casts = weight_bytes // 2 if shape.is_bf16 and not is_frozen else 0
    activations, loss = _activations(config, shape), min(LOGITS, shape.tokens * config.vocab_size * 6)
    fragments = int(_FRAGMENTS * (activations + loss)) if shape.is_bf16 else 0
    return {
        "weights": weight_bytes + casts,
        "gradients": _FP32 * trainable,
        "optimizer": int(optimizer_bytes * trainable),
        "activations": activations,
        "loss": loss,
        "runtime": RUNTIME + fragments,
    }


def _activations(config: ModelConfig, shape: StepShape) -> int:
    layers = [_layer(config, index, shape.is_bf16) for index in range(config.num_hidden_layers)]
    inputs = config.num_hidden_layers * config.hidden_size
    per_token = inputs + max(layers) if shape.recompute else sum(layers)
    return int(_FP32 * shape.tokens * (per_token + 3 * config.hidden_size))


def _layer(config: ModelConfig, index: int, is_bf16: bool) -> float:
    """Numbers, in fp32, that a layer keeps for a token."""
    # The inputs of both norms, in fp32 either way, and their outputs.
    rows = (3 if is_bf16 else 4) * config.hidden_size
    numbers = _feed_forward(config, index, is_bf16) + rows
    # Without the library's kernels autograd keeps what lies between the operations of norms, rotations and SwiGLU too.
    share = 1.5 if load_cpu_library() is None else 1.0
    if config.layer_types[index] == "full_attention":
        return share * (numbers + _mixer(config, index, is_bf16))
    return share * numbers + _mixer(config, index, is_bf16)


def _mixer(config: ModelConfig, index: int, is_bf16: bool) -> float:
    if config.layer_types[index] == "full_attention":
        query = config.num_attention_heads * config.head_dim * (1.4 if config.is_hybrid else 1.0)
        keys = config.num_key_value_heads * config.head_dim
        return (1.5 if is_bf16 else 3.0) * (query + keys)  # before and after the norm; outputs, and values
    linear = config.linear_attention
    assert linear is not None
    # The convolution's inputs, taps and outputs, the heads in fp32, and the chunks' systems.
    return 8 * linear.conv_channels + 14 * linear.value_dim + 64 * 6 * linear.num_value_heads


def _feed_forward(config: ModelConfig, index: int, is_bf16: bool) -> float:
    share = 1.5 if is_bf16 else 3.0  # gate, up, and their product
    moe = config.moe
    if moe is None or not config.is_moe_layer(index):
        return share * config.intermediate_size
    chosen = moe.num_experts_per_tok * (share * moe.moe_intermediate_size + 4)  # and where each pair comes from
    return chosen + share * (moe.shared_expert_intermediate_size or 0) + 2 * moe.num_experts
