"""The plan of the memory beside what is then allocated, and what happens when there is far too little.

Bytes are those of tensors without data, on the meta device.
"""

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill import LLM, SamplingParams
from codemill.engine import memory
from codemill.engine.build import build_engine
from codemill.engine.memory import CachePlan, kv_bytes_per_token, plan_cache, state_bytes
from codemill.engine_config import KV_CACHE_DTYPES, EngineConfig, SpeculativeConfig
from codemill.errors import UsageError
from codemill.footprint import measure
from codemill.models import initialize as draw_weights
from codemill.models.cache import Cache, LinearState
from codemill.models.skeleton import build_mtp, materialize
from codemill.presets import PRESETS
from engine.conftest import VOCAB_SIZE
from engine.harness import Harness, Plain
from models.reference import make_ours, make_reference

CPU = torch.device("cpu")
GIB = 2**30
LONGEST = 32768
PRESET = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
DENSE, HYBRID = PRESETS["qwen3-0.6b"].config, PRESETS["qwen3-coder-next"].config


def plan(config=DENSE, budget=GIB, longest=LONGEST, must_fit=False, dtype=torch.bfloat16, draft=0, **options):
    engine = EngineConfig(kv_cache_bytes=budget, **options)
    return plan_cache(config, dtype, CPU, engine, longest, must_fit=must_fit, draft_bytes_per_token=draft)


def allocated_bytes(config, planned: CachePlan, dtype=torch.bfloat16, kv_dtype=None) -> int:
    shape = planned.shape
    sizes = (shape.num_blocks, shape.block_size, shape.num_states)
    return num_bytes(Cache.allocate_blocks(config, *sizes, dtype, "meta", kv_dtype))


def num_bytes(cache: Cache) -> int:
    tensors = []
    for layer in cache.layers:
        tensors += [layer.recurrent, layer.conv] if isinstance(layer, LinearState) else layer.tensors.values()
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
    kv_cache_dtype=st.sampled_from(KV_CACHE_DTYPES),
    reuse=st.booleans(),
    draft=st.booleans(),
)
def test_nothing_beyond_the_budget(
    preset, budget, block_size, max_num_seqs, checkpoints, longest, dtype, kv_cache_dtype, reuse, draft
):
    drafting = DENSE if draft else None
    kv_dtype = dtype if kv_cache_dtype == "auto" else getattr(torch, kv_cache_dtype)
    options = {"block_size": block_size, "max_num_seqs": max_num_seqs, "state_interval": block_size * 4}
    options |= {"max_state_checkpoints": checkpoints, "enable_prefix_cache": reuse, "kv_cache_dtype": kv_cache_dtype}
    per_draft = 0 if drafting is None else kv_bytes_per_token(drafting, kv_dtype)
    try:
        planned = plan(preset.config, budget, longest, dtype=dtype, draft=per_draft, **options)
    except UsageError:
        return  # too little for anything
    shape = planned.shape
    used = allocated_bytes(preset.config, planned, dtype, kv_dtype)
    if drafting is not None:
        used += allocated_bytes(drafting, planned, dtype, kv_dtype)
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


def test_int8_holds_almost_twice_as_many_tokens():
    """A scale of 4 bytes beside 128 integers."""
    ratio = plan(kv_cache_dtype="int8").shape.num_blocks / plan().shape.num_blocks
    assert 256 / 132 * 0.999 < ratio < 256 / 132 * 1.001


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
    with pytest.raises(UsageError, match=r"a cache of \d+ bytes holds no sequence: give at least \d+ kv_cache_bytes"):
        plan(preset.config, 1000)


def test_a_context_that_was_asked_for_has_to_fit():
    per_token = kv_bytes_per_token(DENSE, torch.bfloat16)
    said = r"the KV cache holds \d+ tokens; give at most that, or at least 3758096384 kv_cache_bytes"
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


@pytest.mark.parametrize("method", ["draft", "mtp"])
def test_an_engine_that_drafts_keeps_to_the_budget(method):
    model = make_ours(make_reference("qwen3_next" if method == "mtp" else "qwen3_moe", vocab_size=VOCAB_SIZE))
    network = make_ours(make_reference("qwen3", num_hidden_layers=3, vocab_size=VOCAB_SIZE))
    if method == "mtp":
        network = build_mtp(model.config, torch.float32)
        materialize(network, CPU)
        draw_weights(network, seed=1)
    speculative = SpeculativeConfig(method, draft_model="given" if method == "draft" else None)
    for budget in (200_000, 1_000_000, 3_000_001):
        built = build_engine(model, EngineConfig(kv_cache_bytes=budget, speculative=speculative), draft=network)
        used = sum(num_bytes(cache) for cache in built.engine._memory)
        assert budget / 2 < used <= budget


# Pressure


def short_of_memory(oracle: Plain, num_tokens: int, num_states: int, **options) -> Harness:
    """An engine with room for so many tokens and states."""
    config, dtype = oracle.model.config, oracle.model.dtype
    budget = num_tokens * kv_bytes_per_token(config, dtype) + num_states * state_bytes(config, dtype)
    return Harness(oracle, {"kv_cache_bytes": budget, "max_num_batched_tokens": 128, **options})


@pytest.mark.parametrize("max_tokens", [10, 60], ids=["long prompts", "long outputs"])
def test_a_fifth_of_the_memory_is_enough(reference, tokenizer, max_tokens):
    """Everything finishes with the output of plain generation, and no block exists beyond the budget."""
    rng = random.Random(max_tokens)
    prompts = [tuple(rng.choices(range(VOCAB_SIZE), k=100 - max_tokens)) for _ in range(20)]
    oracle = Plain(make_ours(reference), tokenizer)
    harness = short_of_memory(oracle, 20 * 100 // 5, num_states=8, max_num_seqs=20, block_size=8)
    cache = harness.engine.cache
    if cache.states is None:
        assert cache.blocks.num_blocks == 20 * 100 // 5 // 8
    allocated = sum(num_bytes(each) for each in harness.engine._memory)
    assert allocated <= harness.options["kv_cache_bytes"]
    for prompt in prompts:
        harness.add(prompt, max_tokens, ignore_eos=False)
    harness.finish()
    assert sum(num_bytes(each) for each in harness.engine._memory) == allocated
    assert harness.num_ties <= 1
    if cache.states is None:
        assert harness.most_used >= 0.9 * cache.blocks.num_blocks, "it is short indeed"
        assert max_tokens < 60 or harness.engine.metrics.preemptions > 0


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what Linux says of the process")
def test_memory_stays_flat_over_two_thousand_requests(dense_llm):
    """Requests that share beginnings and requests that do not, drafts, aborts and evictions."""
    rng = random.Random(0)
    budget = 600 * kv_bytes_per_token(dense_llm.model.config, torch.float32)
    llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer, kv_cache_bytes=budget, speculative="ngram")
    shared = rng.choices(range(VOCAB_SIZE), k=60)
    sizes = []
    for _ in range(100):
        prompts = [[*shared[: rng.randint(0, 60)], *rng.choices(range(VOCAB_SIZE), k=20)] for _ in range(18)]
        llm.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True))
        for _ in range(2):
            next(llm.stream(rng.choice(prompts), SamplingParams(max_tokens=8, ignore_eos=True)))
        sizes.append(resident_bytes())
    half = len(sizes) // 2
    assert max(sizes[half:]) - max(sizes[:half]) < 2**20
    assert llm.engine.is_idle
    assert llm.engine.cache.blocks.num_used == 0
