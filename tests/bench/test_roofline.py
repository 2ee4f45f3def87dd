"""Bytes and operations against figures counted by hand, on shapes small enough for that."""

from dataclasses import replace

import pytest

from codemill.bench.roofline import Roofline, WeightFormat, expected_experts
from codemill.config import LinearAttentionConfig, ModelConfig, MoeConfig, RopeConfig
from codemill.engine.memory import kv_bytes_per_token, state_bytes
from codemill.footprint import count_active_parameters, count_parameters
from codemill.models.placement import resolve_dtype
from codemill.presets import PRESETS

DENSE = ModelConfig(
    model_type="qwen3",
    vocab_size=100,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=128,
    rope=RopeConfig(1e6),
    layer_types=("full_attention", "full_attention"),
    tie_word_embeddings=True,
)
# q 64 x 64, k and v 32 x 64, o 64 x 64; gate, up and down 128 x 64
DENSE_LAYER = 4096 + 2 * 2048 + 4096 + 3 * 8192
DENSE_NORMS = 2 * (2 * 64 + 2 * 16) + 64
HEAD = 100 * 64

MOE = replace(
    DENSE,
    model_type="qwen3_moe",
    tie_word_embeddings=False,
    moe=MoeConfig(8, 2, moe_intermediate_size=32, mlp_only_layers=(0,)),
)
EXPERT = 3 * 32 * 64

HYBRID = replace(
    DENSE,
    model_type="qwen3_next",
    layer_types=("linear_attention", "full_attention"),
    linear_attention=LinearAttentionConfig(2, 4, key_head_dim=8, value_head_dim=16),
)
# qkvz: 2 * (16 + 64) x 64, out 64 x 64; the full layer's q has its gate
HYBRID_MATRICES = 160 * 64 + 64 * 64 + (2 * 4096 + 2 * 2048 + 4096) + 2 * 3 * 8192
# ba 8 x 64, conv (16 + 16 + 64) * 4, A_log and dt_bias 4 each, gated norm 16; q and k norm 16 each; two norms a layer
HYBRID_KEPT = 8 * 64 + 96 * 4 + 8 + 16 + 32 + 4 * 64 + 64


def test_a_dense_decode_step_reads_every_weight_once_and_the_cache_of_each_sequence() -> None:
    roofline = Roofline(DENSE)
    weights = 2 * (HEAD + 2 * DENSE_LAYER + DENSE_NORMS)
    assert roofline.weight_bytes == weights
    kv = 2 * 2 * 2 * 16 * 2  # key and value, layers, heads, head_dim, bytes
    assert roofline.decode_bytes(1, 0) == weights
    assert roofline.decode_bytes(3, 10) == weights + 3 * 10 * kv


def test_dense_operations() -> None:
    roofline = Roofline(DENSE)
    token = 2 * (2 * DENSE_LAYER + DENSE_NORMS)
    attention = 2 * 4 * 16 * 2 * 2  # layers, heads, head_dim, two products, multiply and add
    assert roofline.decode_operations(1, 7) == token + 2 * HEAD + 7 * attention
    assert roofline.prefill_operations(5) == 5 * token + 2 * HEAD + (1 + 2 + 3 + 4 + 5) * attention


@pytest.mark.parametrize(
    ("weights", "per_row"),
    [
        (WeightFormat(8, 32), 2 * (32 + 2)),
        (WeightFormat(4, 32), 2 * (16 + 2)),
        (WeightFormat(4, 32, symmetric=False), 2 * (16 + 4)),
        (WeightFormat(4, 64), 32 + 2),
    ],
)
def test_a_packed_matrix_has_scales_and_whole_blocks(weights: WeightFormat, per_row: int) -> None:
    assert weights.matrix_bytes(32, 64) == 32 * per_row
    assert weights.matrix_bytes(100, 64) == 112 * per_row
    assert weights.matrix_bytes(32, 33) == 32 * per_row


def test_a_quantised_model_keeps_its_norms() -> None:
    packed = 112 * 2 * 18 + 2 * DENSE_LAYER * 18 // 32
    assert Roofline(DENSE, WeightFormat(4, 32)).weight_bytes == packed + 2 * DENSE_NORMS


def test_a_step_of_experts_touches_those_that_are_chosen_and_one_row_of_an_untied_embedding() -> None:
    roofline = Roofline(MOE)
    attention = DENSE_LAYER - 3 * 8192
    always = HEAD + 2 * attention + 3 * 8192 + 8 * 64 + DENSE_NORMS
    assert roofline.weight_bytes == 2 * (HEAD + always + 8 * EXPERT)
    assert roofline.touched_weight_bytes(1) == pytest.approx(2 * (always + 2 * EXPERT + 64))
    # Of 8 experts two tokens miss (6/8)^2.
    assert roofline.touched_weight_bytes(2) == pytest.approx(2 * (always + 8 * (1 - 36 / 64) * EXPERT + 2 * 64))
    assert roofline.decode_operations(1, 0) == 2 * (always + 2 * EXPERT)


def test_expected_experts() -> None:
    moe = MoeConfig(128, 8, moe_intermediate_size=768)
    assert expected_experts(moe, 1) == pytest.approx(8)
    assert expected_experts(moe, 10_000) == pytest.approx(128)


def test_a_hybrid_step_reads_and_writes_its_states() -> None:
    roofline = Roofline(HYBRID)
    weights = 2 * (HEAD + HYBRID_MATRICES + HYBRID_KEPT)
    state = 4 * 8 * 16 * 4 + 3 * 96 * 2
    kv = 2 * 1 * 2 * 16 * 2
    assert roofline.weight_bytes == weights
    assert roofline.state_bytes == state
    assert roofline.decode_bytes(2, 10) == weights + 2 * (10 * kv + 2 * state)
    delta_rule = 6 * 4 * 8 * 16
    attention = 4 * 4 * 16  # of the one full-attention layer
    token = 2 * (HYBRID_MATRICES + HYBRID_KEPT) + delta_rule
    assert roofline.decode_operations(1, 3) == token + 2 * HEAD + 3 * attention


@pytest.mark.parametrize("name", PRESETS)
def test_the_counts_are_those_of_the_footprint(name: str) -> None:
    config = PRESETS[name].config
    roofline, dtype = Roofline(config), resolve_dtype("bfloat16", config)
    assert roofline.weight_bytes == 2 * count_parameters(config)
    row = 0 if config.tie_word_embeddings else config.hidden_size
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    active = count_active_parameters(config) - embedding + row
    assert roofline.touched_weight_bytes(1) == pytest.approx(2 * active)
    assert roofline.kv_bytes_per_token == kv_bytes_per_token(config, dtype)
    assert roofline.state_bytes == state_bytes(config, dtype)
