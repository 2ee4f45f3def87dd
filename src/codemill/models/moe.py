"""Sparse mixture of experts, with the shared expert of hybrid models. Shapes: E experts, F ffn, D model."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemill.config import MoeConfig
from codemill.kernels.elementwise import in_whole_vectors
from codemill.kernels.experts import AdaptedExperts, Routing, RoutingLog, grouped_experts, route
from codemill.kernels.linear import Linear
from codemill.kernels.low_rank import AdaptedRows
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import converter, get_packed
from codemill.models.layers import Mlp


class Experts(nn.Module):
    """All experts of a layer, stacked: gate and up [E, 2F, D], down [E, D, F]. On disk they are one tensor each.

    `name` is the one under which adapters know them.
    """

    name = ""

    def __init__(self, hidden_size: int, moe: MoeConfig) -> None:
        super().__init__()
        size = moe.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(moe.num_experts, 2 * size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(moe.num_experts, hidden_size, size))
        self._shapes = {"gate_up_proj": (2 * size, hidden_size), "down_proj": (hidden_size, size)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Experts":
        return super()._apply(converter(self, fn), recurse)

    def matrices(self, name: str) -> Tensor | PackedMatrix:
        """The stacked weights `gate_up_proj` or `down_proj`, which may be packed (see `quantized.py`)."""
        weight: Tensor = getattr(self, name)
        return weight if weight.is_floating_point() else get_packed(self, name, *self._shapes[name])


class SparseMoe(nn.Module):
    """Softmax router over all experts, top-k of them per token, weights renormalised if the config says so."""

    def __init__(self, hidden_size: int, moe: MoeConfig) -> None:
        super().__init__()
        self.moe = moe
        self.gate = Linear(hidden_size, moe.num_experts, bias=False)
        self.experts = Experts(hidden_size, moe)
        if moe.shared_expert_intermediate_size:
            self.shared_expert = Mlp(hidden_size, moe.shared_expert_intermediate_size)
            self.shared_expert_gate = Linear(hidden_size, 1, bias=False)

    def forward(
        self,
        x: Tensor,
        adapters: Sequence[AdaptedRows] = (),
        documents: Sequence[int] = (),
        routing: RoutingLog | None = None,
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]; `documents` and `routing` are those of `ForwardContext`."""
        flat = x.flatten(0, 1)
        logits = self.gate(flat, adapters)
        weights, experts = route(logits, self.moe.num_experts_per_tok, self.moe.norm_topk_prob)
        if routing is not None:
            # What is computed once more for the backward pass is not noted once more.
            routing.setdefault(self.gate.name.removesuffix(".gate"), Routing(logits, experts))
        out = self.compute_experts(flat, weights, experts, adapters, documents)
        if self.moe.shared_expert_intermediate_size:
            gate = in_whole_vectors(F.sigmoid, self.shared_expert_gate(flat, adapters))
            out = out + gate * self.shared_expert(flat, adapters)
        return out.view(x.shape)

    def compute_experts(
        self, x: Tensor, weights: Tensor, experts: Tensor, adapters: Sequence[AdaptedRows], documents: Sequence[int]
    ) -> Tensor:
        """Sum of each token's experts: x [N, D], weights and ids of experts [N, k] -> [N, D]."""
        stacked = self.experts.matrices("gate_up_proj"), self.experts.matrices("down_proj")
        return grouped_experts(x, weights, experts, *stacked, documents, self._adapted(adapters), self.gate.row_block)

    def _adapted(self, adapters: Sequence[AdaptedRows]) -> list[AdaptedExperts]:
        """The adapters that change these experts."""
        found = ((each.rows, each.updates.experts.get(self.experts.name)) for each in adapters)
        return [AdaptedExperts(rows, updates) for rows, updates in found if updates is not None]
