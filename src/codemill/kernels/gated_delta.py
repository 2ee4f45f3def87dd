"""The gated delta rule (Yang et al. 2024, arXiv:2412.06464): token by token, and in chunks.

Shapes: B batch, H value heads, T tokens, K key dim, V value dim, N chunks, c tokens in a chunk. Everything is fp32.
`g` is the log decay (<= 0) and `beta` the write strength, both [B, H, T]. A token with g = beta = 0 changes nothing,
which is how padding is expressed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_SIZE = 64


def gated_delta_recurrent(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition: S <- exp(g) S; S <- S + k (beta (v - S^T k))^T; o = S^T q.

    query, key [B, H, T, K], value [B, H, T, V], state [B, H, K, V] -> outputs [B, H, T, V] and the new state.
    """
    outputs = []
    for t in range(query.shape[2]):
        state = state * g[:, :, t, None, None].exp()
        k, v = key[:, :, t, :, None], value[:, :, t, None]  # [B, H, K, 1], [B, H, 1, V]
        predicted = k.transpose(-1, -2) @ state
        state = state + k * (beta[:, :, t, None, None] * (v - predicted))
        outputs.append(query[:, :, t, None] @ state)
    return torch.cat(outputs, dim=2), state


def gated_delta_chunked(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same result with matrix products: a triangular system inside each chunk, then a scan over chunks."""
    num_tokens = query.shape[2]
    query, key, value, g, beta = (_split_chunks(x) for x in (query, key, value, g, beta))

    # Log decay since the chunk began, this token's included. Differences of these sums go through exp: in fp32 their
    # rounding would be the largest error of all.
    decay = g.double().cumsum(dim=-1)
    future = torch.ones(CHUNK_SIZE, CHUNK_SIZE, dtype=torch.bool, device=g.device).triu(1)
    pairwise = (decay[..., :, None] - decay[..., None, :]).masked_fill(future, float("-inf")).exp().float()
    # What a token keeps of the state before the chunk, and what the state after the chunk keeps of a token.
    from_start = decay.exp().float()
    to_end = (decay[..., -1:] - decay).exp().float()

    # Token i writes w_i = beta_i (v_i - what the state already predicts); w solves a unit-triangular system.
    system = (beta[..., None] * key) @ key.transpose(-1, -2) * pairwise
    right = torch.cat((beta[..., None] * value, (beta * from_start)[..., None] * key), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    writes, corrections = solved.split((value.shape[-1], key.shape[-1]), dim=-1)
    scores = query @ key.transpose(-1, -2) * pairwise  # [B, H, N, c, c]
    query, key = query * from_start[..., None], key * to_end[..., None]

    outputs = []
    for n in range(query.shape[2]):
        written = writes[:, :, n] - corrections[:, :, n] @ state
        outputs.append(query[:, :, n] @ state + scores[:, :, n] @ written)
        state = state * from_start[:, :, n, -1, None, None] + key[:, :, n].transpose(-1, -2) @ written
    return torch.cat(outputs, dim=2)[:, :, :num_tokens], state


def _split_chunks(x: Tensor) -> Tensor:
    """[B, H, T, ...] -> [B, H, N, c, ...]; the last chunk is filled up with zeros."""
    missing = -x.shape[2] % CHUNK_SIZE
    x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, missing))
    return x.unflatten(2, (-1, CHUNK_SIZE))
