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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same result with matrix products: a triangular system inside each chunk, then a scan over chunks.

    With `document_ids` [B, T] each document starts from a zero state (`state` must then be zero) and sees only itself.
    """
    num_tokens = query.shape[2]
    documents = torch.zeros_like(g[:, :1]) if document_ids is None else document_ids[:, None]  # [B, 1, T]
    query, key, value, g, beta = (_split_chunks(x, 0.0) for x in (query, key, value, g, beta))
    documents = _split_chunks(documents, None)  # [B, 1, N, c]

    decay = g.cumsum(dim=-1)  # log decay since the chunk began, this token's included
    visible = (documents[..., :, None] == documents[..., None, :]).tril()  # [B, 1, N, c, c]
    pairwise = (decay[..., :, None] - decay[..., None, :]).masked_fill(~visible, float("-inf")).exp()
    # What a token keeps of the state before the chunk, and what the state after the chunk keeps of a token.
    before = torch.cat((documents[:, :, :1, :1], documents[:, :, :-1, -1:]), dim=2)  # [B, 1, N, 1]
    from_start = decay.exp() * (documents == before)
    to_end = (decay[..., -1:] - decay).exp() * (documents == documents[..., -1:])

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


def _split_chunks(x: Tensor, fill: float | None) -> Tensor:
    """[B, H, T, ...] -> [B, H, N, c, ...]; the last chunk is filled up with `fill`, or with the last token if None."""
    missing = -x.shape[2] % CHUNK_SIZE
    if fill is None:
        x = torch.cat((x, x[:, :, -1:].expand(-1, -1, missing)), dim=2)
    else:
        x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, missing), value=fill)
    return x.unflatten(2, (-1, CHUNK_SIZE))
