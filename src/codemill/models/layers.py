"""The small modules every decoder layer is made of. Shapes: B batch, T tokens, D model, F ffn."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemill.kernels import training_rows
from codemill.kernels.elementwise import in_whole_vectors
from codemill.kernels.linear import Linear
from codemill.kernels.low_rank import AdaptedRows


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim (Zhang and Sennrich 2019); zero-centred weights scale by 1 + w."""

    def __init__(self, size: int, eps: float, zero_centered: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if zero_centered else torch.ones(size))
        self.eps = eps
        self.zero_centered = zero_centered

    def forward(self, x: Tensor) -> Tensor:
        if training_rows.fused(x, self.weight):
            return training_rows.norm(x, self.weight, self.eps, float(self.zero_centered))
        normed = normalise(x, self.eps)
        if self.zero_centered:
            # The reference rounds once, after the weight, for zero-centred weights, and before it for the others.
            return (normed * (1.0 + self.weight.float())).to(x.dtype)
        return self.weight * normed.to(x.dtype)

    def after_adding(self, x: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x + added, or x without it, and the norm of that; both [..., D]."""
        if training_rows.fused(x, self.weight, *([] if added is None else [added])):
            return training_rows.add_and_norm(x, added, self.weight, self.eps, float(self.zero_centered))
        total = x if added is None else x + added
        return total, self(total)


def normalise(x: Tensor, eps: float) -> Tensor:
    """x divided by its root mean square over the last dim, in fp32."""
    x = x.float()
    # The norm reads x once; `x.square().mean()` would write the squares first.
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
    return x * torch.rsqrt(mean_square + eps)


class GatedRMSNorm(nn.Module):
    """w * rmsnorm(x) * silu(gate), the norm inside Gated DeltaNet; computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        normed = self.weight * normalise(x, self.eps).to(x.dtype)
        return (normed * F.silu(gate.float())).to(x.dtype)


class Mlp(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows] = ()) -> Tensor:
        """x [..., D] -> [..., D]."""
        gate, up = self.gate_proj(x, adapters), self.up_proj(x, adapters)
        if training_rows.fused(gate, up) and gate.dtype == up.dtype:
            return self.down_proj(training_rows.swiglu(gate, up), adapters)
        return self.down_proj(in_whole_vectors(F.silu, gate) * up, adapters)
