"""The published models' shapes, their sizes, and the memory of a machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.config import LinearAttentionConfig, ModelConfig, MoeConfig, QuantizationConfig, RopeConfig
from codemill.errors import UsageError
from codemill.footprint import (
    RUNTIME_BYTES,
    available_memory,
    count_active_parameters,
    count_parameters,
    measure,
    parse_vm_stat,
    quantized_bytes,
)
from codemill.presets import PRESETS, find_preset

# Billions of parameters, in all and for one token, as published.
PUBLISHED = {
    "qwen3-0.6b": (0.596, 0.596),
    "qwen3-1.7b": (1.721, 1.721),
    "qwen3-4b": (4.022, 4.022),
    "qwen3-8b": (8.191, 8.191),
    "qwen3-14b": (14.768, 14.768),
    "qwen3-32b": (32.762, 32.762),
    "qwen3-30b-a3b": (30.532, 3.353),
    "qwen3-235b-a22b": (235.094, 22.191),
    "qwen3-coder-30b-a3b": (30.532, 3.353),
    "qwen3-coder-480b-a35b": (480.155, 35.475),
    "qwen3-next-80b-a3b": (79.674, 3.875),
    "qwen3-coder-next": (79.674, 3.875),
}


def test_every_published_model_has_a_preset() -> None:
    assert list(PRESETS) == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_figures(name: str) -> None:
    config = PRESETS[name].config
    assert round(count_parameters(config) / 1e9, 3) == PUBLISHED[name][0]
    assert round(count_active_parameters(config) / 1e9, 3) == PUBLISHED[name][1]


@pytest.mark.parametrize("name", PRESETS)
def test_the_formula_counts_what_the_network_holds(name: str) -> None:
    assert count_parameters(PRESETS[name].config) == parameters_on_meta(PRESETS[name].config)


ODD_SHAPES = {
    "tied, wide heads": {"tie_word_embeddings": True, "head_dim": 48},
    "attention bias": {"attention_bias": True},
    "experts in every second layer": {
        "model_type": "qwen3_moe",
        "moe": MoeConfig(6, 3, 20, decoder_sparse_step=2),
    },
    "experts with a dense layer": {"model_type": "qwen3_moe", "moe": MoeConfig(6, 3, 20, mlp_only_layers=(1,))},
    "hybrid without shared expert": {
        "model_type": "qwen3_next",
        "layer_types": ("linear_attention", "full_attention", "linear_attention"),
        "moe": MoeConfig(6, 3, 20),
        "linear_attention": LinearAttentionConfig(2, 6, key_head_dim=8, value_head_dim=12, conv_kernel_dim=3),
    },
}


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_the_formula_holds_for_other_shapes(shape: str) -> None:
    config = odd_config(shape)
    assert count_parameters(config) == parameters_on_meta(config)


def odd_config(shape: str) -> ModelConfig:
    base: dict[str, Any] = {
        "model_type": "qwen3",
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 40,
        "rope": RopeConfig(1e4),
        "layer_types": ("full_attention",) * 3,
    }
    return ModelConfig(**{**base, **ODD_SHAPES[shape]})


def parameters_on_meta(config: ModelConfig) -> int:
    import torch

    from codemill.models import CausalLM

    with torch.device("meta"):
        model = CausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_active_parameters_leave_out_only_idle_experts() -> None:
    config = PRESETS["qwen3-30b-a3b"].config
    idle = 48 * (128 - 8) * 3 * 2048 * 768
    assert count_parameters(config) - count_active_parameters(config) == idle


QUANTIZATIONS = ("int4", "int8", "int4:g64:asym", "int8:asym", "int4:head8")


def quantized_on_meta(config: ModelConfig, quantization: QuantizationConfig) -> int:
    """Bytes of the network's parameters, which are those that are written to disk."""
    import torch

    from codemill.models.quantized import pack_modules
    from codemill.models.skeleton import build

    model = build(config, torch.bfloat16)
    pack_modules(model, quantization.format_of)
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "qwen3-coder-30b-a3b", "qwen3-coder-next"])
def test_quantised_sizes_are_those_of_the_network(name: str, quantization: str) -> None:
    config, packed = PRESETS[name].config, QuantizationConfig.parse(quantization)
    assert quantized_bytes(config, packed) == quantized_on_meta(config, packed)


@pytest.mark.parametrize("name", PRESETS)
def test_memory_by_precision(name: str) -> None:
    config, memory = PRESETS[name].config, measure(PRESETS[name].config).memory
    assert [memory[key] / count_parameters(config) for key in ("fp32", "bf16", "fp8")] == [4, 2, 1]
    assert memory["int4"] == quantized_on_meta(config, QuantizationConfig(4))
    assert memory["int8"] == quantized_on_meta(config, QuantizationConfig(8))
    assert 4.5 <= 8 * memory["int4"] / count_parameters(config) < 4.6
    assert 8.5 <= 8 * memory["int8"] / count_parameters(config) < 8.6


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_quantised_sizes_of_other_shapes(shape: str, quantization: str) -> None:
    config, packed = odd_config(shape), QuantizationConfig.parse(quantization)
    assert quantized_bytes(config, packed) == quantized_on_meta(config, packed)


def test_kv_cache_of_the_smallest_model() -> None:
    footprint = measure(PRESETS["qwen3-0.6b"].config)
    assert footprint.kv_bytes_per_token == 28 * 2 * 8 * 128 * 2
    assert footprint.kv_bytes_per_1k_tokens == 114_688_000
    assert footprint.state_bytes == 0


