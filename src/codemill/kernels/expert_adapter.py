"""Frozen experts with low-rank updates in the C++ library, with gradients; see `cpu/expert_adapter.h`.

It does what `expert_training.py` does with updates, on processors with AMX and for products in bf16. A product with a
weight and that with its update are one: the update is r more columns of the same sums, and B A is never formed. Packed
weights become bf16 as the processor takes them, and are never in memory as such. A token's bits depend on nothing but
itself.

Shapes: N tokens, k top-k, P = N * k pairs of a token and an expert, D model, E experts, F ffn, r rank, R the rank
filled up to whole vectors.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.cpu_structs import MatrixStruct, address
from codemill.kernels.expert_training import Projection, Routes

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_SIZE_STEP = 32  # D, F and R are multiples of it


class AdaptedProductStruct(ctypes.Structure):
    """`AdaptedProduct` of `cpu/expert_adapter.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "tokens", "starts", "first", "second", "low", "out")),
        ("weight", MatrixStruct),
        *((name, _INT) for name in ("num_experts", "num_inputs", "num_outputs", "rank", "transposed")),
        ("scale", ctypes.c_float),
    )


class AdapterGradientStruct(ctypes.Structure):
    """`AdapterGradient` of `cpu/expert_adapter.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("low", "x", "tokens", "starts", "out")),
        *((name, _INT) for name in ("num_experts", "num_columns", "rank")),
    )


