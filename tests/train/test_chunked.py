"""Chunked losses against those of all logits at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from codemill.kernels.quantized_linear import product
from codemill.train import chunked
from codemill.train.chunked import (
    HeadFunction,
    chunked_cross_entropy,
    chunked_log_probs,
    chunked_log_probs_and_entropy,
    chunked_sum,
)
from codemill.train.losses import reverse_kl, token_entropy, token_log_probs, weighted_cross_entropy

N, D, V = 37, 16, 101
CHUNK = 5 * 4 * V  # bytes of five tokens' logits


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets and weights, some of them 0."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    targets = torch.randint(V, (N,), generator=generator)
    weights = torch.rand(N, generator=generator) * (torch.rand(N, generator=generator) > 0.3)
    return hidden, weight, targets, weights


def assert_equal(ours: Tensor, theirs: Tensor, *parameters: Tensor, tolerance: float = 1e-6) -> None:
    """Values and gradients differ by less than `tolerance` of the largest entry."""
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    for got, expected in zip(
        (ours, *torch.autograd.grad(ours, parameters, direction, retain_graph=True)),
        (theirs, *torch.autograd.grad(theirs, parameters, direction, retain_graph=True)),
        strict=True,
    ):
        assert got.dtype == expected.dtype
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("chunk_bytes", [1, CHUNK, 1 << 27])
def test_the_cross_entropy_and_its_gradients_are_those_of_all_logits(
    inputs: tuple[Tensor, ...], chunk_bytes: int
) -> None:
    hidden, weight, targets, weights = inputs
    ours = chunked_cross_entropy(hidden, weight, targets, weights, chunk_bytes)
    assert_equal(ours, weighted_cross_entropy(hidden @ weight.T, targets, weights), hidden, weight)


def test_log_probabilities_and_entropies_are_those_of_all_logits(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, _ = inputs
    logits = hidden @ weight.T
    expected = torch.distributions.Categorical(logits=logits)
    assert_equal(chunked_log_probs(hidden, weight, targets, CHUNK), expected.log_prob(targets), hidden, weight)
    log_probs, entropy = chunked_log_probs_and_entropy(hidden, weight, targets, CHUNK)
    assert_equal(log_probs, expected.log_prob(targets), hidden, weight)
    assert_equal(entropy, expected.entropy(), hidden, weight)
    torch.testing.assert_close(token_entropy(logits), expected.entropy())


def test_a_sum_of_any_function_of_the_logits(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, _, weights = inputs
    teacher = torch.randn(N, V, generator=torch.Generator().manual_seed(3))
    ours = chunked_sum(reverse_kl, hidden, weight, weights, teacher, chunk_bytes=CHUNK)
    assert_equal(ours, reverse_kl(hidden @ weight.T, teacher) @ weights, hidden, weight)


def test_a_head_that_is_a_function(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, weights = inputs
    low_rank = torch.randn(V, 2, requires_grad=True), torch.randn(2, D, requires_grad=True)
    head = HeadFunction(lambda x: x @ weight.T + x @ low_rank[1].T @ low_rank[0].T, V)
    logits = head.logits(hidden)
    ours = chunked_cross_entropy(hidden, head, targets, weights, CHUNK)
    assert_equal(ours, weighted_cross_entropy(logits, targets, weights), hidden, *low_rank)
    assert_equal(chunked_log_probs(hidden, head, targets, CHUNK), token_log_probs(logits, targets), hidden, *low_rank)


def test_a_frozen_head_has_no_gradient_and_costs_none(
    inputs: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets, weights = inputs
    frozen = weight.detach()
    monkeypatch.setattr(chunked, "_add_product", None)  # what would be called
    assert_equal(
        chunked_cross_entropy(hidden, frozen, targets, weights, CHUNK),
        weighted_cross_entropy(hidden @ frozen.T, targets, weights),
        hidden,
    )
    assert_equal(chunked_log_probs(hidden, frozen, targets, CHUNK), token_log_probs(hidden @ frozen.T, targets), hidden)


def test_without_gradients_there_are_none(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, weights = inputs
    with torch.no_grad():
        ours = chunked_cross_entropy(hidden, weight, targets, weights, CHUNK)
        values = chunked_log_probs(hidden, weight, targets, CHUNK)
    assert not ours.requires_grad
    assert not values.requires_grad
    torch.testing.assert_close(ours, weighted_cross_entropy(hidden @ weight.T, targets, weights).detach())


def test_tied_embeddings_get_both_gradients(inputs: tuple[Tensor, ...]) -> None:
    _, weight, targets, weights = inputs

    def loss(cross_entropy: Callable[[Tensor], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(cross_entropy(weight[targets.roll(1)].tanh()), weight)
        return gradient

    ours = loss(lambda hidden: chunked_cross_entropy(hidden, weight, targets, weights, CHUNK))
    theirs = loss(lambda hidden: weighted_cross_entropy(hidden @ weight.T, targets, weights))
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("chunk_bytes", [CHUNK, 1 << 27])
def test_under_autocast_it_is_what_autocast_does(inputs: tuple[Tensor, ...], chunk_bytes: int) -> None:
    hidden, weight, targets, weights = inputs
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked_cross_entropy(hidden, weight, targets, weights, chunk_bytes)
        theirs = weighted_cross_entropy(product(hidden, weight), targets, weights)
        values = chunked_log_probs(hidden, weight, targets, chunk_bytes)
        expected = token_log_probs(product(hidden, weight), targets)
    assert_equal(ours, theirs, hidden, weight, tolerance=1e-2)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # the same bf16 logits
    assert_equal(values, expected, hidden, weight, tolerance=1e-2)


def test_gradients_of_bf16_weights_are_summed_in_fp32() -> None:
    """1,000 tokens each push one row by 1/256, which is lost beside 1 in bf16."""
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(2000, dtype=torch.long)
    chunked_cross_entropy(hidden, weight, targets, torch.full((2000,), 1 / 128), chunk_bytes=8).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[-2000 / 256], [2000 / 256]]


def test_tokens_without_weight_are_as_if_they_were_not_there(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, weights = inputs
    ignored = weights == 0
    bad = torch.where(ignored[:, None], torch.nan, hidden.detach()).requires_grad_()
    ours = chunked_cross_entropy(bad, weight, torch.where(ignored, -100, targets), weights, CHUNK)
    theirs = weighted_cross_entropy(hidden @ weight.T, targets, weights)
    torch.testing.assert_close(ours, theirs)
    gradient, weight_gradient = torch.autograd.grad(ours, (bad, weight))
    assert (gradient[ignored] == 0).all()
    assert weight_gradient.isfinite().all()


@pytest.mark.parametrize("as_function", [False, True])
def test_where_nothing_is_learned_loss_and_gradients_are_zero(inputs: tuple[Tensor, ...], as_function: bool) -> None:
    hidden, weight, targets, _ = inputs
    head = HeadFunction(lambda x: x @ weight.T, V) if as_function else weight
    loss = chunked_cross_entropy(hidden, head, targets, torch.zeros(N))
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, (hidden, weight)))
    values = chunked_log_probs(hidden[:0], head, targets[:0])
    assert values.shape == (0,)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(values.sum(), (hidden, weight)))


def test_a_second_backward_pass_is_refused(inputs: tuple[Tensor, ...]) -> None:
    loss = chunked_cross_entropy(*inputs)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()