def test_state_of_coder_next_is_the_published_one() -> None:
    footprint = measure(PRESETS["qwen3-coder-next"].config)
    assert footprint.recurrent_state_bytes == 75_497_472
    assert footprint.conv_state_bytes == 3_538_944
    assert footprint.kv_bytes_per_token == 12 * 2 * 2 * 256 * 2


def test_the_sizes_agree_with_the_cache_that_the_network_allocates() -> None:
    import torch

    from codemill.models import Cache

    config = PRESETS["qwen3-coder-next"].config
    footprint = measure(config)
    cache = Cache.allocate(config, batch_size=1, capacity=10, dtype=torch.bfloat16, device="meta")
    by_dtype = {torch.float32: 0, torch.bfloat16: 0}
    for layer in cache.layers:
        for tensor in filter(lambda value: value is not None, vars(layer).values()):  # a bf16 cache has no scales
            by_dtype[tensor.dtype] += tensor.nbytes
    assert by_dtype[torch.float32] == footprint.recurrent_state_bytes
    # The conv window is counted in fp32; a bf16 model keeps it in bf16.
    assert by_dtype[torch.bfloat16] == 10 * footprint.kv_bytes_per_token + footprint.conv_state_bytes // 2


def test_fits_weighs_weights_cache_and_program() -> None:
    footprint = measure(PRESETS["qwen3-0.6b"].config)
    needed = footprint.memory["bf16"] + 4096 * footprint.kv_bytes_per_token + RUNTIME_BYTES
    assert footprint.required_memory("bf16") == needed
    assert footprint.fits(needed) == ("bf16", "fp8", "int8", "int4")
    assert footprint.fits(needed - 1) == ("fp8", "int8", "int4")
    assert footprint.fits(0) == ()


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "QWEN3-0.6B", " qwen3-0.6b ", "Qwen/Qwen3-0.6B"])
def test_lookup_ignores_case_and_takes_hub_ids(name: str) -> None:
    assert find_preset(name) is PRESETS["qwen3-0.6b"]


def test_hub_ids_are_the_published_ones() -> None:
    assert PRESETS["qwen3-coder-30b-a3b"].hub_id == "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    assert PRESETS["qwen3-coder-next"].hub_id == "Qwen/Qwen3-Coder-Next"


def test_a_near_miss_names_the_closest() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*qwen3-coder-30b-a3b"):
        find_preset("qwen3-coder-30b")


def test_a_far_miss_lists_all() -> None:
    with pytest.raises(UsageError, match=r"choose one of qwen3-0\.6b, .*qwen3-coder-next"):
        find_preset("gpt-2")


def test_a_preset_with_fewer_layers() -> None:
    whole = PRESETS["qwen3-coder-next"]
    fewer = find_preset("Qwen3-Coder-Next:num_hidden_layers=6")
    assert fewer.config.layer_types == ("linear_attention",) * 3 + ("full_attention",) + ("linear_attention",) * 2
    assert fewer.config == replace(whole.config, num_hidden_layers=6, layer_types=fewer.config.layer_types)
    assert fewer.name == "qwen3-coder-next:num_hidden_layers=6"


@pytest.mark.parametrize("change", ["", "8", "num_hidden_layers=0", "num_hidden_layers=29", "hidden_size=64"])
def test_nothing_else_of_a_preset_can_be_changed(change: str) -> None:
    with pytest.raises(UsageError, match="num_hidden_layers=N, with N from 1 to 28"):
        find_preset(f"qwen3-0.6b:{change}")


def test_this_machine_has_memory() -> None:
    assert 100_000_000 < available_memory() < 2**50


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal: 2000 kB\nMemFree: 100 kB\nMemAvailable:    1000 kB\n"


def test_memory_without_control_groups(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO})
    assert available_memory(tmp_path) == 1_024_000


def test_memory_within_a_v2_group_counts_page_cache_as_free(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/task"
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/user/task\n",
            f"{group}/memory.max": "600000\n",
            f"{group}/memory.current": "500000\n",
            f"{group}/memory.stat": "anon 1\ninactive_file 40000\n",
        },
    )
    assert available_memory(tmp_path) == 140_000


def test_memory_within_a_limited_parent(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/user/task\n",
            "sys/fs/cgroup/user/task/memory.max": "max\n",
            "sys/fs/cgroup/user/task/memory.current": "5\n",
            "sys/fs/cgroup/user/memory.max": "300000\n",
            "sys/fs/cgroup/user/memory.current": "100000\n",
        },
    )
    assert available_memory(tmp_path) == 200_000


def test_memory_within_a_v1_group_of_a_container(tmp_path: Path) -> None:
    """The path in /proc is the host's; inside a container only the mount's root exists."""
    mount = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu:/\n",
            f"{mount}/memory.limit_in_bytes": "700000\n",
            f"{mount}/memory.usage_in_bytes": "700001\n",
            f"{mount}/memory.stat": "inactive_file 1\ntotal_inactive_file 11\n",
        },
    )
    assert available_memory(tmp_path) == 10


def test_memory_of_macos() -> None:
    report = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\n"
        "Pages active:                            900.\n"
        "Pages inactive:                            5.\n"
        "Pages speculative:                         1.\n"
    )
    assert parse_vm_stat(report) == 16 * 16384


def test_a_hybrid_has_at_least_one_layer_with_a_kv_cache() -> None:
    assert find_preset("qwen3-coder-next:num_hidden_layers=4").config.layer_types[-1] == "full_attention"
    with pytest.raises(UsageError, match="with N from 4 to 48"):
        find_preset("qwen3-coder-next:num_hidden_layers=3")
