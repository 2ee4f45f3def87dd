"""How large a model is, counted from its configuration alone, and how much memory this machine has for it.

Parameters are those of the checkpoint: the embedding once where the head is tied to it, and no MTP layers. The active
parameters of a token are all of them less the experts that its router passes over, so both the embedding and the head
count in full; this is the convention that gives the published figures.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from codemill.config import ModelConfig, MoeConfig, QuantizationConfig

# Bytes per parameter, the most exact precision first; then those whose matrices are packed.
PRECISION_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp8": 1}
QUANTIZATIONS: Mapping[str, QuantizationConfig] = {"int8": QuantizationConfig(8), "int4": QuantizationConfig(4)}
SCALE_BYTES = 2  # of a packed matrix: fp16, one scale (and one minimum) for each row of a group
BLOCK_ROWS = 16  # to which the rows of a packed matrix are padded
KV_BYTES = 2  # bf16
STATE_BYTES = 4  # fp32: a recurrent state in bf16 is known to corrupt what follows
FIT_TOKENS = 4096  # the context that a model must have room for before we say that it fits
RUNTIME_BYTES = 500_000_000  # Python, torch and the activations of a step, beside weights and cache


@dataclass(frozen=True)
class Footprint:
    """Sizes of one model: parameters as counts, everything else in bytes. State is per sequence, of any length."""

    parameters: int
    active_parameters: int
    memory: Mapping[str, int]
    kv_bytes_per_token: int
    recurrent_state_bytes: int
    conv_state_bytes: int

    @property
    def kv_bytes_per_1k_tokens(self) -> int:
        return 1000 * self.kv_bytes_per_token

    @property
    def state_bytes(self) -> int:
        return self.recurrent_state_bytes + self.conv_state_bytes

    def required_memory(self, precision: str, num_tokens: int = FIT_TOKENS) -> int:
        """Bytes to run the model at `precision` on one sequence of `num_tokens` tokens."""
        cache = num_tokens * self.kv_bytes_per_token + self.state_bytes
        return self.memory[precision] + cache + RUNTIME_BYTES

    def fits(self, available: int) -> tuple[str, ...]:
        """The precisions at which `available` bytes are enough, the most exact first."""
        return tuple(name for name in self.memory if self.required_memory(name) <= available)


def measure(config: ModelConfig) -> Footprint:
    """The footprint of the model that `config` describes."""
    parameters = count_parameters(config)
    num_full = config.layer_types.count("full_attention")
    recurrent, conv = _state_bytes(config)
    return Footprint(
        parameters=parameters,
        active_parameters=count_active_parameters(config),
        memory={
            **{name: parameters * size for name, size in PRECISION_BYTES.items()},
            **{name: quantized_bytes(config, quantization) for name, quantization in QUANTIZATIONS.items()},
        },
        kv_bytes_per_token=num_full * 2 * config.num_key_value_heads * config.head_dim * KV_BYTES,
        recurrent_state_bytes=recurrent,
        conv_state_bytes=conv,
    )


def quantized_bytes(config: ModelConfig, quantization: QuantizationConfig, other_bytes: int = 2) -> int:
    """Bytes of the model's weights when its matrices are packed; a parameter of the others takes `other_bytes`."""
    num_packed = total = 0
    for matrix in _matrices(config):
        num_packed += matrix.count * matrix.num_rows * matrix.num_columns
        total += matrix.count * _packed_bytes(matrix, quantization)
    return total + (count_parameters(config) - num_packed) * other_bytes


def quantized_expert_bytes(config: ModelConfig, quantization: QuantizationConfig) -> int:
    """The share of `quantized_bytes` of the experts: of this, a token needs no more than its router chooses."""
    layers = range(config.num_hidden_layers)
    matrices = (matrix for layer in layers for matrix in _expert_matrices(config, layer))
    return sum(matrix.count * _packed_bytes(matrix, quantization) for matrix in matrices)


@dataclass(frozen=True)
class _Matrices:
    """Some matrices of one shape, which quantising packs; `name` is that of the weight, if it is known by one."""

    count: int
    num_rows: int
    num_columns: int
    name: str = ""


