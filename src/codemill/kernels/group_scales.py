"""The scale and minimum of each group of weights, chosen to make the squared error small.

Rounding to the nearest of evenly spaced values is best if those values do not quite reach the largest weight. So we try
a few spacings; for each, the best scale (and minimum) of the values that it rounds to follow by least squares.

Root mean square of the error over that of normally distributed weights, in groups of 32 (64) columns: 4 bits symmetric
8.1 % (9.0 %), where the largest weight over 7 gives 9.7 % (10.8 %); asymmetric 7.2 % (8.4 %), where the range over 15
gives 7.8 % (9.0 %); 8 bits 0.50 % (0.57 %) symmetric, 0.44 % (0.52 %) asymmetric. So at 4.5 bits a weight, symmetric
groups of 32 are better than asymmetric ones of 64.

Shapes: g group size, [...] the groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# The value that the weight of largest magnitude would get: beyond -8 it is clipped.
_SYMMETRIC: dict[int, Sequence[float]] = {4: (7.0, 7.5, 8.0, 8.5, 9.0), 8: (127.0, 127.5, 128.0)}
# The values between the smallest weight and the largest.
_ASYMMETRIC: dict[int, Sequence[float]] = {4: (15.0, 16.0, 17.0), 8: (255.0,)}
_LARGEST = 1e30  # far beyond fp16, and small enough that no sum overflows
_REFITS = 2  # roundings, each followed by least squares, of an asymmetric group


def choose_scales(groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """fp32 [g, ...] -> scale and minimum (None where symmetric), fp16 [...]. NaN and infinity stay so."""
    if symmetric:
        return _choose_symmetric(groups, bits).half(), None
    scale, minimum = _choose_asymmetric(groups, bits)
    return scale.half(), minimum.half()


def quantize_groups(groups: Tensor, scale: Tensor, minimum: Tensor | None, bits: int) -> Tensor:
    """fp32 [g, ...] -> uint8 [g, ...]: the nearest that scale and minimum [...] can say."""
    offset = 2 ** (bits - 1) if minimum is None else 0
    shifted = groups if minimum is None else groups - minimum.float()
    rounded = (shifted * _inverse(scale.float())).round_()
    return rounded.add_(offset).clamp_(0, 2**bits - 1).to(torch.uint8)


def _choose_symmetric(groups: Tensor, bits: int) -> Tensor:
    half = 2 ** (bits - 1)
    smallest, largest = groups.amin(dim=0), groups.amax(dim=0)  # faster than aminmax
    # The negative end reaches one step further, so the weight of largest magnitude goes there.
    extreme = torch.where(-smallest > largest, smallest, largest)
    best_scale, best_gain = torch.zeros_like(extreme), torch.full_like(extreme, -1.0)
    rounded = torch.empty_like(groups)
    for value in _SYMMETRIC[bits]:
        torch.mul(groups, _inverse(extreme / -value), out=rounded).round_().clamp_(-half, half - 1)
        scale, gain = _fit(groups, rounded)
        better = gain > best_gain
        best_scale, best_gain = torch.where(better, scale, best_scale), torch.where(better, gain, best_gain)
    return torch.where(extreme.isfinite(), best_scale, extreme)


def _choose_asymmetric(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    top = 2**bits - 1
    smallest, largest = groups.amin(dim=0), groups.amax(dim=0)
    mean = groups.mean(dim=0)
    best_scale, best_minimum, best_gain = (torch.full_like(mean, start) for start in (0.0, 0.0, -1.0))
    for num_steps in _ASYMMETRIC[bits]:
        scale = (largest - smallest) / num_steps
        minimum = (smallest + largest - scale * top) / 2
        for _ in range(_REFITS):
            rounded = ((groups - minimum) * _inverse(scale)).round_().clamp_(0, top)
            rounded_mean = rounded.mean(dim=0)
            scale, gain = _fit(groups, rounded - rounded_mean)
            minimum = mean - scale * rounded_mean
        better = gain > best_gain
        best_scale, best_gain = torch.where(better, scale, best_scale), torch.where(better, gain, best_gain)
        best_minimum = torch.where(better, minimum, best_minimum)
    finite = torch.maximum(largest, -smallest) < _LARGEST
    return torch.where(finite, best_scale, torch.inf), torch.where(finite, best_minimum, torch.inf)


def _fit(groups: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """The scale that makes scale * rounded the best fit [...], and by how much that reduces the squared error."""
    products, squares = (groups * rounded).sum(dim=0), rounded.square().sum(dim=0)
    scale = torch.where(squares > 0, products / squares, 0.0)
    return scale, products * scale


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 for a scale of 0, and for one so small that it has no inverse."""
    inverse = 1 / scale
    return torch.where(inverse.isfinite(), inverse, 0.0)
