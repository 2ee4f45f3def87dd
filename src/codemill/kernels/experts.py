"""Mixture-of-experts feed-forward, tokens grouped by expert. Shapes: N tokens, D model, E experts, F ffn, k top-k."""

from collections import UserDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.expert_adapter import adapted_experts, has_adapter_kernel
from codemill.kernels.expert_training import Projection, experts_with_gradients
from codemill.kernels.low_rank import ExpertUpdates, LowRank
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import product


def route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Router logits [N, E] -> expert weights fp32 [N, k] and expert ids [N, k]; softmax over all, then top-k."""
    weights, experts = logits.softmax(dim=-1, dtype=torch.float32).topk(top_k, dim=-1)
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts


@dataclass(frozen=True, eq=False)
class Routing:
    """What a layer's router said of the tokens of a pass: logits [N, E], and the experts it chose [N, k]."""

    logits: Tensor
    experts: Tensor


class RoutingLog(UserDict[str, Routing]):
    """By the names of the layers' feed-forwards, `model.layers.I.mlp`.

    No dict, of which FSDP would give each layer a copy of its own, as of all that it finds tensors with gradients in.
    """


@dataclass(frozen=True)
class AdaptedExperts:
    """Updates of the experts, and the rows of the tokens [N] that they are for: a slice, or ids [n] without repeats."""

    rows: slice | Tensor
    updates: ExpertUpdates


def grouped_experts(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor | PackedMatrix,
    down: Tensor | PackedMatrix,
    documents: Sequence[int] = (),
    adapters: Sequence[AdaptedExperts] = (),
    row_block: int = 0,
) -> Tensor:
    """Sum of each token's experts: x [N, D], weights and experts [N, k], gate_up [E, 2F, D], down [E, D, F] -> [N, D].

    Tokens are sorted by expert, so that an expert's weights are read once, and untouched experts never. No two of the
    `adapters` have a row in common. row_block: as for `linear`. `documents` are the lengths of packed documents, N in
    sum: none sees another, to the last bit. Those, and gradients, are a matter of `expert_training.py` where it has a
    form for the adapters; else each document gets what it would get alone.
    """
    if not row_block and (documents or _wants_gradients(x, gate_up, down, adapters)):
        projections = _projections(x, gate_up, down, adapters)
        if projections is not None:
            if any(each.plain is None for each in projections) and has_adapter_kernel(x, *projections):
                return adapted_experts(x, weights, experts, *projections)
            return experts_with_gradients(x, weights, experts, *projections)
    top_k = experts.shape[1]
    shape = gate_up.shape[0], max(len(documents), 1), len(adapters) + 1  # experts, documents, adapters with none first
    groups = experts.flatten() * (shape[1] * shape[2])
    if documents or adapters:
        groups = groups + _parts(x, documents, adapters).repeat_interleave(top_k)
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups, minlength=shape[0] * shape[1] * shape[2]).view(shape).tolist()
    tokens, scales = order // top_k, weights.flatten()[order].to(x.dtype)
    out = torch.zeros_like(x)
    start = 0
    # Unbound, not indexed: the gradient of an index is as large as all experts together, once for each of them.
    each_gate_up, each_down = (x if isinstance(x, PackedMatrix) else x.unbind() for x in (gate_up, down))
    for index in range(shape[0]):
        count = sum(map(sum, counts[index]))
        if not count:
            continue
        rows = slice(start, start + count)
        start = rows.stop
        updates = [(each.updates.gate_up[index], each.updates.down[index]) for each in adapters]
        result = _expert(x[tokens[rows]], each_gate_up[index], each_down[index], counts[index], updates, row_block)
        out.index_add_(0, tokens[rows], result * scales[rows, None])
    return out


def _wants_gradients(
    x: Tensor, gate_up: Tensor | PackedMatrix, down: Tensor | PackedMatrix, adapters: Sequence[AdaptedExperts]
) -> bool:
    weights = [each for each in (x, gate_up, down) if isinstance(each, Tensor)]
    return torch.is_grad_enabled() and (bool(adapters) or any(each.requires_grad for each in weights))


def _projections(
    x: Tensor, gate_up: Tensor | PackedMatrix, down: Tensor | PackedMatrix, adapters: Sequence[AdaptedExperts]
) -> tuple[Projection, Projection] | None:
    """With the adapter of all rows, if there is one. None where several adapters share the rows, or some have none."""
    if not adapters:
        return Projection(gate_up), Projection(down)
    everywhere = isinstance(adapters[0].rows, slice) and len(range(*adapters[0].rows.indices(len(x)))) == len(x)
    if len(adapters) > 1 or not everywhere:
        return None
    updates = adapters[0].updates
    first, second = Projection.of(gate_up, updates.gate_up), Projection.of(down, updates.down)
    return None if first is None or second is None else (first, second)


def _parts(x: Tensor, documents: Sequence[int], adapters: Sequence[AdaptedExperts]) -> Tensor:
    """The number of each token's part [N]; a part is what a document has of an adapter, or of none, in that order."""
    parts = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    if documents:
        lengths = torch.tensor(documents, device=x.device)
        parts += torch.arange(len(documents), device=x.device).repeat_interleave(lengths) * (len(adapters) + 1)
    for index, adapter in enumerate(adapters, start=1):
        parts[adapter.rows] += index
    return parts


def _expert(
    x: Tensor,
    gate_up: Tensor | PackedMatrix,
    down: Tensor | PackedMatrix,
    counts: Sequence[Sequence[int]],
    updates: Sequence[tuple[LowRank | None, LowRank | None]],
    row_block: int,
) -> Tensor:
    """One expert on x [n, D] -> [n, D]; `counts` are the rows of each document, by adapter with those of none first.

    How a matrix product rounds a row depends on the number of rows, and on their address in memory. So that documents
    do not see in that way where the tokens of others went, each has its own product, on memory of its own.
    """
    if len(counts) > 1:
        pieces = zip(x.split([sum(by_adapter) for by_adapter in counts]), counts, strict=True)
        own = [(piece.clone(), by_adapter) for piece, by_adapter in pieces if piece.shape[0]]
        return torch.cat([_expert(piece, gate_up, down, [by_adapter], updates, row_block) for piece, by_adapter in own])
    gate, up = _product(x, gate_up, counts[0], [update for update, _ in updates], row_block).chunk(2, dim=-1)
    return _product(F.silu(gate) * up, down, counts[0], [update for _, update in updates], row_block)


def _product(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    counts: Sequence[int],
    updates: Sequence[LowRank | None],
    row_block: int,
) -> Tensor:
    """x [n, in] @ weight^T -> [n, out], with each update on its `counts` of rows, after `counts[0]` without one."""
    out = product(x, weight, row_block)
    start = counts[0]
    for count, update in zip(counts[1:], updates, strict=True):
        rows = slice(start, start + count)
        start = rows.stop
        if update is not None and count:
            out[rows].add_(update.apply(x[rows]))
    return out
