"""Losses as pure functions of logits and targets. Shapes: N predicted tokens, V vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of weight * -log p(target), in nats: logits [N, V], targets [N], weights [N] -> scalar.

    Divide by the sum of the weights over the whole batch, not over the micro-batch, or accumulation changes the loss.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.dot(losses, weights.to(losses.dtype))
