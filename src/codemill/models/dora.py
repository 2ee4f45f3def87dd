"""The length of each row of a changed weight, which DoRA trains apart (Liu et al. 2024, arXiv:2402.09353, eq. 5).

The changed weight is gain * (W + scale * B A), where gain = magnitude / ||W + scale * B A|| for each row.
Shapes: r rank.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import QuantizedLinear
from codemill.models.decoder import CausalLM

_SLICE_ELEMENTS = 1 << 20  # in fp32 at a time
_SMALLEST = 1e-30  # a row of zeros stays one


def gains(magnitude: Tensor, norms: Tensor) -> Tensor:
    """fp32 [out]; the norms are taken as constants, as in PEFT (section 4.3 of the paper)."""
    return magnitude / norms.clamp_min(_SMALLEST)


@torch.no_grad()
def row_norms(weight: Tensor | PackedMatrix, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """||w + scale * b A|| for each row w of `weight` [out, in] and b of `b` [out, r]; fp32 [out].

    Without forming B A: ||w||^2 + 2 scale b . (A w) + scale^2 b . (A A^T b).
    """
    a, b = a.float(), scale * b.float()
    gram = a @ a.T
    squares = []
    for rows, mine in _slices(weight, b):
        squares.append(rows.square().sum(dim=1) + (mine * (2 * rows @ a.T + mine @ gram)).sum(dim=1))
    return torch.cat(squares).clamp_min(0).sqrt()


def weight_of(model: CausalLM, name: str) -> Tensor | PackedMatrix:
    """The weight of the linear layer that adapters know as `name`."""
    if name == "lm_head":
        return model.output_embedding
    module = model.get_submodule(name)
    if isinstance(module, QuantizedLinear):
        return module.matrix
    assert isinstance(module.weight, Tensor)
    return module.weight


def _slices(weight: Tensor | PackedMatrix, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows of the weight in fp32, and those of b."""
    step = max(1, _SLICE_ELEMENTS // weight.shape[-1])
    slices = weight.row_slices() if isinstance(weight, PackedMatrix) else (w.float() for w in weight.split(step))
    first = 0
    for rows in slices:
        yield rows, b[first : first + len(rows)]
        first += len(rows)
