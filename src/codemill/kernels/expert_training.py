"""The experts with gradients, and for packed documents: each expert's tokens together, in tiles.

How a matrix product rounds a row depends on the number of rows, so the tokens of one document would see where those of
another went. Here every product of the forward pass has the same number of rows, a tile; what an expert lacks to whole
tiles is filled up with zeros. A token then gets the same bits wherever in a tile it lies.

The work goes expert by expert, so that what lies between the two products stays in the processor's cache, and backward
is written by hand: autograd would keep every step of it in memory and add gradients as large as all experts for each.

Shapes: N tokens, k top-k, P = N * k pairs of a token and an expert, n pairs of one expert, p these and zeros up to
whole tiles, D model, E experts, F ffn, r rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from codemill.kernels.expert_activation import swiglu, swiglu_backward
from codemill.kernels.expert_kernel import experts_in_kernel, has_expert_kernel
from codemill.kernels.low_rank import LowRank
from codemill.kernels.packed_matrix import PackedMatrix


@dataclass(frozen=True)
class Routes:
    """The pairs of a token and an expert, sorted by expert."""

    pairs: Tensor  # [P], each a place in the flattened [N, k]
    tokens: Tensor  # [P]
    counts: Sequence[int]  # pairs of each expert
    tile: int  # rows of a product

    @classmethod
    def of(cls, experts: Tensor, num_experts: int) -> "Routes":
        """Of expert ids [N, k]."""
        flat = experts.flatten()
        pairs = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=num_experts).tolist()
        return cls(pairs, pairs // experts.shape[1], counts, _tile(len(flat) // num_experts))

    def each(self) -> Iterator[tuple[int, slice, slice]]:
        """Every expert that has pairs, where they are, and where its rows are if each has whole tiles [p]."""
        start = padded_start = 0
        for expert, count in enumerate(self.counts):
            if count:
                padded = self.padded(count)
                yield expert, slice(start, start + count), slice(padded_start, padded_start + padded)
                start, padded_start = start + count, padded_start + padded

    def padded(self, count: int) -> int:
        """So many rows, filled up to whole tiles."""
        return -(-count // self.tile) * self.tile

    @property
    def num_padded(self) -> int:
        """Rows of all experts."""
        return sum(map(self.padded, self.counts))

    @property
    def most_padded(self) -> int:
        """Rows of the expert that has most."""
        return self.padded(max(self.counts))


def _tile(mean: int) -> int:
    """By the mean number of pairs of an expert, which does not depend on who goes where.

    Large tiles are multiplied faster, above all in bf16, but an expert has half a tile of zeros on average.
    """
    return 32 if mean < 96 else 64 if mean < 256 else 128


@dataclass(frozen=True)
class Projection:
    """One of the two stacked weights [E, out, in], frozen if it is packed; and a low-rank update of all, or None.

    a [E, r, in] and b [E, out, r] update a weight by scale * b @ a.
    """

    weight: Tensor | PackedMatrix
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, weight: Tensor | PackedMatrix, updates: Sequence[LowRank | None]) -> "Projection | None":
        """With one update for each expert; None where they are not alike enough to be stacked, or have dropout."""
        present = [update for update in updates if update is not None]
        if not present:
            return cls(weight)
        alike = len({(update.a.shape, update.scale) for update in present}) == 1
        if len(present) < len(updates) or not alike or any(update.dropout for update in present):
            return None
        a, b = torch.stack([update.a for update in present]), torch.stack([update.b for update in present])
        return cls(weight, a, b, present[0].scale)

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What may have gradients."""
        return None if isinstance(self.weight, PackedMatrix) else self.weight, self.a, self.b

    @property
    def plain(self) -> Tensor | None:
        """The weight, if there is nothing but one that is not packed."""
        return self.weight if isinstance(self.weight, Tensor) and self.a is None else None

    def expert(self, index: int, dtype: torch.dtype) -> "Matrix":
        """The weights of one expert, rounded to `dtype`."""
        if isinstance(self.weight, PackedMatrix):
            weight = self.weight[index].dequantize(dtype)
        else:
            weight = self.weight[index].to(dtype)
        if self.a is None or self.b is None:
            return Matrix(weight)
        return Matrix(weight, self.a[index].to(dtype), self.b[index].to(dtype), self.scale)


