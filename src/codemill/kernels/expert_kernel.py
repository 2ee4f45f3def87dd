"""The experts with gradients in the C++ library: bf16 products on processors with AMX; see `cpu/expert_training.h`.

It does what `expert_training.py` does, with the same rounding of products' inputs, but keeps what lies between them in
the processor's cache, reads fp32 weights without a copy in bf16, and sums gradients of weights in fp32. A token's bits
depend on nothing but itself.

Shapes: N tokens, k top-k, P = N * k pairs of a token and an expert, D model, E experts, F ffn.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.cpu_structs import PLAIN_KINDS, address

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_SIZE_STEP = 32  # D and F are multiples of it


class ExpertPassStruct(ctypes.Structure):
    """`ExpertPass` of `cpu/expert_training.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "gate_up", "down", "tokens", "starts", "hidden", "rows")),
        *((name, _POINTER) for name in ("gradient", "scales", "scale_gradient")),
        *((name, _POINTER) for name in ("gate_up_gradient", "down_gradient")),
        *((name, _INT) for name in ("num_experts", "hidden_size", "ffn", "weights_are_bf16")),
    )


@cache
def _processor_has_kernel() -> bool:
    library = load_cpu_library()
    return library is not None and bool(library.has_expert_training())


def has_expert_kernel(x: Tensor, gate_up: Tensor, down: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library computes these experts on x [N, D] with products in `dtype`."""
    weights = gate_up, down
    fits = all(w.device.type == "cpu" and w.dtype in PLAIN_KINDS and w.is_contiguous() for w in weights)
    sizes = down.shape[1] % _SIZE_STEP == 0 and down.shape[2] % _SIZE_STEP == 0 and gate_up.dtype == down.dtype
    return fits and sizes and dtype == torch.bfloat16 and len(x) > 0 and _processor_has_kernel()


def experts_in_kernel(
    x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, pairs: Tensor, counts: Sequence[int]
) -> Tensor:
    """x [N, D], weights [N, k], gate_up [E, 2F, D], down [E, D, F] -> [N, D] in the dtype of x.

    pairs [P]: places in the flattened [N, k], sorted by expert, of which each has `counts`. See `has_expert_kernel`.
    """
    out: Tensor = _Experts.apply(x, weights, gate_up, down, pairs, torch.tensor([0, *counts]).cumsum(0))
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, pairs: Tensor, starts: Tensor
    ) -> Tensor:
        num_pairs, (hidden_size, ffn) = len(pairs), down.shape[1:]
        rounded, tokens = x.to(torch.bfloat16).contiguous(), pairs // weights.shape[1]
        hidden = rounded.new_empty(num_pairs, 2 * ffn)
        rows = rounded.new_empty(num_pairs, hidden_size)
        _call("forward", x=rounded, gate_up=gate_up, down=down, tokens=tokens, starts=starts, hidden=hidden, rows=rows)
        scales = weights.float().contiguous()
        out = _combine(rows, pairs, scales)
        ctx.save_for_backward(rounded, scales, gate_up, down, pairs, tokens, starts, hidden)
        ctx.dtypes = x.dtype, weights.dtype
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rounded, scales, gate_up, down, pairs, tokens, starts, hidden = ctx.saved_tensors
        wants_x, _, wants_gate_up, wants_down, *_ = ctx.needs_input_grad
        sorted_scales = scales.flatten()[pairs]
        scale_gradient = torch.empty_like(sorted_scales)
        rows = rounded.new_empty(len(pairs), rounded.shape[1]) if wants_x else None
        of_gate_up = _empty_gradient(gate_up, starts) if wants_gate_up else None
        of_down = _empty_gradient(down, starts) if wants_down else None
        _call(
            "backward", x=rounded, gate_up=gate_up, down=down, tokens=tokens, starts=starts, hidden=hidden, rows=rows,
            gradient=gradient.to(torch.bfloat16).contiguous(), scales=sorted_scales, scale_gradient=scale_gradient,
            gate_up_gradient=of_gate_up, down_gradient=of_down,
        )  # fmt: skip
        of_x = None if rows is None else _combine(rows, pairs, None, scales.shape[1]).to(ctx.dtypes[0])
        of_scales = torch.empty_like(scale_gradient).index_copy_(0, pairs, scale_gradient).view(scales.shape)
        return of_x, of_scales.to(ctx.dtypes[1]), of_gate_up, of_down, None, None


def _empty_gradient(weight: Tensor, starts: Tensor) -> Tensor:
    """Memory for it; zeros where an expert has no tokens."""
    gradient = torch.empty_like(weight)
    for index in (starts[1:] == starts[:-1]).nonzero().flatten().tolist():
        gradient[index].zero_()
    return gradient


def _call(name: str, **tensors: Tensor | None) -> None:
    library, down = load_cpu_library(), tensors["down"]
    assert library is not None
    assert down is not None
    num_experts, hidden_size, ffn = down.shape
    struct = ExpertPassStruct(
        **{key: address(tensor) for key, tensor in tensors.items()},
        num_experts=num_experts,
        hidden_size=hidden_size,
        ffn=ffn,
        weights_are_bf16=PLAIN_KINDS[down.dtype],
    )
    function = library.experts_forward if name == "forward" else library.experts_backward
    function(ctypes.byref(struct), torch.get_num_threads())


def _combine(rows: Tensor, pairs: Tensor, scales: Tensor | None, top_k: int | None = None) -> Tensor:
    """fp32 [N, D]: each token's sum of its rows of [P, D], by `scales` [N, k]."""
    library = load_cpu_library()
    assert library is not None
    top_k = top_k or (1 if scales is None else scales.shape[1])
    places = torch.empty_like(pairs)
    places[pairs] = torch.arange(len(pairs))
    out = torch.empty(len(pairs) // top_k, rows.shape[1])
    pointers = rows.data_ptr(), places.data_ptr(), address(scales), out.data_ptr()
    library.combine_experts(*pointers, len(out), top_k, rows.shape[1], torch.get_num_threads())
    return out
