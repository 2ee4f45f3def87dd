"""Losses that never hold the logits of all tokens. Shapes: N tokens, n tokens of a chunk, D model, V vocabulary.

At a vocabulary of 151,936 the logits of 8,192 tokens take 5 GB in fp32, and their gradient as much again. Here tokens
go through the head in chunks. A sum over tokens has its gradients computed along with it, chunk by chunk, as Liger does
(Hsu et al. 2024, arXiv:2410.10989), so nothing is computed twice. Values that are wanted token by token have their
chunk's logits computed a second time for the gradient, and so has everything behind a head that is not a plain matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from codemill.train.losses import select_learned, token_entropy, token_log_probs, weighted_sum
from codemill.train.policy import Policy

CHUNK_BYTES = 1 << 27  # of a chunk's logits in fp32; two or three arrays of that size exist at a time
_ROW_STEP = 64  # oneDNN compiles a bf16 product for each number of rows, and keeps it: a step learns from ever another


@dataclass(frozen=True)
class HeadFunction:
    """A head that is more than a product with a plain matrix: `logits` turns hidden [n, D] into [n, vocab_size]."""

    logits: Callable[[Tensor], Tensor]
    vocab_size: int


Head = Tensor | HeadFunction
"""A Tensor is the weight [V, D]."""

TokenFunction = Callable[..., Tensor]
"""Logits [n, V] in fp32 and further tensors [n, ...] -> a value for each token [n]."""


def head_of(policy: Policy) -> Head:
    """The policy's head: a matrix wherever it is no more than that."""
    weight = policy.head_weight
    return HeadFunction(policy.logits, policy.model.config.vocab_size) if weight is None else weight


