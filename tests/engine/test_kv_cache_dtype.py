"""An engine whose KV cache is of another dtype than its model, held to plain generation over such a cache."""

import random

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.engine.memory import kv_bytes_per_token, state_bytes
from codemill.errors import UsageError
from codemill.kernels import kv_cache, paged_attention
from engine.harness import LONGEST, Harness, Plain, drive, random_options
from models.reference import make_ours

PARAMS = SamplingParams(max_tokens=10, ignore_eos=True)
PROMPT = [[7, 8, 9, 10, 11] * 14]  # 70 tokens


def int8_harness(reference, tokenizer, rng) -> Harness:
    """An integer more or less is no rounding error to look past: batch invariance makes the outputs equal."""
    model = make_ours(reference)
    model.set_batch_invariant(True)
    options = random_options(rng, model)
    tokens = int(LONGEST * rng.choice([1.0, 1.3, 4.0]))
    budget = max(tokens * kv_bytes_per_token(model.config, torch.int8), 5 * state_bytes(model.config, model.dtype))
    options |= {"kv_cache_dtype": "int8", "batch_invariant": True, "kv_cache_bytes": 2 * budget}
    return Harness(Plain(model, tokenizer, torch.int8), options)


@pytest.mark.parametrize("seed", range(4))
def test_equals_plain_generation_over_an_int8_cache(reference, tokenizer, seed):
    """Prefixes that are reused, chunks, preemption, drafts that are taken back, in any company."""
    rng = random.Random(seed)
    harness = int8_harness(reference, tokenizer, rng)
    drive(harness, rng, 8)
    assert harness.num_ties == 0


def test_without_the_kernel(reference, tokenizer, monkeypatch):
    for module in (paged_attention, kv_cache):
        monkeypatch.setattr(module, "load_cpu_library", lambda: None)
    rng = random.Random(7)
    harness = int8_harness(reference, tokenizer, rng)
    drive(harness, rng, 4)
    assert harness.num_ties == 0


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "float32", "int8"])
def test_a_prompt_on_disk_is_found_in_the_same_dtype_only(reference, tokenizer, tmp_path, kv_cache_dtype):
    def open_llm(dtype: str) -> LLM:
        return LLM.from_parts(
            make_ours(reference), tokenizer, block_size=8, prefix_cache_dir=tmp_path, kv_cache_dtype=dtype
        )

    first = open_llm(kv_cache_dtype)
    (before,) = first.generate(PROMPT, PARAMS)
    first.close()
    (again,) = open_llm(kv_cache_dtype).generate(PROMPT, PARAMS)
    assert (again.outputs, again.metrics.num_cached_tokens) == (before.outputs, 64)
    other = "bfloat16" if kv_cache_dtype == "int8" else "int8"
    assert open_llm(other).generate(PROMPT, PARAMS)[0].metrics.num_cached_tokens == 0


def test_sleep_and_wake(reference, tokenizer):
    llm = LLM.from_parts(make_ours(reference), tokenizer, kv_cache_dtype="int8")
    (before,) = llm.generate(PROMPT, PARAMS)
    llm.sleep()
    llm.wake()
    (after,) = llm.generate(PROMPT, PARAMS)
    assert (after.outputs, after.metrics.num_cached_tokens) == (before.outputs, 0)


def test_an_unknown_dtype_is_one_line(dense_llm):
    with pytest.raises(UsageError, match="kv_cache_dtype = 'int4': choose auto, float32, bfloat16, int8"):
        LLM.from_parts(dense_llm.model, dense_llm.tokenizer, kv_cache_dtype="int4")
