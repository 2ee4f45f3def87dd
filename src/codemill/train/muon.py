"""Muon (Jordan 2024), for stacked matrices and for matrices in shards too. Shapes: E experts, F ffn, D model."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: the slope at zero is as large as five iterations allow
_ITERATIONS = 5
_EPS = 1e-7


class Muon(Optimizer):
    """Momentum whose update of each matrix is made orthogonal: of all directions in it, each is as long as the others.

    The update is scaled to the size of AdamW's, by 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, arXiv:2502.16982,
    section 2.2), so both take alike rates. Of a single matrix it does what `torch.optim.Muon` does, to the last bit.

    Parameters are matrices, or stacks [E, rows, columns] of them, each of which is one of its own. A group's `joined`
    says how many of them lie in a parameter's rows one below the other, as gate and up do in [E, 2F, D]. A matrix in
    shards is put together for it, on every process; a stack whose shards are whole matrices is not.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "joined": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer, momentum = state["momentum_buffer"], group["momentum"]
        buffer.lerp_(gradient, 1 - momentum)
        update = _of_whole_matrices(gradient.lerp(buffer, momentum), group["joined"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        rows, columns = parameter.shape[-2] // group["joined"], parameter.shape[-1]
        parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, columns)))


def orthogonalise(x: Tensor) -> Tensor:
    """Each matrix of x [..., rows, columns] with its singular values moved close to 1, in bf16.

    A quintic Newton-Schulz iteration; after five of them they lie between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    is_tall = x.shape[-2] > x.shape[-1]
    out = x.bfloat16()
    out = out.mT if is_tall else out
    out = out / torch.linalg.vector_norm(out, dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    add_product = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(_ITERATIONS):
        gram = out @ out.mT
        gram = add_product(gram, gram, gram, beta=b, alpha=c)
        out = add_product(out, gram, out, beta=a)
    return out.mT if is_tall else out


def _of_whole_matrices(update: Tensor, joined: int) -> Tensor:
    """`update` made orthogonal, as it lies on this process."""
    if not isinstance(update, DTensor):
        return _orthogonalise_joined(update, joined)
    mesh, placements = update.device_mesh, update.placements
    if update.dim() == 3 and all(each.is_replicate() or getattr(each, "dim", None) == 0 for each in placements):
        local = _orthogonalise_joined(update.to_local(), joined)
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=update.shape, stride=update.stride())
    whole = _orthogonalise_joined(update.full_tensor(), joined).contiguous()
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=placements)


def _orthogonalise_joined(x: Tensor, joined: int) -> Tensor:
    if joined == 1 or not x.numel():
        return orthogonalise(x) if x.numel() else x.bfloat16()
    matrices = x.unflatten(-2, (joined, -1)).flatten(0, -3)  # [E * joined, rows, columns]
    return orthogonalise(matrices).reshape(x.shape)
