"""The size of a step's gradient, also where it lies in shards on several processes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@torch.no_grad()
def clip_gradients(module: nn.Module, max_norm: float) -> float:
    """Scale gradients to a global norm of at most `max_norm`, 0 for any; returns the norm before.

    All processes call it, and get the same norm: that of one process which has all of the gradient.
    """
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = gradient_norm(gradients)
    if 0 < max_norm < norm + _EPS:
        for gradient in gradients:
            _local(gradient).mul_(max_norm / (norm + _EPS))
    return norm


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """The root of the sum of all squares. What is no DTensor is the same on every process."""
    if not gradients:
        return 0.0
    own = [_sum_of_squares(each) for each in gradients if not isinstance(each, DTensor)]
    shards = [_sum_of_squares(_local(each)) / _num_copies(each) for each in gradients if isinstance(each, DTensor)]
    total = torch.stack(own).sum() if own else torch.zeros((), dtype=torch.float64, device=shards[0].device)
    if shards:
        shared = torch.stack(shards).sum()
        torch.distributed.all_reduce(shared)
        total += shared
    return total.sqrt().item()


def _sum_of_squares(gradient: Tensor) -> Tensor:
    """Row by row in fp32, which is fast, then in fp64: long sums lose digits, and would depend on the shard."""
    rows = torch.linalg.vector_norm(gradient, dim=-1) if gradient.dim() > 1 else gradient
    return rows.double().square().sum()


def _num_copies(gradient: DTensor) -> int:
    """How many processes hold each shard."""
    placed = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
    num_shards = 1
    for size, placement in placed:
        num_shards *= 1 if placement.is_replicate() else size
    return torch.distributed.get_world_size() // num_shards


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
