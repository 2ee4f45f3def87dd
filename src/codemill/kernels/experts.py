"""Mixture-of-experts feed-forward, tokens grouped by expert. Shapes: N tokens, D model, E experts, F ffn, k top-k."""

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


def grouped_experts(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Sum of each token's experts: x [N, D], weights and experts [N, k], gate_up [E, 2F, D], down [E, D, F] -> [N, D].

    Tokens are sorted by expert, so that an expert's weights are read once, and untouched experts never.
    """
    top_k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten(), minlength=gate_up.shape[0]).tolist()
    tokens, scales = order // top_k, weights.flatten()[order].to(x.dtype)
    out = torch.zeros_like(x)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(start, start + count)
        start += count
        gate, up = linear(x[tokens[rows]], gate_up[expert]).chunk(2, dim=-1)
        result = linear(F.silu(gate) * up, down[expert])
        out.index_add_(0, tokens[rows], result * scales[rows, None])
    return out