def _packed_bytes(matrix: _Matrices, quantization: QuantizationConfig) -> int:
    """Rows and columns are padded as `kernels/packed_matrix.py` pads them."""
    packed = quantization.format_of(matrix.name)
    group_size = min(packed.group_size, _round_up(matrix.num_columns, 32))
    rows, columns = _round_up(matrix.num_rows, BLOCK_ROWS), _round_up(matrix.num_columns, group_size)
    scales = rows * columns // group_size * (1 if packed.symmetric else 2)
    return rows * columns * packed.bits // 8 + scales * SCALE_BYTES


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _matrices(config: ModelConfig) -> Iterator[_Matrices]:
    """What `models/quantized.py` packs: projections, experts, embedding and head, but no router and no gate."""
    num_heads = 1 if config.tie_word_embeddings else 2
    yield _Matrices(num_heads, config.vocab_size, config.hidden_size, "model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        yield from _mixer_matrices(config, layer)
        yield from _feed_forward_matrices(config, layer)


def _mixer_matrices(config: ModelConfig, layer: int) -> Iterator[_Matrices]:
    linear = config.linear_attention
    if config.layer_types[layer] == "full_attention":
        query = config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        yield _Matrices(1, query * (2 if config.is_hybrid else 1), config.hidden_size)
        yield _Matrices(2, key, config.hidden_size)
        yield _Matrices(1, config.hidden_size, query)
    elif linear is not None:
        yield _Matrices(1, 2 * (linear.key_dim + linear.value_dim), config.hidden_size)
        yield _Matrices(1, config.hidden_size, linear.value_dim)


def _feed_forward_matrices(config: ModelConfig, layer: int) -> Iterator[_Matrices]:
    moe = config.moe
    if moe is None or not config.is_moe_layer(layer):
        yield _Matrices(2, config.intermediate_size, config.hidden_size)
        yield _Matrices(1, config.hidden_size, config.intermediate_size)
        return
    yield from _expert_matrices(config, layer)
    if moe.shared_expert_intermediate_size:
        yield _Matrices(2, moe.shared_expert_intermediate_size, config.hidden_size)
        yield _Matrices(1, config.hidden_size, moe.shared_expert_intermediate_size)


def _expert_matrices(config: ModelConfig, layer: int) -> Iterator[_Matrices]:
    moe = config.moe
    if moe is not None and config.is_moe_layer(layer):
        yield _Matrices(moe.num_experts, 2 * moe.moe_intermediate_size, config.hidden_size)
        yield _Matrices(moe.num_experts, config.hidden_size, moe.moe_intermediate_size)


def _state_bytes(config: ModelConfig) -> tuple[int, int]:
    """Recurrent state [H, K, V] and conv window [W - 1, C] of all Gated DeltaNet layers, for one sequence."""
    linear = config.linear_attention
    if linear is None:
        return 0, 0
    num_linear = config.layer_types.count("linear_attention")
    recurrent = linear.num_value_heads * linear.key_head_dim * linear.value_head_dim
    conv = (linear.conv_kernel_dim - 1) * linear.conv_channels
    return num_linear * recurrent * STATE_BYTES, num_linear * conv * STATE_BYTES


def count_parameters(config: ModelConfig) -> int:
    """Every parameter of the checkpoint."""
    layers = (_mixer(config, layer) + _feed_forward(config, layer) for layer in range(config.num_hidden_layers))
    return _outside_layers(config) + sum(layers)


def count_active_parameters(config: ModelConfig) -> int:
    """The parameters that one token meets: all but the experts it is not routed to."""
    moe = config.moe
    if moe is None:
        return count_parameters(config)
    num_moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    idle = moe.num_experts - moe.num_experts_per_tok
    return count_parameters(config) - num_moe_layers * idle * _expert(config, moe)


def _outside_layers(config: ModelConfig) -> int:
    embedding = config.vocab_size * config.hidden_size
    return (1 if config.tie_word_embeddings else 2) * embedding + config.hidden_size


def _mixer(config: ModelConfig, layer: int) -> int:
    norms = 2 * config.hidden_size  # before the mixer and before the feed-forward
    if config.layer_types[layer] == "full_attention":
        return norms + _attention(config)
    return norms + _gated_deltanet(config)


def _attention(config: ModelConfig) -> int:
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    projected = query * (2 if config.is_hybrid else 1) + 2 * key  # the hybrid's query comes with its output gate
    bias = projected + config.hidden_size if config.attention_bias else 0
    return config.hidden_size * (projected + query) + bias + 2 * config.head_dim


def _gated_deltanet(config: ModelConfig) -> int:
    linear = config.linear_attention
    if linear is None:
        raise ValueError("a linear_attention layer without linear_attention settings")
    projections = 2 * linear.key_dim + 2 * linear.value_dim + 2 * linear.num_value_heads
    conv = linear.conv_channels * linear.conv_kernel_dim
    decay = 2 * linear.num_value_heads
    output = linear.value_dim * config.hidden_size + linear.value_head_dim
    return config.hidden_size * projections + conv + decay + output


def _feed_forward(config: ModelConfig, layer: int) -> int:
    moe = config.moe
    if moe is None or not config.is_moe_layer(layer):
        return 3 * config.hidden_size * config.intermediate_size
    router = config.hidden_size * moe.num_experts
    return router + moe.num_experts * _expert(config, moe) + _shared_expert(config, moe)


def _expert(config: ModelConfig, moe: MoeConfig) -> int:
    return 3 * config.hidden_size * moe.moe_intermediate_size


def _shared_expert(config: ModelConfig, moe: MoeConfig) -> int:
    size = moe.shared_expert_intermediate_size
    gate = config.hidden_size if size else 0
    return 3 * config.hidden_size * size + gate


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that a new process may use without swapping: what is free, within the limits of its control groups."""
    return min(_system_available(root), *_cgroup_headroom(root), sys.maxsize)


def _read(path: Path) -> str:
    """The text of a file of the kernel's, empty where this system has none or does not show it."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _system_available(root: Path) -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    if sys.platform == "darwin":
        report = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=True)
        return parse_vm_stat(report.stdout)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parse_vm_stat(report: str) -> int:
    """Bytes that macOS can hand out at once, from the output of `vm_stat`."""
    page_size = re.search(r"page size of (\d+) bytes", report)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)", report, re.MULTILINE)
    return sum(map(int, pages)) * (int(page_size[1]) if page_size else 4096)


def _cgroup_headroom(root: Path) -> Iterator[int]:
    """What each control group of this process, and each of their parents, still allows (cgroup v1 and v2)."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.lstrip("/")
            ancestors = [folder for folder in group.parents if folder.is_relative_to(mount)]
            for folder in (group, *ancestors):
                yield from _folder_headroom(folder)


def _folder_headroom(folder: Path) -> Iterator[int]:
    limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    usage = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    if limit and usage and limit.strip() != "max":
        yield max(0, int(limit) - int(usage) + _reclaimable(folder))


def _reclaimable(folder: Path) -> int:
    """Page cache counts as usage but is given back on demand."""
    counts = re.findall(r"^(?:total_)?inactive_file (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
    return max(map(int, counts), default=0)
