"""Elementwise functions whose result at a place does not depend on how many places there are."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

_ELEMENTS = 64


def in_whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), element by element; x has any shape.

    PyTorch's CPU loops compute exp and its kin by one formula in vectors, and by another, which differs in the last
    bit, in what is left over at the end. Filled up to whole vectors, nothing is left over.
    """
    missing = -x.numel() % _ELEMENTS
    if not missing:
        return function(x)
    return function(F.pad(x.reshape(-1), (0, missing)))[: x.numel()].view(x.shape)
