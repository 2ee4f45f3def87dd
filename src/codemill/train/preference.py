"""Losses of preference pairs as pure functions: a value for each of P pairs, in nats.

A log-ratio is log p(answer) under the policy less that under the reference, summed over the answer's tokens.
"""

import torch.nn.functional as F
from torch import Tensor


def sigmoid_losses(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7): log-ratios [P] of both answers -> [P].

    label_smoothing: the probability that a pair is labelled the wrong way round (Mitchell 2023, conservative DPO).
    """
    return _logistic(beta * (chosen - rejected), label_smoothing)


def ipo_losses(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """IPO (Azar et al. 2023, arXiv:2310.12036, equation 17): log-ratios per token [P] of both answers -> [P].

    Means over tokens rather than sums, as the authors computed it.
    """
    return (chosen - rejected - 1 / (2 * beta)).square()


def simpo_losses(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, equation 6): log-probabilities per token [P] of both answers -> [P].

    There is no reference; beta times the chosen answer's mean is to be larger by the margin gamma.
    """
    return _logistic(beta * (chosen - rejected) - gamma, label_smoothing)


def _logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong
