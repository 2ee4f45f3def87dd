"""Drafts change nothing: neither the distribution, nor with a seed the tokens; and how many are made adapts."""

import itertools
import math
from collections import Counter

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.chat import Tokenizer
from codemill.engine.prompts import Prompt
from codemill.engine.speculative import next_length
from codemill.engine.structured_output import StructuredOutput
from codemill.engine_config import EngineConfig, SpeculativeConfig
from codemill.errors import CodemillError, UsageError
from codemill.models import CausalLM
from codemill.models import initialize as draw_weights
from codemill.models.mtp import MtpHead
from codemill.models.skeleton import build_mtp, materialize
from models.reference import make_ours, make_reference

SMALL_VOCABULARY = 5
SHAPED = {"temperature": 1.3, "top_k": 4, "top_p": 0.95, "repetition_penalty": 1.1, "ignore_eos": True}


def small_model(family: str, seed: int = 0) -> CausalLM:
    return make_ours(make_reference(family, seed, vocab_size=SMALL_VOCABULARY))


def mtp_head(model: CausalLM) -> MtpHead:
    head = build_mtp(model.config, torch.float32)
    materialize(head, torch.device("cpu"))
    draw_weights(head, seed=3)
    return head


def speculating(model: CausalLM, tokenizer: Tokenizer, method: str) -> LLM:
    """An LLM that drafts: by n-grams, by another model, by MTP."""
    if method == "ngram":
        return LLM.from_parts(model, tokenizer, speculative=SpeculativeConfig("ngram", 4, min_match=1))
    if method == "mtp":
        return LLM.from_parts(model, tokenizer, draft=mtp_head(model), speculative=SpeculativeConfig("mtp", 3))
    config = SpeculativeConfig("draft", 3, draft_model="given")
    return LLM.from_parts(model, tokenizer, draft=small_model("qwen3", seed=9), speculative=config)


METHODS = [
    ("qwen3", "ngram"),
    ("qwen3", "draft"),
    ("qwen3_moe", "draft"),
    ("qwen3_next", "mtp"),
    ("qwen3_next", "ngram"),
]


@pytest.mark.parametrize(("family", "method"), METHODS)
@pytest.mark.parametrize("shaping", [{"temperature": 1.0, "ignore_eos": True}, SHAPED], ids=["plain", "shaped"])
def test_with_a_seed_the_tokens_are_the_same(tokenizer, family, method, shaping):
    model = small_model(family)
    plain, speculative = LLM.from_parts(model, tokenizer), speculating(model, tokenizer, method)
    each = [SamplingParams(max_tokens=30, seed=seed, **shaping) for seed in range(12)]
    prompts = [[seed % SMALL_VOCABULARY, 1, 2, 1, 2] for seed in range(12)]
    found, expected = (
        [output.outputs[0].token_ids for output in llm.generate(prompts, each)] for llm in (speculative, plain)
    )
    assert found == expected
    metrics = speculative.metrics
    assert metrics["draft_tokens"] > metrics["accepted_tokens"] > 0, "nothing was put to the test"


@pytest.mark.parametrize(("family", "method"), [("qwen3", "draft"), ("qwen3", "ngram"), ("qwen3_next", "mtp")])
def test_the_distribution_is_the_models_own(tokenizer, family, method):
    """Chi-square of four tokens in a row against their exact probabilities, at the 0.1 % level."""
    num_samples, length, prompt = 6000, 3, [1, 2, 1, 2, 1]
    model = small_model(family)
    llm = speculating(model, tokenizer, method)
    params = SamplingParams(temperature=0.8, max_tokens=length, seed=5, n=1000, ignore_eos=True)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(num_samples // 1000):
        (output,) = llm.generate([prompt], SamplingParams(**{**vars(params), "seed": seed}))
        counts.update(tuple(sample.token_ids) for sample in output.outputs)
    assert llm.metrics["accepted_tokens"] > 100
    expected = exact_probabilities(model, prompt, length, temperature=0.8)
    assert chi_square(counts, expected, num_samples) < critical_value(len(expected) - 1)


def exact_probabilities(model: CausalLM, prompt: list[int], length: int, temperature: float) -> dict[tuple, float]:
    sequences = list(itertools.product(range(SMALL_VOCABULARY), repeat=length))
    ids = torch.tensor([[*prompt, *sequence] for sequence in sequences])
    logprobs = (model(ids)[:, len(prompt) - 1 : -1].double() / temperature).log_softmax(dim=-1)
    chosen = logprobs.gather(2, torch.tensor(sequences)[..., None]).sum(dim=(1, 2)).exp()
    return dict(zip(sequences, chosen.tolist(), strict=True))


def chi_square(counts: Counter, probabilities: dict[tuple, float], total: int) -> float:
    """Rare outcomes are taken together, as the statistic asks of expected counts."""
    rare = {key for key, p in probabilities.items() if p * total < 5}
    cells = [(counts[key], p * total) for key, p in probabilities.items() if key not in rare]
    cells.append((sum(counts[key] for key in rare), sum(probabilities[key] for key in rare) * total))
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in cells if wanted > 0)


