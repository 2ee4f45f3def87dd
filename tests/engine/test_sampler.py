"""The sampler: penalties, bias, bans, greedy rows, seeds, log-probabilities and NaN."""

from collections.abc import Sequence as SequenceOf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process

from codemill.engine.generation_config import GenerationConfig
from codemill.engine.sampler import NO_TOKEN, Sampler
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.sequence import SampledToken, Sequence, SequenceLimits
from codemill.errors import CodemillError

VOCAB_SIZE = 50
CPU = torch.device("cpu")


class NoText:
    """A tokenizer for tests that look at ids alone."""

    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return b""


def make_sequence(prompt: SequenceOf[int] = (1,), output: SequenceOf[int] = (), seed: str = "", **params) -> Sequence:
    asked = SamplingParams(**params)
    limits = SequenceLimits(100, eos_token_ids=frozenset({2}), stop_token_ids=frozenset(asked.stop_token_ids))
    distribution = GenerationConfig().distribution(asked)
    sequence = Sequence(tuple(prompt), asked, distribution, limits, NoText(), seed)
    sequence.token_ids.extend(output)
    return sequence


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def sample(logits: Tensor, *sequences: Sequence) -> list[int]:
    return [token.token_id for token in Sampler(sequences, VOCAB_SIZE, CPU).sample(logits)]


ids = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)


@settings(max_examples=60, deadline=None)
@given(prompt=ids.filter(bool), output=ids, penalty=st.floats(0.3, 3.0), seed=st.integers(0, 1000))
def test_repetition_penalty_equals_transformers(prompt, output, penalty, seed):
    logits = random_logits(1, seed)
    sampler = Sampler([make_sequence(prompt, output, repetition_penalty=penalty)], VOCAB_SIZE, CPU)
    processor = logits_process.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([prompt + output]), logits)
    torch.testing.assert_close(sampler._shape(logits), expected, atol=1e-6, rtol=1e-6)


def test_presence_and_frequency_count_the_output_only():
    logits = random_logits(1)
    sequence = make_sequence([5, 6], [7, 7, 8], presence_penalty=0.5, frequency_penalty=0.25)
    expected = logits.clone()
    expected[0, 7] -= 0.5 + 2 * 0.25
    expected[0, 8] -= 0.5 + 0.25
    torch.testing.assert_close(Sampler([sequence], VOCAB_SIZE, CPU)._shape(logits), expected)


def test_penalties_count_what_is_sampled():
    """A sampler that saw three steps penalises as one made after them."""
    params = {"repetition_penalty": 1.4, "presence_penalty": 1.0, "frequency_penalty": 0.3}
    sequence = make_sequence([5], **params)
    sampler = Sampler([sequence], VOCAB_SIZE, CPU)
    for step in range(3):
        sequence.append(sampler.sample(random_logits(1, step))[0])
    fresh = Sampler([make_sequence([5], sequence.token_ids, **params)], VOCAB_SIZE, CPU)
    assert torch.equal(sampler._shape(random_logits(1, 9)), fresh._shape(random_logits(1, 9)))


def test_bias_moves_the_choice_of_its_own_row():
    sequences = [make_sequence(), make_sequence(logit_bias={11: 100.0, 12: -100.0}), make_sequence(logit_bias={})]
    logits = random_logits(3)
    likeliest = logits.argmax(dim=-1).tolist()
    assert sample(logits, *sequences) == [likeliest[0], 11, likeliest[2]]


def test_nothing_stops_before_min_tokens():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 2], logits[0, 9], logits[0, 4] = 9.0, 8.0, 7.0  # end of text, a stop id, neither
    sequence = make_sequence(min_tokens=2, stop_token_ids=[9], max_tokens=5)
    sampler = Sampler([sequence], VOCAB_SIZE, CPU)
    for _ in range(3):
        sequence.append(sampler.sample(logits)[0])
    assert sequence.token_ids == [4, 4, 2]


def test_a_row_does_not_depend_on_the_others():
    asked = [
        {"temperature": 0},
        {"temperature": 0.8, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.2},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.7, "min_p": 0.05, "repetition_penalty": 1.2},
        {"temperature": 0, "frequency_penalty": 1.5},
        {"temperature": 2.0, "min_p": 0.1, "logit_bias": {3: 5.0}},
    ]
    logits = random_logits(len(asked))
    together = sample(logits, *(make_sequence([1, 2], [3, 3], "s", **params) for params in asked))
    alone = [sample(logits[i : i + 1], make_sequence([1, 2], [3, 3], "s", **p))[0] for i, p in enumerate(asked)]
    assert together == alone


