"""The gated delta rule: the chunked form against the recurrent one, which is the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codemill.kernels.gated_delta import CHUNK_SIZE, gated_delta_chunked, gated_delta_recurrent


def draw(num_tokens: int, seed: int = 0, decay: float = 0.1) -> list[Tensor]:
    """query, key, value, g, beta and a state, as the network makes them: unit keys, g <= 0, 0 <= beta <= 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    query, key = (torch.nn.functional.normalize(normal(2, 3, num_tokens, 8), dim=-1) for _ in range(2))
    value, state = normal(2, 3, num_tokens, 5), normal(2, 3, 8, 5)
    return [query, key, value, -decay * normal(2, 3, num_tokens).abs(), normal(2, 3, num_tokens).sigmoid(), state]


def assert_equal(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 31, 63, 64, 65, 100, 127, 128, 129, 192, 200])
def test_chunked_equals_recurrent(num_tokens: int) -> None:
    inputs = draw(num_tokens)
    assert_equal(gated_delta_chunked(*inputs), gated_delta_recurrent(*inputs))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(0, 1000), st.sampled_from([0.0, 0.01, 1.0, 20.0]))
def test_chunked_equals_recurrent_at_any_length_and_decay(num_tokens: int, seed: int, decay: float) -> None:
    inputs = draw(num_tokens, seed, decay)
    assert_equal(gated_delta_chunked(*inputs), gated_delta_recurrent(*inputs))


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0, 20.0])
def test_chunked_rounds_little_more_than_recurrent(decay: float) -> None:
    """Measured against fp64: 2 times as much where nothing decays; with sums of decays in fp32 it would be 5 to 30."""
    inputs = draw(200, decay=decay)
    exact, _ = gated_delta_recurrent(*(x.double() for x in inputs))
    chunked, recurrent = (
        (rule(*inputs)[0] - exact).square().mean().sqrt() for rule in (gated_delta_chunked, gated_delta_recurrent)
    )
    assert chunked < 3 * recurrent


@pytest.mark.parametrize("cut", [1, 30, 64, 100, 149])
def test_the_state_is_carried(cut: int) -> None:
    *inputs, state = draw(150)
    whole = gated_delta_chunked(*inputs, state)
    first, state = gated_delta_chunked(*(x[:, :, :cut] for x in inputs), state)
    second, state = gated_delta_chunked(*(x[:, :, cut:] for x in inputs), state)
    assert_equal((torch.cat((first, second), dim=2), state), whole)


@pytest.mark.parametrize("rule", [gated_delta_recurrent, gated_delta_chunked])
def test_tokens_without_g_and_beta_change_nothing(rule: object) -> None:
    assert callable(rule)
    query, key, value, g, beta, state = draw(90)
    g[:, :, 70:] = beta[:, :, 70:] = 0
    _, padded = rule(query, key, value, g, beta, state)
    _, exact = rule(*(x[:, :, :70] for x in (query, key, value, g, beta)), state)
    torch.testing.assert_close(padded, exact, atol=1e-5, rtol=1e-5)


def test_the_definition_by_hand() -> None:
    """One key dim: state 2 decays to 1, the value is 5, half of what is missing is written: 1 + 0.5 (5 - 1) = 3."""
    one = torch.ones(1, 1, 1, 1)
    g, beta = torch.full((1, 1, 1), 0.5).log(), torch.full((1, 1, 1), 0.5)
    out, state = gated_delta_recurrent(2 * one, one, 5 * one, g, beta, 2 * one)
    assert (out.item(), state.item()) == (6.0, 3.0)


def test_very_fast_decay_stays_finite() -> None:
    query, key, value, g, beta, state = draw(CHUNK_SIZE)
    for x in gated_delta_chunked(query, key, value, torch.full_like(g, -200.0), beta, state):
        assert x.isfinite().all()


def test_gradients_equal() -> None:
    inputs = [x.requires_grad_() for x in draw(70)]
    by_rule = [
        torch.autograd.grad(sum(x.square().sum() for x in rule(*inputs)), inputs)  # type: ignore[arg-type]
        for rule in (gated_delta_chunked, gated_delta_recurrent)
    ]
    for ours, expected in zip(*by_rule, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
