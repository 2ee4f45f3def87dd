"""Softmax attention with grouped queries. Shapes: B batch, H heads, T queries, S keys, K head_dim."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of query [B, T, H, K] over key and value [B, S, H_kv, K] -> [B, T, H, K].

    `mask` is bool, broadcastable to [B, 1, T, S]. None means causal when T == S, and everything visible when T == 1.
    """
    batch_size, num_queries, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[2]
    key, value = key.transpose(1, 2), value.transpose(1, 2)  # [B, H_kv, S, K]
    if num_queries == 1:
        # The queries of a group share their keys: as rows of one product they read the cache once.
        grouped = query.view(batch_size, num_kv_heads, num_heads // num_kv_heads, head_dim)
        return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(query.shape)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, mask, is_causal=mask is None, enable_gqa=num_heads != num_kv_heads
    )
    return out.transpose(1, 2)


def attend_reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same in fp32 and one line a step; the arbiter for `attend`."""
    groups = query.shape[2] // key.shape[2]
    key, value = (x.float().repeat_interleave(groups, dim=2) for x in (key, value))
    scores = torch.einsum("bthk,bshk->bhts", query.float(), key) * query.shape[-1] ** -0.5
    if mask is None and query.shape[1] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhts,bshk->bthk", scores.softmax(dim=-1), value).to(query.dtype)
