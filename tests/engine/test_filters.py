"""Temperature, top-k, top-p and min-p keep the tokens that `transformers` keeps, with its probabilities."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process

from codemill.engine import filters as module
from codemill.engine import noise as noise_module
from codemill.engine.filters import Filters, draw_filtered, draw_unfiltered, filtered_candidates
from codemill.engine.generation_config import Distribution
from codemill.engine.noise import as_keys, gumbel

CPU = torch.device("cpu")


def expected_probs(logits: Tensor, row: Distribution) -> Tensor:
    """Probabilities [B, V] by the processors of `transformers`, in the order of its `generate`."""
    processors = [logits_process.TemperatureLogitsWarper(row.temperature)]
    if row.top_k:
        processors.append(logits_process.TopKLogitsWarper(row.top_k))
    if row.top_p < 1:
        processors.append(logits_process.TopPLogitsWarper(row.top_p))
    if row.min_p:
        processors.append(logits_process.MinPLogitsWarper(row.min_p))
    for processor in processors:
        logits = processor(None, logits)
    return logits.softmax(dim=-1)


def our_probs(logits: Tensor, rows: list[Distribution]) -> Tensor:
    """Probabilities [B, V] of rows with the same top-k."""
    count = min(rows[0].top_k or logits.shape[-1], logits.shape[-1])
    probs, token_ids = filtered_candidates(logits, Filters.build(rows, CPU), count)
    probs = probs / probs.sum(dim=-1, keepdim=True)
    return torch.zeros(logits.shape, dtype=torch.float64).scatter(1, token_ids, probs)


def random_logits(rows: int, vocab_size: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab_size, generator=generator, dtype=torch.float64) * scale


def random_keys(count: int, seed: int = 0) -> Tensor:
    source = random.Random(seed)
    return as_keys([source.getrandbits(64) for _ in range(count)], CPU)


def assert_equal_probs(ours: Tensor, expected: Tensor) -> None:
    assert torch.equal(ours > 0, expected > 0), "another set of tokens is kept"
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-6)


distributions = st.builds(
    Distribution,
    temperature=st.floats(0.05, 3.0),
    top_k=st.one_of(st.just(0), st.integers(1, 60)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.9)),
).filter(lambda row: row.is_filtered)


@settings(max_examples=150, deadline=None)
@given(row=distributions, vocab_size=st.integers(2, 50), seed=st.integers(0, 10_000))
def test_equals_transformers(row, vocab_size, seed):
    logits = random_logits(2, vocab_size, seed)
    assert_equal_probs(our_probs(logits, [row, row]), expected_probs(logits, row))


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0], ids=["flat", "medium", "steep"])
@pytest.mark.parametrize("row", [Distribution(1.0, top_p=0.9), Distribution(0.8, min_p=0.02)], ids=["top_p", "min_p"])
def test_a_nucleus_may_be_larger_than_the_first_candidates(row, scale, monkeypatch):
    """Draws from many candidates at once are those from a few that are enlarged where they do not suffice."""
    logits = torch.cat([random_logits(1, 3000, seed=0, scale=scale), random_logits(3, 3000, seed=1, scale=9.0)])
    filters = Filters.build([row] * 4, CPU)
    for seed in range(50):
        keys = random_keys(4, seed)
        monkeypatch.setattr(module, "NUCLEUS_CANDIDATES", 3000)
        expected = draw_filtered(logits, filters, keys)
        monkeypatch.setattr(module, "NUCLEUS_CANDIDATES", 64)
        assert torch.equal(draw_filtered(logits, filters, keys), expected)


def test_rows_keep_their_own_filters():
    rows = [Distribution(0.5, 9, 0.9), Distribution(2.0, 9), Distribution(1.0, 9, 0.5, 0.1), Distribution(1.0, 9)]
    logits = random_logits(4, 100, seed=1)
    ours = our_probs(logits, rows)
    for i, row in enumerate(rows):
        assert_equal_probs(ours[i], expected_probs(logits[i : i + 1], row)[0])


def test_exactly_k_tokens_are_kept_where_logits_tie():
    assert (our_probs(torch.zeros(1, 50), [Distribution(1.0, top_k=7)]) > 0).sum() == 7


@pytest.mark.parametrize("row", [Distribution(1.3, 12, 0.9), Distribution(1.3, top_p=0.8), Distribution(1.3)])
def test_draws_follow_the_probabilities(row):
    """Frequencies are within five standard deviations of the probabilities, for each of the tokens."""
    num_draws = 50_000
    logits = random_logits(1, 40, seed=2, scale=1.5)
    many, filters = logits.expand(num_draws, -1), Filters.build([row] * num_draws, CPU)
    if row.is_filtered:
        drawn = draw_filtered(many, filters, random_keys(num_draws))
    else:
        drawn = draw_unfiltered(many, filters.temperature, random_keys(num_draws))
    expected = expected_probs(logits, row)[0]
    frequencies = drawn.bincount(minlength=40) / num_draws
    deviation = (expected * (1 - expected) / num_draws).sqrt()
    assert ((frequencies - expected).abs() <= 5 * deviation).all()


def test_noise_is_gumbels_and_of_the_key_and_the_token_alone():
    keys, token_ids = random_keys(200), torch.arange(500, dtype=torch.int32)[None]
    noise = gumbel(keys, token_ids)
    ordered = noise.double().flatten().sort().values
    quantiles = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    expected = -(-quantiles.log()).log()
    found = ordered[(quantiles * len(ordered)).long()]
    torch.testing.assert_close(found, expected, atol=0.25, rtol=0.02)
    for dim in (0, 1):  # neighbours, in keys as in tokens, have nothing to do with each other
        a, b = noise.narrow(dim, 0, noise.shape[dim] - 1), noise.narrow(dim, 1, noise.shape[dim] - 1)
        assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 0.02
    shuffled = torch.randperm(500)
    assert torch.equal(gumbel(keys[3:5], token_ids[:, shuffled]), noise[3:5, shuffled])


def test_noise_is_finite_and_exact_at_both_ends(monkeypatch):
    """Infinite noise would choose a token, or exclude it, whatever its probability."""
    monkeypatch.setattr(noise_module, "_mix_", lambda bits: bits)
    bits = torch.tensor([[-(1 << 31), -(1 << 31) + 60, -1000, -1, 0, 1, 1000, (1 << 31) - 60, (1 << 31) - 1]])
    noise = gumbel(torch.zeros(1, 2, dtype=torch.int32), bits.int())
    assert noise.isfinite().all()
    uniforms = torch.where(bits < 0, -bits - 1, bits).double().add(0.5) / (1 << 31)
    expected = -(-torch.log1p(-uniforms.clamp(max=1 - 2.0**-24))).log()
    torch.testing.assert_close(noise.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-5, 1e-50])
@pytest.mark.parametrize("top_p", [0.999, 1.0])
def test_a_tiny_temperature_keeps_the_probabilities(temperature, top_p):
    """Logits that differ by little more than their rounding, as `transformers` weighs them in fp64."""
    logits = torch.full((1, 2000), -5.0)
    logits[0, 7], logits[0, 9], logits[0, 11] = 11.0, 11.0 - 2.0**-20, 11.0 - 2.0**-19
    row = Distribution(temperature=temperature, top_p=top_p)
    num_draws = 4000
    filters = Filters.build([row] * num_draws, CPU)
    many, keys = logits.expand(num_draws, -1), random_keys(num_draws)
    is_filtered = top_p < 1
    drawn = draw_filtered(many, filters, keys) if is_filtered else draw_unfiltered(many, filters.temperature, keys)
    expected = (logits.double() / max(temperature, 1e-30)).softmax(dim=-1)[0]
    frequencies = drawn.bincount(minlength=2000) / num_draws
    deviation = (expected * (1 - expected) / num_draws).sqrt()
    assert ((frequencies - expected).abs() <= 5 * deviation + 1e-9).all()
    if is_filtered:
        probs, ids = filtered_candidates(logits, Filters.build([row], CPU), 2000)
        kept = probs[0] > 0
        torch.testing.assert_close(probs[0, kept], expected[ids[0, kept]], rtol=1e-4, atol=1e-6)


def test_tokens_without_probability_are_never_drawn():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).expand(500, -1)
    drawn = draw_unfiltered(logits, torch.ones(500, 1), random_keys(500))
    assert drawn.unique().tolist() == [1, 3]


def test_rounding_of_logits_seldom_changes_a_draw():
    """Not even in a flat distribution over a large vocabulary, where a cumulative sum moves at every token."""
    logits = torch.randn(400, 20_000, generator=torch.Generator().manual_seed(0))
    rounded = logits * (1 + 1e-7 * torch.randn(400, 1, generator=torch.Generator().manual_seed(1)))
    one, keys = torch.ones(400, 1), random_keys(400)
    assert torch.equal(draw_unfiltered(logits, one, keys), draw_unfiltered(rounded, one, keys))
