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


def attend_document(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` of whole documents, causal: query [B, T, H, K], key and value [B, T, H_kv, K] -> [B, T, H, K].

    In bf16 on the CPU oneDNN compiles products for every new length: with gradients 5 MB that are kept and 10 ms, of
    which the documents of a run have hundreds. So they are filled up to one of few lengths; keys that come after a
    query change nothing of it.
    """
    num_tokens, dtype = query.shape[1], _product_dtype(query)
    missing = few_lengths(num_tokens) - num_tokens
    if not missing or query.device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return attend(query, key, value)
    filled = (F.pad(x.to(dtype), (0, 0, 0, 0, 0, missing)) for x in (query, key, value))
    return attend(*filled)[:, :num_tokens]


def few_lengths(num_tokens: int) -> int:
    """The next one of 1, 16, 32, and the multiples of 64."""
    if num_tokens <= 1:
        return num_tokens
    return next((length for length in (16, 32) if num_tokens <= length), -(-num_tokens // 64) * 64)


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


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
