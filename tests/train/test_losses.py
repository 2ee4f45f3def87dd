"""Losses against closed forms; test_losses_against_trl.py has TRL's."""

import math

import pytest
import torch
import torch.nn.functional as F

from codemill.train.losses import (
    Clip,
    forward_kl,
    jensen_shannon,
    policy_gradient,
    reverse_kl,
    truncated_ratio,
    weighted_cross_entropy,
    weighted_sum,
)


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


def test_tokens_without_weight_cost_exactly_nothing() -> None:
    """Whatever stands there: targets that are none, values that are no numbers."""
    logits = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [0.0, 0.0]], requires_grad=True)
    weights = torch.tensor([1.0, 0.0, 0.5])
    loss = weighted_cross_entropy(logits, torch.tensor([0, -100, 1]), weights)
    assert loss.item() == pytest.approx(math.log(1 + math.e) + 0.5 * math.log(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[1].tolist() == [0, 0]
    assert gradient.isfinite().all()
    values = torch.tensor([2.0, torch.nan, 3.0], requires_grad=True)
    total = weighted_sum(values, weights)
    assert total.item() == 3.5
    assert torch.autograd.grad(total, values)[0].tolist() == [1, 0, 0.5]


def test_divergences_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 9, generator=generator) for _ in range(2))
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    expected = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(reverse_kl(student, teacher), expected)
    torch.testing.assert_close(forward_kl(teacher, student), expected)
    torch.testing.assert_close(
        torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (student, teacher))),
        expected,
    )
    torch.testing.assert_close(jensen_shannon(student, teacher, 0.3), jensen_shannon(teacher, student, 0.7))
    assert (jensen_shannon(student, teacher) < math.log(2)).all()


def test_divergences_by_hand() -> None:
    halves, quarters = torch.tensor([[1.0, 1.0]]).log(), torch.tensor([[1.0, 3.0]]).log()
    assert reverse_kl(halves, quarters).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert reverse_kl(halves, halves).item() == 0
    never = torch.tensor([[0.0, -torch.inf]])
    assert reverse_kl(never, halves).item() == pytest.approx(math.log(2))
    assert reverse_kl(never, never).item() == 0
    assert reverse_kl(halves, never).item() == math.inf
    assert jensen_shannon(never, never.flip(-1)).item() == pytest.approx(math.log(2))


def test_the_policy_gradient_by_hand() -> None:
    """Ratios 1/2, 2 and 1, advantages up, up and down; the last token has no weight and no sense."""
    old = torch.tensor([0.4, 0.2, 0.5, 0.1]).log()
    log_probs = torch.tensor([0.2, 0.4, 0.5, torch.nan]).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -2.0, torch.inf])
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0])
    plain = policy_gradient(log_probs, old, advantages, weights)
    assert plain.value.item() == pytest.approx(-0.5 - 2 + 1)
    assert torch.autograd.grad(plain.value, log_probs)[0].tolist() == pytest.approx([-0.5, -2, 1, 0])
    assert plain.old_kl.item() == pytest.approx(0.5 - 1 + math.log(2) + 2 - 1 - math.log(2))

    clipped = policy_gradient(log_probs, old, advantages, weights, Clip(0.2, 0.28))
    assert clipped.value.item() == pytest.approx(-0.5 - 1.28 + 1)
    assert torch.autograd.grad(clipped.value, log_probs)[0].tolist() == pytest.approx([-0.5, 0, 1, 0])
    assert clipped.clipped.item() == 1

    constant = policy_gradient(log_probs, old, advantages, weights, Clip(1.0, 0.28, hard=False))
    assert torch.autograd.grad(constant.value, log_probs)[0].tolist() == pytest.approx([-0.5, -1.28, 1, 0])

    # The mean log-ratio of the first two tokens is 0, so neither is clipped.
    ids = torch.tensor([0, 0, 1, 2])
    sequence = policy_gradient(log_probs, old, advantages, weights, Clip(1e-3, 1e-3, sequence=True), ids)
    assert sequence.value.item() == pytest.approx(-1 - 1 + 1)
    assert torch.autograd.grad(sequence.value, log_probs)[0].tolist() == pytest.approx([-1, -1, 1, 0])

    correction = truncated_ratio(log_probs, torch.tensor([0.4, 0.1, 0.5, 0.5]).log(), most=3.0)
    corrected = policy_gradient(log_probs, old, advantages, weights, correction=correction)
    assert corrected.value.item() == pytest.approx(-0.5 * 0.5 - 3 * 2 + 1)


def test_a_sequences_ratio_needs_to_know_the_sequences() -> None:
    with pytest.raises(ValueError, match="sequence_ids"):
        policy_gradient(*(torch.zeros(2),) * 3, torch.ones(2), Clip(sequence=True))
