"""The plan of the memory beside what is then allocated: the bytes of tensors without data, on the meta device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.engine import memory
from codemill.engine.memory import CachePlan, kv_bytes_per_token, plan_cache, state_bytes
from codemill.engine_config import EngineConfig
from codemill.errors import UsageError
from codemill.footprint import measure
from codemill.models.cache import Cache, LinearState
from codemill.presets import PRESETS

CPU = torch.device("cpu")
GIB = 2**30
LONGEST = 32768
PRESET = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
DENSE, HYBRID = PRESETS["qwen3-0.6b"].config, PRESETS["qwen3-coder-next"].config


def plan(config=DENSE, budget=GIB, longest=LONGEST, must_fit=False, dtype=torch.bfloat16, draft=0, **options):
    engine = EngineConfig(kv_cache_bytes=budget, **options)
    return plan_cache(config, dtype, CPU, engine, longest, must_fit=must_fit, draft_bytes_per_token=draft)


def allocated_bytes(config, planned: CachePlan, dtype=torch.bfloat16) -> int:
    shape = planned.shape
    cache = Cache.allocate_blocks(config, shape.num_blocks, shape.block_size, shape.num_states, dtype, "meta")
    tensors = []
    for layer in cache.layers:
        tensors += [layer.recurrent, layer.conv] if isinstance(layer, LinearState) else [layer.key, layer.value]
    return sum(tensor.nbytes for tensor in tensors)


@PRESET
@settings(max_examples=25, deadline=None)
@given(
    budget=st.integers(1, 64 * GIB),
    block_size=st.sampled_from([1, 16, 100]),
    max_num_seqs=st.integers(1, 64),
    checkpoints=st.sampled_from([None, 1, 7, 200]),
    longest=st.integers(2, 262_144),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    reuse=st.booleans(),
    draft=st.booleans(),
)
def test_nothing_beyond_the_budget(
    preset, budget, block_size, max_num_seqs, checkpoints, longest, dtype, reuse, draft
):
    drafting = DENSE if draft else None
    options = {"block_size": block_size, "max_num_seqs": max_num_seqs, "state_interval": block_size * 4}
    options |= {"max_state_checkpoints": checkpoints, "enable_prefix_cache": reuse}
    per_draft = 0 if drafting is None else kv_bytes_per_token(drafting, dtype)
    try:
        planned = plan(preset.config, budget, longest, dtype=dtype, draft=per_draft, **options)
    except UsageError as error:
        assert "holds no sequence" in str(error)
        return
    shape = planned.shape
    used = allocated_bytes(preset.config, planned, dtype)
    if drafting is not None:
        used += allocated_bytes(drafting, planned, dtype)
    assert 0 < used <= budget
    assert 1 <= shape.max_num_seqs <= max_num_seqs
    assert 1 <= planned.max_model_len <= min(longest, shape.num_tokens)
    is_hybrid = preset.config.linear_attention is not None
    assert (shape.num_states > 0) == is_hybrid
    assert not is_hybrid or shape.num_states >= shape.max_num_seqs
    assert shape.num_blocks <= max_num_seqs * (longest + block_size)


@PRESET
def test_bytes_are_those_of_the_footprint(preset):
    """In bf16, which the published figures count in."""
    found = measure(preset.config)
    assert kv_bytes_per_token(preset.config, torch.bfloat16) == found.kv_bytes_per_token
    recurrent, conv = found.recurrent_state_bytes, found.conv_state_bytes
    assert state_bytes(preset.config, torch.float32) == recurrent + conv
    assert state_bytes(preset.config, torch.bfloat16) == recurrent + conv // 2


@PRESET
def test_the_budget_is_used(preset):
    """Up to a block, or a slot and a block, unless everything wanted fits."""
    planned = plan(preset.config, 20 * GIB, max_num_seqs=64)
    per_block = 16 * kv_bytes_per_token(preset.config, torch.bfloat16)
    assert 20 * GIB - allocated_bytes(preset.config, planned) < per_block


def test_no_more_than_is_of_use():
    shape = plan(budget=64 * GIB, longest=100, max_num_seqs=3).shape
    assert (shape.num_blocks, shape.block_size) == (3 * 7, 16)
    shape = plan(HYBRID, 64 * GIB, longest=100, max_num_seqs=3, max_state_checkpoints=5).shape
    assert (shape.num_blocks, shape.num_states, shape.max_num_seqs) == (21, 8, 3)
    shape = plan(HYBRID, 64 * GIB, longest=100, max_num_seqs=3, enable_prefix_cache=False).shape
    assert shape.num_states == 3


def test_without_checkpoints_every_slot_is_for_a_sequence():
    """Half the slots are for checkpoints only where there may be any."""
    shape = plan(HYBRID, 2 * GIB, max_num_seqs=32, enable_prefix_cache=False).shape
    assert 1 < shape.num_states < 32
    assert shape.max_num_seqs == shape.num_states


def test_no_more_checkpoints_than_asked_for():
    shape = plan(HYBRID, 2 * GIB, max_num_seqs=32, max_state_checkpoints=2).shape
    assert shape.num_states < 34
    assert shape.num_states - shape.max_num_seqs <= 2


def test_a_budget_for_one_state_and_one_block_is_enough():
    per_block = 16 * kv_bytes_per_token(HYBRID, torch.bfloat16)
    budget = state_bytes(HYBRID, torch.bfloat16) + per_block
    assert plan(HYBRID, budget).shape.num_blocks == 1


@PRESET
def test_too_little_is_one_line_that_says_what_to_do(preset):
    with pytest.raises(UsageError, match=r"a cache of 0.00 GiB holds no sequence: give more kv_cache_bytes"):
        plan(preset.config, 1000)


def test_a_context_that_was_asked_for_has_to_fit():
    per_token = kv_bytes_per_token(DENSE, torch.bfloat16)
    said = r"max_model_len = 32768: its KV cache takes 3.50 GiB, and the budget is 1.00 GiB, which holds \d+ tokens"
    with pytest.raises(UsageError, match=said):
        plan(must_fit=True)
    assert plan(budget=LONGEST * per_token, must_fit=True).max_model_len == LONGEST
    with pytest.raises(UsageError):
        plan(budget=LONGEST * per_token - 1, must_fit=True)


def test_without_the_wish_the_context_is_what_fits():
    assert plan().max_model_len == GIB // (16 * kv_bytes_per_token(DENSE, torch.bfloat16)) * 16


@pytest.mark.parametrize("available", [2 * GIB, 8 * GIB])
def test_the_default_is_a_part_of_what_is_free(monkeypatch, available):
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    planned = plan(budget=None, longest=40960)
    used = allocated_bytes(DENSE, planned)
    assert available * 0.39 < used <= available * memory.CPU_SHARE


def test_a_draft_model_pays_for_its_part():
    per_token = kv_bytes_per_token(DENSE, torch.bfloat16)
    assert plan(draft=per_token).shape.num_blocks == plan().shape.num_blocks // 2
