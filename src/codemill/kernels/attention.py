"""Softmax attention with grouped queries. Shapes: B batch, H heads, T queries, S keys, K head_dim."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of query [B, H, T, K] over key and value [B, H_kv, S, K] -> [B, H, T, K].

    `mask` is bool, broadcastable to [B, 1, T, S]. None means causal when T == S, and everything visible when T == 1.
    """
    batch_size, num_heads, num_queries, head_dim = query.shape
    num_kv_heads = key.shape[1]
    if num_queries == 1:
        # The queries of a group share their keys: as rows of one product they read the cache once.
        grouped = query.view(batch_size, num_kv_heads, num_heads // num_kv_heads, head_dim)
        return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).view(query.shape)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=num_heads != num_kv_heads
    )


def attend_reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same in fp32 and one line a step; the arbiter for `attend`."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query.float() @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # [B, H, T, S]
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=-1) @ value).to(query.dtype)