def chunked_cross_entropy(
    hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """`weighted_cross_entropy` of the logits of hidden [N, D]: targets [N], weights [N] -> scalar, fp32."""
    return chunked_sum(_cross_entropy, hidden, head, weights, targets, chunk_bytes=chunk_bytes)


def chunked_log_probs(hidden: Tensor, head: Head, targets: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """log p(target) of each token: hidden [N, D], targets [N] -> [N], fp32, with gradients."""
    return chunked_values(token_log_probs, hidden, head, targets, chunk_bytes=chunk_bytes)


def chunked_log_probs_and_entropy(
    hidden: Tensor, head: Head, targets: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """log p(target), and the entropy of p: hidden [N, D], targets [N] -> both [N], fp32, with gradients."""
    values = chunked_values(_log_probs_and_entropy, hidden, head, targets, chunk_bytes=chunk_bytes)
    return values[:, 0], values[:, 1]


def chunked_sum(
    function: TokenFunction,
    hidden: Tensor,
    head: Head,
    weights: Tensor,
    *tensors: Tensor,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Sum over tokens of weight * function(logits, *tensors): hidden [N, D], weights [N], tensors [N, ...] -> scalar.

    Gradients flow to `hidden` and to the head, not to `tensors`. Those of a head that is a tensor are summed in fp32,
    and cost nothing where it needs none. Products have autocast's dtype. Tokens of weight 0 are left out. The gradient
    may be asked for once.
    """
    hidden, weights, *tensors_left = select_learned(weights, hidden, weights.float(), *tensors)
    if isinstance(head, Tensor):
        needs_grad = _needs_grad(hidden, head)
        total: Tensor = _Sum.apply(hidden, head, weights, function, needs_grad, chunk_bytes, *tensors_left)
        return total
    values = chunked_values(function, hidden, head, *tensors_left, chunk_bytes=chunk_bytes)
    return weighted_sum(values, weights)


def chunked_values(
    function: TokenFunction, hidden: Tensor, head: Head, *tensors: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """function(logits, *tensors) of each token: hidden [N, D], tensors [N, ...] -> [N, ...]; see `chunked_sum`."""
    if isinstance(head, Tensor):
        values: Tensor = _Values.apply(hidden, head, function, _needs_grad(hidden, head), chunk_bytes, *tensors)
        return values
    chunks = _chunks(len(hidden), head.vocab_size, chunk_bytes)
    return torch.cat([_recomputed(function, head, hidden[rows], *(x[rows] for x in tensors)) for rows in chunks])


class _Head:
    """Products of hidden states with the head's weight, and the sums of their gradients.

    All chunks use the same memory: where it is new to the process each time, that costs as much as a product. Products
    in bf16 have a multiple of `_ROW_STEP` rows, filled up with zeros.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, dtype: torch.dtype, needs_grad: tuple[bool, bool]) -> None:
        self.weight = weight.to(dtype)
        self._step = _ROW_STEP if dtype.itemsize == 2 else 1
        self.hidden = F.pad(hidden.to(dtype), (0, 0, 0, -len(hidden) % self._step))
        self._buffers: dict[torch.dtype, Tensor] = {}
        self._num_tokens = len(hidden)
        self.hidden_grad = torch.empty_like(hidden) if needs_grad[0] else None
        self.weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_grad[1] else None

    def chunks(self, chunk_bytes: int) -> Iterator[slice]:
        """Of the tokens; all but the last of whole steps of rows."""
        yield from _chunks(self._num_tokens, len(self.weight), chunk_bytes, self._step)

    def logits(self, rows: slice) -> Tensor:
        """[n, V] in fp32, until the next chunk's."""
        hidden = self._rows(rows)
        logits = torch.mm(hidden, self.weight.T, out=self._buffer(hidden.dtype, len(hidden)))
        return self._as(torch.float32, logits)[: rows.stop - rows.start]

    def add_gradient(self, rows: slice, logits_grad: Tensor) -> None:
        """Add what the gradient [n, V] of these logits contributes."""
        hidden, num_tokens = self._rows(rows), len(logits_grad)
        logits_grad = self._as(self.weight.dtype, logits_grad)
        if len(hidden) > num_tokens:
            logits_grad = self._buffer(self.weight.dtype, len(hidden))
            logits_grad[num_tokens:] = 0
        if self.hidden_grad is not None:
            self.hidden_grad[rows] = (logits_grad @ self.weight)[:num_tokens]
        if self.weight_grad is not None:
            _add_product(self.weight_grad, logits_grad, hidden)

    def _rows(self, rows: slice) -> Tensor:
        """Their hidden states, filled up to whole steps."""
        return self.hidden[rows.start : rows.stop + -(rows.stop - rows.start) % self._step]

    def _as(self, dtype: torch.dtype, logits: Tensor) -> Tensor:
        return logits if logits.dtype == dtype else self._buffer(dtype, len(logits)).copy_(logits)

    def _buffer(self, dtype: torch.dtype, num_tokens: int) -> Tensor:
        """[n, V]; the first chunk is the largest."""
        if dtype not in self._buffers:
            num_rows = num_tokens + -num_tokens % self._step
            self._buffers[dtype] = self.weight.new_empty(num_rows, len(self.weight), dtype=dtype)
        return self._buffers[dtype][:num_tokens]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        weights: Tensor,
        function: TokenFunction,
        needs_grad: tuple[bool, bool],
        chunk_bytes: int,
        *tensors: Tensor,
    ) -> Tensor:
        total, dtype = weights.new_zeros(()), _product_dtype(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, dtype, needs_grad)
            for rows in head.chunks(chunk_bytes):
                inputs = (head.logits(rows), weights[rows], *(x[rows] for x in tensors))
                if any(needs_grad):
                    value, gradient = _differentiate(function, *inputs)
                    head.add_gradient(rows, gradient)
                else:
                    value = weighted_sum(function(inputs[0], *inputs[2:]), inputs[1])
                total += value
        ctx.grads = [head.hidden_grad, head.weight_grad]
        ctx.dtype, ctx.num_others = weight.dtype, 4 + len(tensors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradient of a chunked sum can be computed once: its memory is given away")
        (hidden, weight), ctx.grads = ctx.grads, None
        hidden = None if hidden is None else hidden.mul_(gradient)
        weight = None if weight is None else weight.mul_(gradient).to(ctx.dtype)
        return (hidden, weight, *[None] * ctx.num_others)


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        function: TokenFunction,
        needs_grad: tuple[bool, bool],
        chunk_bytes: int,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, *tensors)
        ctx.function, ctx.needs_grad, ctx.chunk_bytes = function, needs_grad, chunk_bytes
        ctx.product_dtype = _product_dtype(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, ctx.product_dtype, (False, False))
            chunks = head.chunks(chunk_bytes)
            return torch.cat([function(head.logits(rows), *(x[rows] for x in tensors)) for rows in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, *tensors = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, ctx.product_dtype, ctx.needs_grad)
            for rows in head.chunks(ctx.chunk_bytes):
                logits = head.logits(rows).requires_grad_()
                with torch.enable_grad():
                    values = ctx.function(logits, *(x[rows] for x in tensors))
                head.add_gradient(rows, *torch.autograd.grad(values, logits, gradient[rows]))
        weight_grad = None if head.weight_grad is None else head.weight_grad.to(weight.dtype)
        return (head.hidden_grad, weight_grad, *[None] * (3 + len(tensors)))


def _differentiate(function: TokenFunction, logits: Tensor, weights: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of `function` over the tokens, and its gradient [n, V] by the logits."""
    if function is _cross_entropy:
        return _differentiate_cross_entropy(logits, weights, *tensors)
    with torch.enable_grad():
        logits.requires_grad_()
        total = weighted_sum(function(logits, *tensors), weights)
    (gradient,) = torch.autograd.grad(total, logits)
    return total.detach(), gradient


def _differentiate_cross_entropy(logits: Tensor, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As autograd would, without further memory: the gradient, weight * (p - [target]), is written over the logits."""
    weights, targets = weights[:, None], targets[:, None]
    highest, chosen = logits.amax(-1, keepdim=True), logits.gather(1, targets)
    sums = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    loss = (weights * (highest + sums.log() - chosen)).sum()
    return loss, logits.mul_(weights / sums).scatter_add_(1, targets, -weights)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -token_log_probs(logits, targets)


def _log_probs_and_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([token_log_probs(logits, targets), token_entropy(logits)], dim=-1)


def _recomputed(function: TokenFunction, head: HeadFunction, hidden: Tensor, *tensors: Tensor) -> Tensor:
    """function(logits, *tensors), without keeping the logits for the gradient."""

    def compute(hidden: Tensor, *tensors: Tensor) -> Tensor:
        return function(head.logits(hidden).float(), *tensors)

    if not torch.is_grad_enabled():
        return compute(hidden, *tensors)
    values: Tensor = checkpoint(compute, hidden, *tensors, use_reentrant=False, preserve_rng_state=False)
    return values


def _chunks(num_tokens: int, vocab_size: int, chunk_bytes: int, step: int = 1) -> Iterator[slice]:
    """Chunks of about equal size whose logits take at most `chunk_bytes`; one, and empty, where there are no tokens.

    All but the last are multiples of `step`.
    """
    num_chunks = max(1, -(-num_tokens * vocab_size * 4 // chunk_bytes))
    size = max(1, -(-num_tokens // num_chunks))
    size = max(step, size // step * step) if num_chunks > 1 else size
    for start in range(0, max(1, num_tokens), size):
        yield slice(start, min(start + size, num_tokens))


def _needs_grad(hidden: Tensor, weight: Tensor) -> tuple[bool, bool]:
    is_on = torch.is_grad_enabled()
    return is_on and hidden.requires_grad, is_on and weight.requires_grad


def _product_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _add_product(total: Tensor, left: Tensor, right: Tensor, size: int = 1 << 12) -> None:
    """total [V, D] += left [n, V] ^T @ right [n, D], with total in fp32."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
        return
    # Some rows at a time: memory that is new to the process costs as much as the product.
    for start in range(0, len(total), size):
        total[start : start + size] += (left[:, start : start + size].T @ right).float()
