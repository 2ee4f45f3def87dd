"""Losses that never hold the logits of all tokens. Shapes: N tokens, n tokens of a chunk, D model, V vocabulary.

At a vocabulary of 151,936 the logits of 8,192 tokens are 5 GB in fp32, and their gradient as much again. Here tokens go
through the head in chunks. The cross entropy of a plain head has its gradients computed along with it, chunk by chunk,
as Liger (Hsu et al. 2024, arXiv:2410.10989) does, so nothing is computed twice; what depends on the tokens in another
way than as a weighted sum, or goes through another head, computes a chunk's logits a second time for its gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from codemill.train.losses import select_learned, token_entropy, token_log_probs, weighted_cross_entropy

CHUNK_BYTES = 1 << 27  # of a chunk's logits in fp32; there are two or three arrays of that size at a time

Head = Tensor | Callable[[Tensor], Tensor]  # the weight [V, D], or hidden states [n, D] -> logits [n, V]
TokenFunction = Callable[..., Tensor]  # logits [n, V] in fp32 and tensors [n, ...] -> [n]


def chunked_cross_entropy(
    hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Sum over tokens of weight * -log p(target): hidden [N, D], targets [N], weights [N] -> scalar, fp32.

    Equals `weighted_cross_entropy` of all logits. A `head` that is a tensor and needs no gradient costs none. Gradients
    of the head are summed in fp32. Under autocast the products are in its dtype.
    """
    hidden, targets, weights = select_learned(weights, hidden, targets, weights.float())
    if isinstance(head, Tensor):
        grad = torch.is_grad_enabled()
        wanted = (grad and hidden.requires_grad, grad and head.requires_grad)
        loss: Tensor = _CrossEntropy.apply(hidden, head, targets, weights, wanted, chunk_bytes)
        return loss
    total = hidden.new_zeros((), dtype=torch.float32) + hidden[:0].float().sum()  # has a gradient if nothing is learned
    for rows in _chunks(hidden, head, chunk_bytes):
        total = total + _recomputed(_summed_cross_entropy, head, hidden[rows], targets[rows], weights[rows])
    return total