def critical_value(freedom: int) -> float:
    """Of the chi-square distribution at 0.1 %, by Wilson and Hilferty."""
    return freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_the_model_as_its_own_draft_is_always_right(tokenizer):
    """Also when it samples: draft and target draw by the same random numbers."""
    model = small_model("qwen3")
    config = SpeculativeConfig("draft", 4, draft_model="given")
    llm = LLM.from_parts(model, tokenizer, draft=model, speculative=config)
    llm.generate([[1, 2, 3]] * 4, SamplingParams(max_tokens=40, temperature=1.0, ignore_eos=True))
    assert llm.metrics["acceptance_rate"] > 0.97


def test_a_request_may_do_without_drafts(tokenizer):
    llm = speculating(small_model("qwen3"), tokenizer, "ngram")
    llm.generate([[1] * 20], SamplingParams(max_tokens=30, ignore_eos=True, speculative=False))
    assert llm.metrics["draft_tokens"] == 0


def test_drafts_fit_the_context_and_the_end_of_the_output(tokenizer):
    model = small_model("qwen3")
    config = SpeculativeConfig("draft", 16, draft_model="given")
    llm = LLM.from_parts(model, tokenizer, max_model_len=33, block_size=1, draft=model, speculative=config)
    (output,) = llm.generate([[1, 2]], SamplingParams(max_tokens=100, ignore_eos=True))
    plain = LLM.from_parts(model, tokenizer, max_model_len=33)
    assert output.outputs == plain.generate([[1, 2]], SamplingParams(max_tokens=100, ignore_eos=True))[0].outputs
    assert len(output.outputs[0].token_ids) == 31


@pytest.mark.parametrize("method", ["ngram", "draft"])
@pytest.mark.parametrize("call", ["forced_tokens", "fill_mask", "num_valid", "accept"])
def test_a_grammar_that_gives_up_fails_its_own_request_alone(tokenizer, method, call, monkeypatch):
    llm = speculating(make_ours(make_reference("qwen3", vocab_size=320)), tokenizer, "ngram")
    if method == "draft":
        config = SpeculativeConfig("draft", 3, draft_model="given")
        llm = LLM.from_parts(llm.model, tokenizer, draft=llm.model, speculative=config)
    prompts = [[1, 2, 1, 2, 1, 2], [5, 6, 5, 6, 5, 6]]
    params = SamplingParams(temperature=0.0, max_tokens=12, structured_output=StructuredOutput(regex="[a-f]{4,40}"))
    expected = llm.generate(prompts, params)[1].outputs
    requests = [llm.builder.build(Prompt(None, tuple(prompt)), params) for prompt in prompts]
    for request in requests:
        llm.engine.add(request)
    for _ in range(3):
        llm.engine.step()

    def give_up(*_: object) -> None:
        raise CodemillError("the grammar cannot go on")

    monkeypatch.setattr(requests[0].sequences[0].grammar, call, give_up)
    while not llm.engine.is_idle:
        llm.engine.step()
    # What is lost without `num_valid` are drafts.
    assert (requests[0].sequences[0].error is None) == (call == "num_valid")
    assert requests[1].output().outputs == expected


def test_the_number_of_drafts_adapts():
    assert next_length(4, num_drafts=4, num_accepted=4, most=16) == 8
    assert next_length(8, num_drafts=8, num_accepted=8, most=10) == 10
    assert next_length(8, num_drafts=8, num_accepted=3, most=16) == 4
    assert next_length(8, num_drafts=8, num_accepted=0, most=16) == 1
    assert next_length(8, num_drafts=2, num_accepted=2, most=16) == 8, "fewer were checked than wanted"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "magic"}, "speculative method 'magic': choose ngram, draft, mtp"),
        ({"method": "draft"}, "needs a draft_model"),
        ({"method": "ngram", "draft_model": "x"}, "no other method takes one"),
        ({"num_tokens": 0}, "num_tokens = 0: must be a positive integer"),
        ({"min_match": 3, "max_match": 2}, "max_match = 2: must be at least min_match, 3"),
    ],
)
def test_wrong_settings_are_one_line(arguments, said):
    with pytest.raises(UsageError, match=said):
        SpeculativeConfig(**arguments)


def test_networks_that_cannot_draft_are_refused(tokenizer):
    with pytest.raises(UsageError, match="the checkpoint has no such head"):
        LLM(speculative="mtp")
    with pytest.raises(UsageError, match="vocabulary of 151936 tokens, the model 4096"):
        LLM(speculative=SpeculativeConfig("draft", draft_model="random:qwen3-0.6b"))
    with pytest.raises(UsageError, match="unknown engine option 'speculativ': choose"):
        EngineConfig.from_options({"speculativ": "ngram"})