def test_the_seed_decides_the_draws():
    def draws(seed: str) -> list[int]:
        sequence = make_sequence(seed=seed, temperature=2.0, ignore_eos=True)
        sampler = Sampler([sequence], VOCAB_SIZE, CPU)
        for _ in range(20):
            sequence.append(sampler.sample(random_logits(1))[0])
        return sequence.token_ids

    assert draws("a") == draws("a") != draws("b")


def test_greedy_takes_the_first_of_equal_logits_in_any_company():
    logits = torch.zeros(2, VOCAB_SIZE, dtype=torch.bfloat16)
    assert sample(logits[:1], make_sequence()) == [0]
    assert sample(logits, make_sequence(), make_sequence(temperature=1.0, top_k=3))[0] == 0


def test_a_tiny_temperature_is_greedy():
    assert sample(random_logits(1), make_sequence(temperature=1e-30)) == [random_logits(1).argmax().item()]


def test_logprobs_are_those_of_the_raw_logits():
    logits = random_logits(3)
    sequences = [
        make_sequence(logprobs=3, temperature=0.5, top_k=2, repetition_penalty=2.0, logit_bias={8: 50.0}),
        make_sequence(),
        make_sequence(logprobs=0),
    ]
    sampled = Sampler(sequences, VOCAB_SIZE, CPU).sample(logits)
    expected = logits.log_softmax(dim=-1)
    assert sampled[0].token_id == 8
    assert sampled[0].logprob == pytest.approx(expected[0, 8].item())
    values, top = expected[0].topk(3)
    assert sampled[0].top_logprobs == pytest.approx(dict(zip(top.tolist(), values.tolist(), strict=True)))
    assert list(sampled[0].top_logprobs) == top.tolist(), "best first"
    assert sampled[1].logprob is None
    assert sampled[1].top_logprobs is None
    assert sampled[2].logprob == pytest.approx(expected[2].max().item())
    assert sampled[2].top_logprobs == {}


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"logprobs": 1}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_of_nan_logits_have_no_token_and_touch_no_other(params, value):
    logits = random_logits(2)
    expected = sample(logits[:1], make_sequence(**params))
    logits[1, 30] = value
    assert sample(logits, make_sequence(**params), make_sequence(**params)) == [*expected, NO_TOKEN]


class OneChoice:
    """A grammar state that allows some ids, or gives up."""

    def __init__(self, *allowed: int) -> None:
        self._allowed = allowed

    def forced_tokens(self) -> list[int]:
        return []

    def fill_mask(self, row: np.ndarray) -> None:
        if not self._allowed:
            raise CodemillError("the grammar cannot go on: too many items; use a simpler one")
        row[:] = 0
        for token_id in self._allowed:
            row[token_id // 32] |= 1 << token_id % 32


def failed(token: SampledToken) -> str:
    assert token.token_id == NO_TOKEN
    return str(token.error)


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_where_nothing_is_allowed_the_error_says_why(params):
    sequences = [make_sequence(min_tokens=3, stop_token_ids=[9], **params) for _ in range(2)]
    sequences += [make_sequence(**params), make_sequence(repetition_penalty=1e-40, **params)]
    sequences[0].grammar, sequences[1].grammar, sequences[2].grammar = OneChoice(9), OneChoice(9, 10), OneChoice()
    logits = random_logits(4)
    logits[3, 1] = 5.0
    empty, chosen, given_up, infinite = Sampler(sequences, VOCAB_SIZE, CPU).sample(logits)
    assert failed(empty) == (
        "no token may be output token 1: all that may come end the output, which min_tokens = 3 forbids; lower it"
    )
    assert (chosen.token_id, chosen.error) == (10, None)
    assert failed(given_up) == "the grammar cannot go on: too many items; use a simpler one"
    assert failed(infinite) == (
        "penalties or bias made the logits infinite at output token 1: choose more moderate ones"
    )
    logits[0] = float("nan")
    assert failed(Sampler(sequences[:1], VOCAB_SIZE, CPU).sample(logits[:1])[0]).startswith("the model produced NaN")
