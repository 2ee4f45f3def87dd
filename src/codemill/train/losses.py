"""Losses as pure functions of logits and log-probabilities, in nats. Shapes: N predicted tokens, V vocabulary.

A loss is a sum over tokens of weight * something. Divide it by the sum of the weights over the whole batch, over all
processes, not over the micro-batch, or accumulation changes the loss. Tokens of weight 0 contribute exactly 0, whatever
else stands in their place: padding, an ignored target, a value that is not a number.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of weight * -log p(target): logits [N, V], targets [N], weights [N] -> scalar, fp32."""
    logits, targets, weights = select_learned(weights, logits, targets, weights)
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.dot(losses, weights.to(losses.dtype))


def select_learned(weights: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of `tensors` [N, ...] whose weight is not 0. No gradient flows from the others, not even 0 times inf."""
    learned = weights != 0
    return tensors if bool(learned.all()) else tuple(tensor[learned] for tensor in tensors)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * value over tokens: values [N], weights [N] -> scalar, fp32."""
    return (torch.where(weights != 0, values, 0.0).float() * weights).sum()


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target): logits [N, V], targets [N] -> [N], fp32."""
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of each distribution: logits [N, V] -> [N], fp32."""
    log_probs = logits.float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def reverse_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher), which seeks the teacher's modes: logits [N, V] of both -> [N], fp32."""
    return _kl(logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1))


def forward_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student), which covers all of the teacher's modes: logits [N, V] of both -> [N], fp32."""
    return _kl(teacher_logits.float().log_softmax(-1), logits.float().log_softmax(-1))


def jensen_shannon(logits: Tensor, teacher_logits: Tensor, beta: float = 0.5) -> Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m) with m = beta teacher + (1 - beta) student: [N, V] -> [N].

    Agarwal et al. 2023, arXiv:2306.13649, equation 1; 0 < beta < 1.
    """
    student, teacher = logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    shares = torch.tensor([beta, 1.0 - beta], device=logits.device).log()
    mixture = torch.logaddexp(teacher + shares[0], student + shares[1])
    return beta * _kl(teacher, mixture) + (1.0 - beta) * _kl(student, mixture)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) [N]. What p never does costs nothing, even where q rules it out too: 0 * (-inf + inf) is 0 here."""
    difference = torch.where(log_p == -torch.inf, 0.0, log_p - log_q)
    return (log_p.exp() * difference).sum(-1)


@dataclass(frozen=True)
class Clip:
    """How the importance ratio policy / old policy enters the policy gradient.

    The ratio stays within 1 - low .. 1 + high. `hard` (PPO, Schulman et al. 2017): a token outside that would be pushed
    further has no gradient; high > low is clip-high (DAPO, arXiv:2503.14476). Otherwise (CISPO, arXiv:2506.13585) the
    clipped ratio is a constant factor, and every token keeps a gradient. `sequence` (GSPO, arXiv:2507.18071): the ratio
    is that of the whole sequence, exp(mean of its tokens' log-ratios).
    """

    low: float = 0.2
    high: float = 0.2
    hard: bool = True
    sequence: bool = False


@dataclass(frozen=True)
class PolicyLoss:
    """`value` is the sum to be minimised; `clipped` sums the weights of tokens whose ratio was clipped; `old_kl` sums
    weight * KL(old || policy), estimated as r - 1 - log r (Schulman 2020), all scalars, fp32."""

    value: Tensor
    clipped: Tensor
    old_kl: Tensor


def policy_gradient(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip: Clip | None = None,
    sequence_ids: Tensor | None = None,
    correction: Tensor | None = None,
) -> PolicyLoss:
    """Sum over tokens of weight * -ratio * advantage, the ratio clipped as `clip` says; all tensors [N].

    log_probs: of the tokens that were taken, under the policy, with gradient. old_log_probs: under the policy that the
    ratio is relative to; `log_probs.detach()` makes this the plain policy gradient. sequence_ids: 0, 1, ... for
    `clip.sequence`. correction: constant factors, see `truncated_ratio`.
    """
    learned = weights != 0
    log_probs = torch.where(learned, log_probs, 0.0)
    log_ratio = log_probs - torch.where(learned, old_log_probs, 0.0)
    advantages = torch.where(learned, advantages, 0.0)
    old_kl = weighted_sum((log_ratio.expm1() - log_ratio).detach(), weights)
    if clip is None:
        losses, clipped = -log_ratio.exp() * advantages, torch.zeros_like(learned)
    else:
        losses, clipped = _clipped(log_probs, log_ratio, advantages, learned, clip, sequence_ids)
    if correction is not None:
        losses = losses * torch.where(learned, correction, 0.0).detach()
    return PolicyLoss(weighted_sum(losses, weights), weighted_sum(clipped.float(), weights), old_kl)


def truncated_ratio(log_probs: Tensor, sampler_log_probs: Tensor, most: float = 2.0) -> Tensor:
    """min(policy / sampler, most) [N], without gradient: corrects for a sampler that computes other probabilities.

    Truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL").
    """
    return (log_probs - sampler_log_probs).detach().exp().clamp(max=most)


def _clipped(
    log_probs: Tensor, log_ratio: Tensor, advantages: Tensor, learned: Tensor, clip: Clip, sequence_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses [N], and which tokens were clipped [N]."""
    if clip.sequence:
        if sequence_ids is None:
            raise ValueError("a sequence's ratio needs sequence_ids")
        log_ratio = _mean_by_sequence(log_ratio, learned, sequence_ids)
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    if not clip.hard:
        return -bounded.detach() * advantages * log_probs, bounded != ratio
    losses = torch.maximum(-ratio * advantages, -bounded * advantages)
    return losses, (losses > -ratio * advantages).detach()


def _mean_by_sequence(values: Tensor, learned: Tensor, sequence_ids: Tensor) -> Tensor:
    """Each token's sequence's mean over its learned tokens, [N]; 0 where there is nothing to learn."""
    ids = torch.where(learned, sequence_ids, 0)
    size = int(ids.max()) + 1 if len(ids) else 0
    sums = values.new_zeros(size).index_add(0, ids, values)
    counts = values.new_zeros(size).index_add(0, ids, learned.to(values.dtype))
    return torch.where(learned, (sums / counts.clamp(min=1.0))[ids], 0.0)