@dataclass(frozen=True)
class Matrix:
    """A projection of one expert: weight [out, in], a [r, in], b [out, r]."""

    weight: Tensor
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0

    def forward(self, x: Tensor, out: Tensor, tile: int) -> None:
        """x [p, in] @ (weight + scale * b @ a)^T -> out [p, out], tile by tile."""
        _product(x, self.weight, out, tile)
        if self.a is not None and self.b is not None:
            low = _product(x, self.a, x.new_empty(len(x), len(self.a)), tile)
            out.add_(_product(low, self.b, torch.empty_like(out), tile), alpha=self.scale)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Of the outputs [n, out] -> of the inputs [n, in]."""
        inputs = gradient @ self.weight
        if self.a is not None and self.b is not None:
            inputs.addmm_(gradient @ self.b, self.a, alpha=self.scale)
        return inputs

    def weight_gradients(self, x: Tensor, gradient: Tensor, into: "Gradients", index: int) -> None:
        """Of x [n, in] and the gradient of the outputs [n, out], into those of expert `index`."""
        into.put("weight", index, gradient.T, x)
        if self.a is not None and self.b is not None:
            scaled = gradient * self.scale
            into.put("a", index, (scaled @ self.b).T, x)
            into.put("b", index, scaled.T, x @ self.a.T)


def _product(x: Tensor, weight: Tensor, out: Tensor, tile: int) -> Tensor:
    """x [p, in] @ weight^T -> out [p, out], `tile` rows at a time."""
    for rows, to in zip(x.split(tile), out.split(tile), strict=True):
        torch.mm(rows, weight.T, out=to)
    return out


class Gradients:
    """Of a projection's tensors, where they are wanted."""

    def __init__(self, tensors: Sequence[Tensor | None], wanted: Sequence[bool], counts: Sequence[int]) -> None:
        names = zip(("weight", "a", "b"), tensors, wanted, strict=True)
        self._of = {name: torch.empty_like(tensor) for name, tensor, want in names if want and tensor is not None}
        for gradient in self._of.values():
            for index, count in enumerate(counts):
                if not count:
                    gradient[index].zero_()

    def put(self, name: str, index: int, left: Tensor, right: Tensor) -> None:
        """That of expert `index` is left @ right."""
        gradient = self._of.get(name)
        if gradient is None:
            return
        if gradient.dtype == left.dtype:
            torch.mm(left, right, out=gradient[index])
        else:
            gradient[index].copy_(left @ right)

    @property
    def all(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self._of.get("weight"), self._of.get("a"), self._of.get("b")


def experts_with_gradients(
    x: Tensor, weights: Tensor, experts: Tensor, gate_up: Projection, down: Projection
) -> Tensor:
    """As `grouped_experts`: x [N, D], weights and experts [N, k] -> [N, D] in the dtype of x.

    Products are computed in that dtype, or in autocast's where it is on. The bits of a token depend on the number of
    tokens in the call, but not on the other tokens.
    """
    num_experts = gate_up.weight.shape[0]
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    routes = Routes.of(experts, num_experts)
    plain = gate_up.plain, down.plain
    if plain[0] is not None and plain[1] is not None and has_expert_kernel(x, plain[0], plain[1], dtype):
        return experts_in_kernel(x, weights, plain[0], plain[1], routes.pairs, routes.counts, dtype)
    packed = tuple(each.weight if isinstance(each.weight, PackedMatrix) else None for each in (gate_up, down))
    plan = _Plan(routes, dtype, packed, (gate_up.scale, down.scale))
    out: Tensor = _Experts.apply(x, weights, *gate_up.tensors, *down.tensors, plan)
    return out


@dataclass(frozen=True)
class _Plan:
    """What a pass knows besides tensors that may have gradients."""

    routes: Routes
    dtype: torch.dtype  # of the products
    packed: tuple[PackedMatrix | None, ...]  # gate_up and down
    scales: tuple[float, ...]

    def projections(self, tensors: Sequence[Tensor | None]) -> tuple[Projection, Projection]:
        """gate_up and down, of weight, a and b of each."""
        return self._projection(0, *tensors[:3]), self._projection(1, *tensors[3:])

    def _projection(self, index: int, weight: Tensor | None, a: Tensor | None, b: Tensor | None) -> Projection:
        matrix = self.packed[index] if weight is None else weight
        assert matrix is not None
        return Projection(matrix, a, b, self.scales[index])


class _Experts(torch.autograd.Function):
    """Arguments: x, weights, then weight, a and b of gate_up and of down, then the plan."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        plan: _Plan = rest[-1]
        routes, rounded = plan.routes, x.to(plan.dtype)
        gate_up, down = plan.projections(rest[:-1])
        scales = weights.flatten().float()[routes.pairs]  # [P]
        out = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
        hidden, inner, result = _buffers(routes, rounded, gate_up.weight.shape[1])
        for expert, pairs, padded in routes.each():
            tokens, count = routes.tokens[pairs], pairs.stop - pairs.start
            num_rows = padded.stop - padded.start
            own, act, y = hidden[padded], inner[:num_rows], result[:num_rows]
            inputs = _gather(rounded, tokens, num_rows)
            gate_up.expert(expert, plan.dtype).forward(inputs, own, routes.tile)
            swiglu(own, act)
            down.expert(expert, plan.dtype).forward(act, y, routes.tile)
            out.index_add_(0, tokens, y[:count] * scales[pairs, None])
        ctx.plan = plan
        ctx.save_for_backward(rounded, scales, hidden, *rest[:-1])
        ctx.dtypes = x.dtype, weights.dtype
        ctx.weights_shape = weights.shape
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        plan: _Plan = ctx.plan
        routes = plan.routes
        rounded, scales, hidden, *tensors = ctx.saved_tensors
        gate_up, down = plan.projections(tensors)
        wanted = ctx.needs_input_grad
        gate_up_gradients = Gradients(tensors[:3], wanted[2:5], routes.counts)
        down_gradients = Gradients(tensors[3:], wanted[5:8], routes.counts)
        x_gradient = torch.zeros_like(rounded, dtype=torch.promote_types(rounded.dtype, torch.float32))
        weight_gradient = torch.zeros_like(scales)  # by pair, as `scales`
        gradient = gradient.to(plan.dtype)
        for expert, pairs, padded in routes.each():
            tokens, second = routes.tokens[pairs], down.expert(expert, plan.dtype)
            # oneDNN compiles a product in bf16 for each number of rows: there are few of whole tiles.
            num_rows = padded.stop - padded.start if plan.dtype.itemsize == 2 else len(tokens)
            outer, inputs = (_gather(x, tokens, num_rows) for x in (gradient, rounded))
            own, factors = hidden[padded][:num_rows], F.pad(scales[pairs], (0, num_rows - len(tokens)))
            back = swiglu_backward(own, second.input_gradient(outer), factors)
            weight_gradient[pairs] = back.scales[: len(tokens)]
            second.weight_gradients(back.scaled, outer, down_gradients, expert)
            first = gate_up.expert(expert, plan.dtype)
            first.weight_gradients(inputs, back.hidden, gate_up_gradients, expert)
            x_gradient.index_add_(0, tokens, first.input_gradient(back.hidden)[: len(tokens)].to(x_gradient.dtype))
        by_token = torch.empty_like(weight_gradient).index_copy_(0, routes.pairs, weight_gradient)
        return (
            x_gradient.to(ctx.dtypes[0]),
            by_token.view(ctx.weights_shape).to(ctx.dtypes[1]),
            *gate_up_gradients.all,
            *down_gradients.all,
            None,
        )


def _gather(x: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """These rows of x [N, D], and zeros after them -> [num_rows, D]."""
    out = x.new_zeros(num_rows, x.shape[1])
    torch.index_select(x, 0, rows, out=out[: len(rows)])
    return out


def _buffers(routes: Routes, x: Tensor, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For all that gate and up yield, and for what one expert makes of it: before and after down."""
    return (
        x.new_empty(routes.num_padded, hidden_size),
        x.new_empty(routes.most_padded, hidden_size // 2),
        x.new_empty(routes.most_padded, x.shape[1]),
    )
