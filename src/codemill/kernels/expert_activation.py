"""SwiGLU inside an expert, forward and backward. Shapes: n rows, F ffn."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# PyTorch's loops over fewer elements are not split among threads. Where one would be split depends on the number of
# rows, and what is left over at the end of a part is rounded otherwise than what fills vectors.
_UNSPLIT = 1 << 15


def swiglu(hidden: Tensor, out: Tensor) -> None:
    """hidden [n, 2F] as [gate | up] -> silu(gate) * up in out [n, F]; a row's bits do not depend on the other rows."""
    step = max(1, (_UNSPLIT - 1) // out.shape[1])
    for own, to in zip(hidden.split(step), out.split(step), strict=True):
        gate, up = own.chunk(2, dim=1)
        torch.mul(F.silu(gate), up, out=to)


@dataclass(frozen=True)
class SwigluGradients:
    """What flows back from scale * down(act), with act = silu(gate) * up, of each row."""

    hidden: Tensor  # [n, 2F]
    scales: Tensor  # fp32 [n]
    scaled: Tensor  # scale * act [n, F], from which comes the gradient of down


def swiglu_backward(hidden: Tensor, gradient: Tensor, scales: Tensor) -> SwigluGradients:
    """hidden [n, 2F], gradient [n, F] of act without the scale, scales fp32 [n]."""
    gate, up = hidden.chunk(2, dim=1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    act = silu * up
    of_scales = (gradient.float() * act).sum(dim=1)
    column = scales[:, None].to(hidden.dtype)
    gradient = gradient * column
    of_gate = gradient * up * (sigmoid + silu * (1 - sigmoid))
    return SwigluGradients(torch.cat((of_gate, gradient * silu), dim=1), of_scales, act * column)
