"""Causal attention of packed documents with gradients: backward in the C++ library, see `cpu/attention_training.h`.

PyTorch's backward for the CPU multiplies blocks of a head with a library call for each, and takes five times as long as
its forward pass. Here all products of a block stay in tiles.

Shapes: B rows, T tokens, N of all rows, n of a document, H query heads, G key/value heads, K head_dim.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from codemill.kernels.attention import few_lengths
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.cpu_structs import address

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_SIZE_STEP = 32  # K is a multiple of it


class AttentionPassStruct(ctypes.Structure):
    """`AttentionPass` of `cpu/attention_training.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("query", "out", "out_gradient", "key", "value", "log_sums")),
        *((name, _POINTER) for name in ("query_gradient", "key_gradient", "value_gradient", "starts")),
        *((name, _INT) for name in ("num_documents", "num_heads", "num_kv_heads", "head_dim")),
        ("scale", ctypes.c_float),
    )


@cache
def _processor_has_kernel() -> bool:
    library = load_cpu_library()
    return library is not None and bool(library.has_attention_training())


def has_attention_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend_documents` takes them: bf16 on a processor with AMX, and gradients are wanted."""
    tensors = query, key, value
    if not torch.is_grad_enabled() or not any(each.requires_grad for each in tensors):
        return False
    fits = all(type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.bfloat16 for x in tensors)
    return fits and query.shape[-1] % _SIZE_STEP == 0 and query.numel() > 0 and _processor_has_kernel()


def attend_documents(query: Tensor, key: Tensor, value: Tensor, documents: Sequence[int]) -> Tensor:
    """query [B, T, H, K], key and value [B, T, G, K] -> [B, T, H, K]; see `has_attention_kernel`.

    documents: their lengths, B * T in sum; each attends to itself alone. The result is that of `attend`.
    """
    out: Tensor = _Attention.apply(query, key, value, tuple(documents))
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: tuple[int, ...]) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        rows = [x.flatten(0, 1) for x in (query, key, value)]
        out, log_sums = torch.empty_like(rows[0]), rows[0].new_empty(rows[0].shape[:2], dtype=torch.float32)
        for start, count in zip(accumulate(documents, initial=0), documents, strict=False):
            # Filled up as in `attend_document`: [1, heads, n or more, K]
            missing = few_lengths(count) - count
            heads = (F.pad(x[None, start : start + count], (0, 0, 0, 0, 0, missing)).transpose(1, 2) for x in rows)
            # What F.scaled_dot_product_attention calls here; that keeps the logs of the sums to itself.
            each = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, True)
            document = slice(start, start + count)
            out[document], log_sums[document] = (x[0].transpose(0, 1)[:count] for x in each)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.documents = documents
        return out.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sums = ctx.saved_tensors
        gradients = [torch.empty_like(each) for each in (query, key, value)]
        starts = torch.tensor([0, *accumulate(ctx.documents)])
        tensors = {
            "query": query,
            "key": key,
            "value": value,
            "out": out,
            "out_gradient": gradient.to(torch.bfloat16).contiguous(),
            "log_sums": log_sums,
            "query_gradient": gradients[0],
            "key_gradient": gradients[1],
            "value_gradient": gradients[2],
            "starts": starts,
        }
        struct = AttentionPassStruct(
            **{name: address(tensor) for name, tensor in tensors.items()},
            num_documents=len(ctx.documents),
            num_heads=query.shape[2],
            num_kv_heads=key.shape[2],
            head_dim=query.shape[3],
            scale=query.shape[3] ** -0.5,
        )
        library = load_cpu_library()
        assert library is not None
        library.attention_backward(ctypes.byref(struct), torch.get_num_threads())
        return (*gradients, None)
