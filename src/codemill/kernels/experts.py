"""Mixture-of-experts feed-forward, tokens grouped by expert. Shapes: N tokens, D model, E experts, F ffn, k top-k."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.linear import linear


def route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Router logits [N, E] -> expert weights fp32 [N, k] and expert ids [N, k]; softmax over all, then top-k."""
    weights, experts = logits.softmax(dim=-1, dtype=torch.float32).topk(top_k, dim=-1)
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts


def grouped_experts(
    x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor, documents: Sequence[int] = ()
) -> Tensor:
    """Sum of each token's experts: x [N, D], weights and experts [N, k], gate_up [E, 2F, D], down [E, D, F] -> [N, D].

    Tokens are sorted by expert, so that an expert's weights are read once, and untouched experts never. `documents` are
    the lengths of packed documents, N in sum: each gets, to the last bit, what it would get alone.
    """
    top_k = experts.shape[1]
    num_documents = max(len(documents), 1)
    groups = experts.flatten() * num_documents
    if documents:
        lengths = torch.tensor([length * top_k for length in documents], device=x.device)
        groups = groups + torch.arange(num_documents, device=x.device).repeat_interleave(lengths)
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups, minlength=gate_up.shape[0] * num_documents).view(-1, num_documents).tolist()
    tokens, scales = order // top_k, weights.flatten()[order].to(x.dtype)
    out = torch.zeros_like(x)
    start = 0
    # Unbound, not indexed: the gradient of an index is as large as all experts together, once for each of them.
    for expert_gate_up, expert_down, by_document in zip(gate_up.unbind(), down.unbind(), counts, strict=True):
        if not any(by_document):
            continue
        rows = slice(start, start + sum(by_document))
        start = rows.stop
        result = _expert(x[tokens[rows]], expert_gate_up, expert_down, by_document)
        out.index_add_(0, tokens[rows], result * scales[rows, None])
    return out


def _expert(x: Tensor, gate_up: Tensor, down: Tensor, by_document: Sequence[int]) -> Tensor:
    """One expert on x [n, D], whose rows belong to documents of `by_document` tokens here -> [n, D].

    How a matrix product rounds a row depends on the number of rows, and on their address in memory. So that documents
    do not see in that way where the tokens of others went, each has its own product, on memory of its own.
    """
    if len(by_document) > 1:
        pieces = (piece.clone() for piece in x.split(by_document) if piece.shape[0])
        return torch.cat([_expert(piece, gate_up, down, piece.shape[:1]) for piece in pieces])
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, down)