class ActivationStruct(ctypes.Structure):
    """`Activation` of `cpu/expert_adapter.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("hidden", "act", "gradient", "scales", "hidden_gradient", "scale_gradient")),
        ("num_pairs", ctypes.c_int64),
        ("ffn", _INT),
    )


class CombinationStruct(ctypes.Structure):
    """`Combination` of `cpu/expert_adapter.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("rows", "places", "scales", "out")),
        ("num_tokens", ctypes.c_int64),
        *((name, _INT) for name in ("top_k", "hidden_size")),
    )


@cache
def _processor_has_kernel() -> bool:
    library = load_cpu_library()
    return library is not None and bool(library.has_expert_adapter())


def has_adapter_kernel(x: Tensor, gate_up: Projection, down: Projection) -> bool:
    """Whether the library computes these experts, which must be frozen, on x [N, D] as autocast has it."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    weights = gate_up.weight, down.weight
    frozen = not any(isinstance(each, Tensor) and each.requires_grad for each in weights)
    sizes = all(size % _SIZE_STEP == 0 for size in weights[1].shape[1:])
    takes = device == "cpu" and all(map(MatrixStruct.takes, weights))
    return takes and frozen and sizes and dtype == torch.bfloat16 and len(x) > 0 and _processor_has_kernel()


def adapted_experts(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Projection, down: Projection) -> Tensor:
    """As `grouped_experts`: x [N, D], weights and experts [N, k] -> [N, D] in the dtype of x.

    Only for what `has_adapter_kernel` is true for.
    """
    plan = _Plan(Routes.of(experts, gate_up.weight.shape[0]), gate_up, down)
    out: Tensor = _AdaptedExperts.apply(x, weights, gate_up.a, gate_up.b, down.a, down.b, plan)
    return out


@dataclass(frozen=True)
class _Plan:
    """What a pass knows besides tensors that may have gradients."""

    routes: Routes
    gate_up: Projection
    down: Projection

    @property
    def starts(self) -> Tensor:
        """[E + 1]: where the pairs of each expert begin."""
        return torch.tensor([0, *self.routes.counts]).cumsum(0)


class _AdaptedExperts(torch.autograd.Function):
    """Arguments: x, weights, then a and b of gate_up and of down, then the plan."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        plan: _Plan = rest[-1]
        gate_up, down = _Update.of(*rest[0:2]), _Update.of(*rest[2:4])
        starts, rounded = plan.starts, x.to(torch.bfloat16).contiguous()
        pairs, tokens = plan.routes.pairs, plan.routes.tokens
        low, hidden = _product(rounded, tokens, starts, plan.gate_up, gate_up)
        act, *_ = _activate(hidden)
        second_low, rows = _product(act, None, starts, plan.down, down)
        scales = weights.float().contiguous()
        out = _combine(rows, pairs, scales, scales.shape[1])
        ctx.save_for_backward(rounded, scales, starts, hidden, low, second_low, *rest[:-1])
        ctx.plan, ctx.dtypes = plan, (x.dtype, weights.dtype)
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rounded, scales, starts, hidden, low, second_low, *tensors = ctx.saved_tensors
        plan: _Plan = ctx.plan
        pairs, tokens = plan.routes.pairs, plan.routes.tokens
        gate_up, down = _Update.of(*tensors[:2]), _Update.of(*tensors[2:])
        outer, sorted_scales = gradient.to(torch.bfloat16).contiguous(), scales.flatten()[pairs]
        outer_low, back = _product(outer, tokens, starts, plan.down, _turned(down), transposed=True)
        act, hidden_gradient, of_scales = _activate(hidden, back, sorted_scales)
        assert hidden_gradient is not None
        assert of_scales is not None
        second = _gradients(
            down,
            (_times(outer_low, sorted_scales), act, None),
            (_times(second_low, sorted_scales), outer, tokens),
            starts,
        )
        hidden_low, rows = _product(hidden_gradient, None, starts, plan.gate_up, _turned(gate_up), transposed=True)
        first = _gradients(gate_up, (hidden_low, rounded, tokens), (low, hidden_gradient, None), starts)
        of_x = _combine(rows, pairs, None, scales.shape[1]).to(ctx.dtypes[0])
        by_token = torch.empty_like(of_scales).index_copy_(0, pairs, of_scales)
        return of_x, by_token.view(scales.shape).to(ctx.dtypes[1]), *first, *second, None


@dataclass(frozen=True)
class _Update:
    """Two matrices for each expert, of which the product is added to its weight [out, in]."""

    first: Tensor  # bf16 [E, R, in]
    second: Tensor  # bf16 [E, out, R]
    rank: int  # r
    dtype: torch.dtype  # of those that they were made of

    @classmethod
    def of(cls, a: Tensor | None, b: Tensor | None) -> "_Update | None":
        """a [E, r, in] and b [E, out, r], filled up with zeros."""
        if a is None or b is None:
            return None
        rank = a.shape[1]
        more = -rank % _SIZE_STEP
        first, second = F.pad(a.to(torch.bfloat16), (0, 0, 0, more)), F.pad(b.to(torch.bfloat16), (0, more))
        return cls(first.contiguous(), second.contiguous(), rank, a.dtype)


def _turned(update: _Update | None) -> _Update | None:
    """That of the transposed weight."""
    if update is None:
        return None
    first, second = update.second.transpose(1, 2).contiguous(), update.first.transpose(1, 2).contiguous()
    return _Update(first, second, update.rank, update.dtype)


def _times(low: Tensor | None, scales: Tensor) -> Tensor | None:
    """low [P, R] by scales fp32 [P]."""
    return None if low is None else (low * scales[:, None]).to(torch.bfloat16)


def _product(
    x: Tensor,
    tokens: Tensor | None,
    starts: Tensor,
    projection: Projection,
    update: _Update | None,
    transposed: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """x bf16 [N, in], or [P, in] without tokens [P] -> scale * x first^T [P, R], and all outputs [P, out], in bf16."""
    weight = projection.weight
    num_experts, *shape = weight.shape
    num_outputs, num_inputs = reversed(shape) if transposed else shape
    num_pairs = int(starts[-1])
    low = None if update is None else x.new_empty(num_pairs, update.first.shape[1])
    out = x.new_empty(num_pairs, num_outputs)
    struct = AdaptedProductStruct(
        *map(address, (x, tokens, starts)),
        *((None, None) if update is None else map(address, (update.first, update.second))),
        *map(address, (low, out)),
        MatrixStruct.of(weight),
        *(num_experts, num_inputs, num_outputs, 0 if low is None else low.shape[1], transposed, projection.scale),
    )
    _library().adapted_product(ctypes.byref(struct), torch.get_num_threads())
    return low, out


_Factors = tuple[Tensor | None, Tensor, Tensor | None]
"""low [P, R], and x [N, columns] with tokens [P], or [P, columns] without."""


def _gradients(
    update: _Update | None, of_first: _Factors, of_second: _Factors, starts: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Of a [E, r, in] and b [E, out, r]."""
    if update is None:
        return None, None
    first, second = (_gradient(*factors, starts)[:, : update.rank] for factors in (of_first, of_second))
    return first.to(update.dtype), second.transpose(1, 2).to(update.dtype)


def _gradient(low: Tensor | None, x: Tensor, tokens: Tensor | None, starts: Tensor) -> Tensor:
    """low^T x of each expert's pairs, fp32 [E, R, columns]."""
    assert low is not None
    num_experts, rank = len(starts) - 1, low.shape[1]
    out = torch.empty(num_experts, rank, x.shape[1])
    pointers = map(address, (low, x, tokens, starts, out))
    struct = AdapterGradientStruct(*pointers, num_experts, x.shape[1], rank)
    _library().adapter_gradient(ctypes.byref(struct), torch.get_num_threads())
    return out


def _activate(
    hidden: Tensor, gradient: Tensor | None = None, scales: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """hidden [P, 2F] as [gate | up] -> silu(gate) * up [P, F].

    With the gradient [P, F] of that, but for scales fp32 [P], also the gradients of hidden and of the scales.
    """
    act = hidden.new_empty(len(hidden), hidden.shape[1] // 2)
    of_hidden, of_scales = (None, None) if scales is None else (torch.empty_like(hidden), torch.empty_like(scales))
    pointers = map(address, (hidden, act, gradient, scales, of_hidden, of_scales))
    struct = ActivationStruct(*pointers, len(hidden), act.shape[1])
    _library().expert_activation(ctypes.byref(struct), torch.get_num_threads())
    return act, of_hidden, of_scales


def _combine(rows: Tensor, pairs: Tensor, scales: Tensor | None, top_k: int) -> Tensor:
    """fp32 [N, D]: each token's sum of its rows of [P, D], by `scales` [N, k]."""
    places = torch.empty_like(pairs).index_copy_(0, pairs, torch.arange(len(pairs)))
    out = torch.empty(len(pairs) // top_k, rows.shape[1])
    struct = CombinationStruct(*map(address, (rows, places, scales, out)), len(out), top_k, rows.shape[1])
    _library().expert_combination(ctypes.byref(struct), torch.get_num_threads())
    return out


def _library() -> Any:
    library = load_cpu_library()
    assert library is not None
    return library
