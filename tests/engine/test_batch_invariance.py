"""With `batch_invariant` a request gets the same bits in any company, and however its tokens are computed."""

import random

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.chat import Tokenizer
from codemill.errors import UsageError
from codemill.kernels import paged_attention
from models.reference import FAMILIES, make_ours, make_reference

# Tight memory, small steps, drafts: whatever changes which tokens are computed together.
SETTINGS = [
    {},
    {"max_num_seqs": 1},
    {"max_num_batched_tokens": 7, "max_mixed_tokens": 3, "block_size": 4, "state_interval": 8},
    {"speculative": "ngram", "max_num_batched_tokens": 40},
    {"enable_prefix_cache": False, "kv_cache_bytes": 400_000},
]


def ask(llm: LLM, prompts: list[list[int]], each: list[SamplingParams]) -> list[tuple]:
    """Tokens and log-probabilities of every sample, which are equal only if the logits are."""
    outputs = llm.generate(prompts, each)
    return [(sample.token_ids, sample.logprobs) for output in outputs for sample in output.outputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_do_not_depend_on_the_company(tokenizer, family, dtype):
    assert_same_bits(tokenizer, family, dtype)


def test_nor_do_they_without_the_kernel(tokenizer, monkeypatch):
    monkeypatch.setattr(paged_attention, "load_cpu_library", lambda: None)
    assert_same_bits(tokenizer, "qwen3_moe", torch.float32)


def assert_same_bits(tokenizer: Tokenizer, family: str, dtype: torch.dtype) -> None:
    model = make_ours(make_reference(family, vocab_size=320, hidden_size=64, intermediate_size=96)).to(dtype)
    rng = random.Random(family)
    shared = rng.choices(range(320), k=50)
    prompts = [shared[: rng.randint(0, 50)] + rng.choices(range(320), k=rng.randint(1, 40)) for _ in range(8)]
    each = [
        SamplingParams(max_tokens=rng.randint(1, 20), temperature=t, seed=i, logprobs=0, ignore_eos=True, n=n)
        for i, (t, n) in enumerate([(0.0, 1), (1.0, 1), (0.9, 3), (0.0, 1), (1.5, 2), (0.7, 1), (1.0, 1), (0.0, 1)])
    ]
    alone = LLM.from_parts(model, tokenizer, batch_invariant=True, enable_prefix_cache=False)
    expected = [got for pair in zip(prompts, each, strict=True) for got in ask(alone, [pair[0]], [pair[1]])]
    for settings in SETTINGS:
        together = LLM.from_parts(model, tokenizer, batch_invariant=True, **settings)
        assert ask(together, prompts, each) == expected, settings
        assert ask(together, prompts, each) == expected, f"{settings}, the second time"


def test_it_is_off_unless_asked_for(tokenizer):
    model = make_ours(make_reference("qwen3", vocab_size=320))
    LLM.from_parts(model, tokenizer, batch_invariant=True)
    assert model.is_batch_invariant
    LLM.from_parts(model, tokenizer)
    assert not model.is_batch_invariant


def test_only_the_cpu_promises_it(tokenizer):
    model = make_ours(make_reference("qwen3", vocab_size=320)).to("meta")
    with pytest.raises(UsageError, match="batch_invariant is for the CPU only"):
        LLM.from_parts(model, tokenizer, batch_invariant=True)
