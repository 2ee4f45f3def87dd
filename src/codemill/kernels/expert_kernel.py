"""The experts with gradients in the C++ library; see `cpu/expert_training.h`.

It does what `expert_training.py` does, but keeps what lies between the products in the processor's cache and reads
weights as they are. There are two forms. That for processors with AMX rounds the inputs of products to bf16, and sums
gradients of weights in fp32; the other computes in fp32 throughout, on any processor, and stands in for the first under
autocast. In both a token's bits depend on nothing but itself.

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
_SIZE_STEP = 32  # D and F are multiples of it for AMX
AMX = 0  # in place of a number of lanes
MAX_LANES = 16  # floats of a vector, at most; tests set it lower


class ExpertPassStruct(ctypes.Structure):
    """`ExpertPass` of `cpu/expert_training.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "gate_up", "down", "tokens", "starts", "hidden", "rows")),
        *((name, _POINTER) for name in ("gradient", "scales", "scale_gradient")),
        *((name, _POINTER) for name in ("gate_up_gradient", "down_gradient")),
        *((name, _INT) for name in ("num_experts", "hidden_size", "ffn")),
        *((name, _INT) for name in ("weights_are_bf16", "x_is_bf16", "gradient_is_bf16")),
    )


@cache
def _has_amx() -> bool:
    library = load_cpu_library()
    return library is not None and bool(library.has_expert_training())


def has_expert_kernel(x: Tensor, gate_up: Tensor, down: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library computes these experts on x [N, D] with products in `dtype`."""
    tensors = x, gate_up, down
    fits = all(each.device.type == "cpu" and each.dtype in PLAIN_KINDS for each in tensors) and len(x) > 0
    if not fits or gate_up.dtype != down.dtype or not (gate_up.is_contiguous() and down.is_contiguous()):
        return False
    if dtype == torch.bfloat16 and _has_amx():
        return down.shape[1] % _SIZE_STEP == 0 and down.shape[2] % _SIZE_STEP == 0
    # An expert is computed by one thread.
    has_work = torch.get_num_threads() <= len(down)
    return dtype in PLAIN_KINDS and has_work and load_cpu_library() is not None


def experts_in_kernel(
    x: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    pairs: Tensor,
    counts: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """x [N, D], weights [N, k], gate_up [E, 2F, D], down [E, D, F] -> [N, D] in the dtype of x.

    pairs [P]: places in the flattened [N, k], sorted by expert, of which each has `counts`. See `has_expert_kernel`.
    """
    lanes = AMX if dtype == torch.bfloat16 and _has_amx() else MAX_LANES
    starts = torch.tensor([0, *counts]).cumsum(0)
    out: Tensor = _Experts.apply(x, weights, gate_up, down, pairs, starts, lanes)
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
        pairs: Tensor,
        starts: Tensor,
        lanes: int,
    ) -> Tensor:
        num_pairs, (hidden_size, ffn) = len(pairs), down.shape[1:]
        rounded, tokens = _product_input(x, lanes), pairs // weights.shape[1]
        between = torch.bfloat16 if lanes == AMX else torch.float32
        hidden = torch.empty(num_pairs, 2 * ffn, dtype=between)
        rows = torch.empty(num_pairs, hidden_size, dtype=between)
        tensors = {"gate_up": gate_up, "down": down, "tokens": tokens, "starts": starts, "hidden": hidden}
        _call("forward", lanes, x=rounded, rows=rows, **tensors)
        scales = weights.float().contiguous()
        out = combine_experts(rows, pairs, scales, lanes)
        ctx.save_for_backward(rounded, scales, gate_up, down, pairs, tokens, starts, hidden)
        ctx.dtypes, ctx.lanes = (x.dtype, weights.dtype), lanes
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rounded, scales, gate_up, down, pairs, tokens, starts, hidden = ctx.saved_tensors
        wants_x, _, wants_gate_up, wants_down, *_ = ctx.needs_input_grad
        sorted_scales = scales.flatten()[pairs]
        scale_gradient = torch.empty_like(sorted_scales)
        rows = hidden.new_empty(len(pairs), rounded.shape[1]) if wants_x else None
        of_gate_up = _empty_gradient(gate_up, starts) if wants_gate_up else None
        of_down = _empty_gradient(down, starts) if wants_down else None
        _call(
            "backward", ctx.lanes, x=rounded, gate_up=gate_up, down=down, tokens=tokens, starts=starts, hidden=hidden,
            rows=rows, gradient=_product_input(gradient, ctx.lanes), scales=sorted_scales,
            scale_gradient=scale_gradient, gate_up_gradient=of_gate_up, down_gradient=of_down,
        )  # fmt: skip
        of_x = (
            None if rows is None else combine_experts(rows, pairs, None, ctx.lanes, scales.shape[1]).to(ctx.dtypes[0])
        )
        of_scales = torch.empty_like(scale_gradient).index_copy_(0, pairs, scale_gradient).view(scales.shape)
        return of_x, of_scales.to(ctx.dtypes[1]), of_gate_up, of_down, None, None, None


def _product_input(x: Tensor, lanes: int) -> Tensor:
    """As the kernels read it."""
    return (x.to(torch.bfloat16) if lanes == AMX else x).contiguous()


def _empty_gradient(weight: Tensor, starts: Tensor) -> Tensor:
    """Memory for it; zeros where an expert has no tokens."""
    gradient = torch.empty_like(weight)
    for index in (starts[1:] == starts[:-1]).nonzero().flatten().tolist():
        gradient[index].zero_()
    return gradient


def _call(name: str, lanes: int, **tensors: Tensor | None) -> None:
    library, down, x, gradient = load_cpu_library(), tensors["down"], tensors["x"], tensors.get("gradient")
    assert library is not None
    assert down is not None
    assert x is not None
    num_experts, hidden_size, ffn = down.shape
    struct = ExpertPassStruct(
        **{key: address(tensor) for key, tensor in tensors.items()},
        num_experts=num_experts,
        hidden_size=hidden_size,
        ffn=ffn,
        weights_are_bf16=PLAIN_KINDS[down.dtype],
        x_is_bf16=PLAIN_KINDS[x.dtype],
        gradient_is_bf16=0 if gradient is None else PLAIN_KINDS[gradient.dtype],
    )
    function = library.experts_forward if name == "forward" else library.experts_backward
    function(ctypes.byref(struct), torch.get_num_threads(), lanes)


def combine_experts(rows: Tensor, pairs: Tensor, scales: Tensor | None, lanes: int, top_k: int | None = None) -> Tensor:
    """fp32 [N, D]: each token's sum of its rows of [P, D], by `scales` [N, k]."""
    library = load_cpu_library()
    assert library is not None
    top_k = top_k or (1 if scales is None else scales.shape[1])
    places = torch.empty_like(pairs)
    places[pairs] = torch.arange(len(pairs))
    out = torch.empty(len(pairs) // top_k, rows.shape[1])
    pointers = rows.data_ptr(), places.data_ptr(), address(scales), out.data_ptr()
    library.combine_experts(*pointers, len(out), top_k, rows.shape[1], torch.get_num_threads(), lanes)
    return out
