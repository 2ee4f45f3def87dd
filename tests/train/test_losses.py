"""The loss against closed forms."""

import math

import pytest
import torch

from codemill.train.losses import weighted_cross_entropy


def test_uniform_logits_cost_the_log_of_the_vocabulary() -> None:
    weights = torch.tensor([1.0, 0.5, 0.0])
    loss = weighted_cross_entropy(torch.zeros(3, 10), torch.tensor([1, 5, 9]), weights)
    assert loss.item() == pytest.approx(1.5 * math.log(10))


def test_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log()  # probabilities 1/4, 3/4 and 1/2, 1/2
    loss = weighted_cross_entropy(logits, torch.tensor([1, 0]), torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx(math.log(4 / 3) + 2 * math.log(2))


def test_the_gradient_is_the_weighted_error() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, weights = torch.tensor([0, 3, 6, 2]), torch.tensor([1.0, 0.3, 0.0, 2.0])
    (gradient,) = torch.autograd.grad(weighted_cross_entropy(logits, targets, weights), logits)
    expected = weights[:, None] * (logits.detach().softmax(-1) - torch.nn.functional.one_hot(targets, 7))
    torch.testing.assert_close(gradient, expected)


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits = torch.zeros(3000, 2, dtype=torch.bfloat16)
    loss = weighted_cross_entropy(logits, torch.zeros(3000, dtype=torch.long), torch.ones(3000))
    assert (loss.dtype, loss.item()) == (torch.float32, pytest.approx(3000 * math.log(2), rel=1e-4))


def test_no_tokens_cost_nothing() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
