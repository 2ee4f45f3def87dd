"""What lies between the products of a layer in training, each forward and backward in one pass over the rows.

PyTorch computes a norm in six operations and a rotation in three, each of which writes all rows to memory, and autograd
as many again. Here they are functions of the C++ library (`cpu/training_rows.h`), which read their inputs once, compute
in fp32 and round once. Where it cannot, `fused` says so, and callers have their plain form. Sums over rows, of the
gradients of weights, do not depend on the number of threads.

Shapes: N rows, D size of a row, K head_dim, H heads, R rotated dims.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from codemill.kernels.cpu_library import CpuLibrary, load_cpu_library
from codemill.kernels.cpu_structs import PLAIN_KINDS, address

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
MAX_LANES = 16  # floats of a vector, at most; tests set it lower
_PART = 1 << 14  # numbers of a part of the rows, about: each part has its own sums


class NormPassStruct(ctypes.Structure):
    """`NormPass` of `cpu/training_rows.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "added", "weight", "sum", "out", "scales", "cos", "sin")),
        *((name, _POINTER) for name in ("out_gradient", "sum_gradient", "x_gradient", "added_gradient")),
        ("weight_gradients", _POINTER),
        ("rows", _LONG),
        ("rows_of_part", _LONG),
        *((name, _INT) for name in ("size", "heads", "num_tables", "rotated", "x_kind", "added_kind", "out_kind")),
        ("eps", _FLOAT),
        ("offset", _FLOAT),
    )


class SwigluPassStruct(ctypes.Structure):
    """`SwigluPass` of `cpu/training_rows.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("gate", "up", "out", "out_gradient", "gate_gradient", "up_gradient")),
        ("count", _LONG),
        ("kind", _INT),
    )


def fused(*tensors: Tensor) -> bool:
    """Whether the functions here take these rows: plain tensors on the CPU, in fp32 or bf16.

    Gradients wanted or not, so that a network computes the same in training as in use.
    """
    takes = (type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in PLAIN_KINDS for x in tensors)
    return all(takes) and load_cpu_library() is not None


def norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """RMSNorm of x [..., D] with weight + offset [D], in the dtype of x."""
    out: Tensor = _Norm.apply(x, None, weight.float(), None, None, eps, offset, x.dtype)[1]
    return out


def add_and_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """x + added [..., D] in the dtype of x, and its RMSNorm in that of products. Without `added` the first is x again.

    Whoever goes on with that x has its gradient added in the same pass.
    """
    total, out = _Norm.apply(x, added, weight.float(), None, None, eps, offset, _product_dtype(x))
    return total, out


def norm_and_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The RMSNorm of each head of x [B, T, H, K], rotated by tables [B or 1, T, 1, R], in the dtype of products.

    See `models/rope.py`.
    """
    tables = cos.float().contiguous(), sin.float().contiguous()
    out: Tensor = _Norm.apply(x, None, weight.float(), *tables, eps, offset, _product_dtype(x))[1]
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape and dtype."""
    out: Tensor = _Swiglu.apply(gate, up)
    return out


def _product_dtype(x: Tensor) -> torch.dtype:
    """Of the products that read what is made of x."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor | None,
        weight: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        eps: float,
        offset: float,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        x, added = x.contiguous(), None if added is None else added.contiguous()
        out = torch.empty_like(x, dtype=out_dtype)
        total = None if added is None else torch.empty_like(x)
        scales = x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.settings = {
            "rows": scales.numel(),
            "rows_of_part": max(1, _PART // x.shape[-1]),
            "size": x.shape[-1],
            "heads": x.shape[-2] if cos is not None else 1,
            "num_tables": 1 if cos is None else cos.shape[0] * cos.shape[1],
            "rotated": 0 if cos is None else cos.shape[-1],
            "x_kind": PLAIN_KINDS[x.dtype],
            "added_kind": PLAIN_KINDS[x.dtype if added is None else added.dtype],
            "out_kind": PLAIN_KINDS[out_dtype],
            "eps": eps,
            "offset": offset,
        }
        ctx.added_dtype = None if added is None else added.dtype
        tensors = {"x": x, "added": added, "weight": weight, "sum": total, "out": out, "scales": scales}
        _call_norm("norm_forward", ctx.settings, cos=cos, sin=sin, **tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if total is None else total, weight, scales, cos, sin)
        return x.view_as(x) if total is None else total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sum_gradient: Tensor | None, out_gradient: Tensor | None) -> Any:
        x, weight, scales, cos, sin = ctx.saved_tensors
        nothing = (None,) * 5
        if out_gradient is None:
            of_added = None if ctx.added_dtype is None or sum_gradient is None else sum_gradient.to(ctx.added_dtype)
            return sum_gradient, of_added, None, *nothing
        out_gradient = out_gradient.contiguous()
        sum_gradient = None if sum_gradient is None else sum_gradient.contiguous()
        of_x = torch.empty_like(x)
        # Of the same numbers in the same dtype one tensor is enough.
        of_added = None if ctx.added_dtype in (None, x.dtype) else torch.empty_like(x, dtype=ctx.added_dtype)
        of_weight = torch.empty(-(-scales.numel() // ctx.settings["rows_of_part"]), x.shape[-1])
        _call_norm(
            "norm_backward", ctx.settings, x=x, weight=weight, scales=scales, cos=cos, sin=sin,
            out_gradient=out_gradient, sum_gradient=sum_gradient, x_gradient=of_x, added_gradient=of_added,
            weight_gradients=of_weight,
        )  # fmt: skip
        if ctx.added_dtype == x.dtype:
            of_added = of_x
        return of_x, of_added, of_weight.sum(dim=0) if ctx.needs_input_grad[2] else None, *nothing


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        _call_swiglu("swiglu_forward", gate=gate, up=up, out=out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        tensors = {"gate": gate, "up": up, "gate_gradient": of_gate, "up_gradient": of_up}
        _call_swiglu("swiglu_backward", out_gradient=gradient.contiguous(), **tensors)
        return of_gate, of_up


def _library() -> CpuLibrary:
    library = load_cpu_library()
    assert library is not None
    return library


def _call_norm(name: str, settings: dict[str, Any], **tensors: Tensor | None) -> None:
    struct = NormPassStruct(**{key: address(tensor) for key, tensor in tensors.items()}, **settings)
    getattr(_library(), name)(ctypes.byref(struct), torch.get_num_threads(), MAX_LANES)


def _call_swiglu(name: str, **tensors: Tensor) -> None:
    gate = tensors["gate"]
    addresses = {key: address(tensor) for key, tensor in tensors.items()}
    struct = SwigluPassStruct(**addresses, count=gate.numel(), kind=PLAIN_KINDS[gate.dtype])
    getattr(_library(), name)(ctypes.byref(struct), torch.get_num_threads(), MAX_LANES)
