"""Experts on several processes: each has some, and gets the tokens of all processes that are for them.

Shapes: N tokens of this process, M those that its experts get, k top-k, E experts, P processes, D model, F ffn.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from codemill.kernels.experts import grouped_experts
from codemill.kernels.low_rank import AdaptedRows
from codemill.models.moe import Experts, SparseMoe


class ParallelExperts(Experts, ABC):
    """A layer's experts over the processes of `mesh`, in order. Parameters are named and shaped as in `Experts`."""

    def __init__(self, experts: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.name = experts.name
        for name, parameter in experts.named_parameters():
            local = parameter.detach().chunk(mesh.size())[mesh.get_local_rank()].to(mesh.device_type, copy=True)
            whole = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
            self.register_parameter(name, nn.Parameter(whole, requires_grad=parameter.requires_grad))
        self._group, self._num_processes, self._rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()

    @abstractmethod
    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Sum of each token's experts, wherever they are: x [N, D], weights and experts [N, k] -> [N, D]."""


class ExchangingExperts(ParallelExperts):
    """Experts of processes with tokens of their own, which go to the experts' processes and back."""

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        gate_up, down = (_local(each) for each in (self.gate_up_proj, self.down_proj))
        counts = experts.flatten().bincount(minlength=len(gate_up) * self._num_processes)
        counts = counts.view(self._num_processes, len(gate_up))  # [P, E / P], of the tokens to send
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts, group=self._group)
        there, here = counts.sum(1).tolist(), received.sum(1).tolist()
        order = experts.flatten().argsort(stable=True)
        tokens = order // experts.shape[1]
        rows: Tensor = _Exchange.apply(x[tokens], there, here, self._group)  # [M, D], by process and then by expert
        ids = torch.arange(len(gate_up), device=x.device).repeat(self._num_processes)
        ids = ids.repeat_interleave(received.flatten())
        if len(rows):  # else the rows themselves: what goes back must depend on them, or the others wait for gradients
            rows = _compute(rows, ids, gate_up, down)
        out: Tensor = _Exchange.apply(rows, here, there, self._group)  # [N * k, D]
        scales = weights.flatten()[order].to(x.dtype)
        return torch.zeros_like(x).index_add(0, tokens, out * scales[:, None])


class AddingExperts(ParallelExperts):
    """Experts of processes with the same tokens, N on each: it computes its own experts, and all of them are added up.

    One sum of [N, D] a pass, as for a matrix in parts (Shoeybi et al. 2019, arXiv:1909.08053).
    """

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        gate_up, down = (_local(each) for each in (self.gate_up_proj, self.down_proj))
        x, weights = _Same.apply(x, weights, self._group)
        own = experts - self._rank * len(gate_up)
        tokens, places = ((own >= 0) & (own < len(gate_up))).nonzero(as_tuple=True)
        rows = x[tokens]
        if len(rows):  # else the rows themselves, so that the backward pass comes by here on every process
            rows = _compute(rows, own[tokens, places], gate_up, down)
        scales = weights[tokens, places].to(x.dtype)
        out: Tensor = _Added.apply(torch.zeros_like(x).index_add(0, tokens, rows * scales[:, None]), self._group)
        return out


class ParallelMoe(SparseMoe):
    """A `SparseMoe` whose experts are on several processes; router and shared expert are whole on each."""

    experts: ParallelExperts

    def __init__(self, moe: SparseMoe, experts: ParallelExperts) -> None:
        nn.Module.__init__(self)
        self.moe, self.gate = moe.moe, moe.gate
        self.experts = experts
        if moe.moe.shared_expert_intermediate_size:
            self.shared_expert, self.shared_expert_gate = moe.shared_expert, moe.shared_expert_gate

    def compute_experts(
        self, x: Tensor, weights: Tensor, experts: Tensor, adapters: Sequence[AdaptedRows], documents: Sequence[int]
    ) -> Tensor:
        """As `SparseMoe`; documents are together in an expert's product, so they see each other's rounding."""
        out: Tensor = self.experts(x, weights, experts)
        return out


class _Same(torch.autograd.Function):
    """x and weights that all processes of a group have; of their gradients each has a part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        ctx.group = group
        return x.view_as(x), weights.view_as(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*(_sum(gradient, ctx.group) for gradient in gradients), None)


class _Added(torch.autograd.Function):
    """The sum over the processes of a group, which then do the same with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


class _Exchange(torch.autograd.Function):
    """Rows [sum(there), D] to the processes of a group, `there[p]` of them to process p, -> [sum(here), D]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: list[int], here: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.there, ctx.here, ctx.group = there, here, group
        return _exchange(rows, there, here, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(gradient, ctx.here, ctx.there, ctx.group), None, None, None


def _exchange(rows: Tensor, there: list[int], here: list[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(here), rows.shape[1])
    dist.all_to_all_single(out, rows.contiguous(), here, there, group=group)
    return out


def _compute(rows: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Each row's expert: rows [M, D], ids [M] -> [M, D]. As one document, so that validation computes as training."""
    return grouped_experts(rows, rows.new_ones(len(rows), 1), ids[:, None], gate_up, down, documents=(len(rows),))


def _local(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()
