"""Generated tokens: ours = `transformers`, cached = uncached, batched = alone, streamed = whole, for each family."""

import random

import pytest
import torch

from codemill import LLM, SamplingParams

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
NUM_VOCAB = 290  # no control tokens in prompts


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(NUM_VOCAB) for _ in range(length)] for length in lengths]


def generate_ids(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


def reference_ids(reference, prompt: list[int], **settings) -> list[int]:
    input_ids = torch.tensor([prompt])
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **settings}
    output = reference.generate(input_ids, attention_mask=torch.ones_like(input_ids), **settings)
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("penalty", [None, 1.3])
def test_greedy_equals_transformers(reference, llm, penalty):
    prompts = random_prompts([1, 7, 70])
    params = SamplingParams(max_tokens=24, ignore_eos=True, repetition_penalty=penalty)
    expected = [reference_ids(reference, prompt, repetition_penalty=penalty) for prompt in prompts]
    assert generate_ids(llm, prompts, params) == expected
    assert [generate_ids(llm, [prompt], params)[0] for prompt in prompts] == expected


def test_end_of_text_equals_transformers(reference, llm):
    (prompt,) = random_prompts([9])
    eos = reference_ids(reference, prompt)[10]
    expected = reference_ids(reference, prompt, eos_token_id=eos)
    (output,) = llm.generate([prompt], SamplingParams(max_tokens=24, ignore_eos=True, stop_token_ids=[eos]))
    assert output.outputs[0].token_ids == expected
    assert output.outputs[0].finish_reason == "stop"


def test_cached_equals_uncached_and_logprobs_are_of_the_whole_sequence(llm):
    for prompt in random_prompts([1, 30]):
        (result,) = llm.generate([prompt], SamplingParams(max_tokens=20, ignore_eos=True, logprobs=4))
        output = result.outputs[0]
        logits = llm.model(torch.tensor([prompt + output.token_ids]))[0, len(prompt) - 1 : -1]
        assert output.token_ids == logits.argmax(dim=-1).tolist()
        expected = logits.log_softmax(dim=-1)
        assert output.logprobs == pytest.approx(expected.amax(dim=-1).tolist(), abs=1e-4)
        for row, top in zip(expected, output.top_logprobs, strict=True):
            assert top == pytest.approx({i: row[i].item() for i in row.topk(4).indices.tolist()}, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_batched_equals_alone(llm, seed):
    """Unequal lengths, and rows that leave the batch one after the other."""
    source = random.Random(seed)
    prompts = random_prompts([source.choice([1, 2, 5, 40, 63, 64, 65, 90]) for _ in range(6)], seed)
    each = [
        SamplingParams(
            max_tokens=source.randint(1, 20),
            ignore_eos=True,
            temperature=source.choice([0.0, 0.0, 1.0]),
            repetition_penalty=source.choice([1.0, 1.2]),
            seed=seed,
        )
        for _ in prompts
    ]
    together = [output.outputs[0].token_ids for output in llm.generate(prompts, each)]
    alone = [generate_ids(llm, [prompt], params)[0] for prompt, params in zip(prompts, each, strict=True)]
    assert together == alone
    assert [len(ids) for ids in together] == [params.max_tokens for params in each]


@pytest.mark.parametrize("options", [
    {"max_num_batched_tokens": 1}, {"max_num_batched_tokens": 35, "max_mixed_tokens": 2}, {"max_num_seqs": 1},
    {"block_size": 1, "state_interval": 7}, {"enable_prefix_cache": False}, {"speculative": "ngram"},
])  # fmt: skip
def test_settings_of_the_engine_change_nothing(llm, options):
    prompts = random_prompts([50, 3, 17, 64, 1])
    other = LLM.from_parts(llm.model, llm.tokenizer, **options)
    assert generate_ids(other, prompts) == generate_ids(llm, prompts)


def test_samples_share_a_prompt_and_differ(llm):
    (prompt,) = random_prompts([20])
    params = SamplingParams(max_tokens=12, temperature=1.0, n=4, seed=3, ignore_eos=True)
    (result,) = llm.generate([prompt], params)
    samples = [output.token_ids for output in result.outputs]
    assert [output.index for output in result.outputs] == [0, 1, 2, 3]
    assert len({tuple(ids) for ids in samples}) == 4
    assert generate_ids(llm, [prompt], SamplingParams(max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)) == [
        samples[0]
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_equals_whole(llm, temperature):
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=5, ignore_eos=True)
    pieces = list(llm.stream("def append(", params))
    output = llm.generate("def append(", params)[0].outputs[0]
    assert "".join(pieces) == output.text
    assert [i for piece in pieces for i in piece.token_ids] == output.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_a_model_that_generated_can_still_be_trained(llm):
    generate_ids(llm, random_prompts([3]))
    model = llm.model.requires_grad_(True)
    try:
        model(torch.tensor([[1, 2, 3]])).logsumexp(-1).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        model.zero_grad()
        model.requires_grad_(False)
