"""GPTQ (Frantar et al. 2022): weights quantised so that the outputs of a layer change little, not the weights.

Columns are rounded one after another, and what each loses is made up for by those that are still to come, as far as the
inputs of a calibration text are correlated: with H the sum of x x^T over its tokens, the squared error of an output is
e H e^T for a row's error e.

Shapes: N outputs, K inputs, G groups, g group size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.group_scales import choose_scales, quantize_groups
from codemill.kernels.packed_matrix import PackedMatrix

DAMPING = 0.01  # of the mean square of the inputs, added to each, as in the paper
MIN_TOKENS_PER_INPUT = 0.25  # with fewer, what the tokens of an expert have in common is chance


class Statistics:
    """What is known of the inputs of a matrix: the sum of x x^T, and the number of tokens."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.squares: Tensor | None = None  # fp32 [K, K]

    def add(self, x: Tensor) -> None:
        """x [..., K]."""
        rows = x.flatten(0, -2).float()
        if self.squares is None:
            self.squares = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.squares.addmm_(rows.T, rows)
        self.num_tokens += rows.shape[0]

    @property
    def usable(self) -> Tensor | None:
        """The sum, or None if it comes from too few tokens or is not finite."""
        if self.squares is None or self.num_tokens < MIN_TOKENS_PER_INPUT * self.squares.shape[0]:
            return None
        return self.squares if self.squares.isfinite().all() else None


def fill_calibrated(matrix: PackedMatrix, weight: Tensor, statistics: Statistics) -> None:
    """Quantise weight [N, K] into `matrix` with little error of its outputs; plainly, if too little is known.

    Raises CodemillError as `PackedMatrix.fill` does.
    """
    squares = statistics.usable
    if squares is None:
        matrix.fill(weight)
        return
    padding = -weight.shape[1] % matrix.group_size
    left = F.pad(weight.float(), (0, padding)).T.contiguous()  # [K, N]: what is still to be said by later columns
    quantised, scale, minimum = _round_columns(left, inverse_factor(F.pad(squares, (0, padding, 0, padding))), matrix)
    if scale.isfinite().all() and (minimum is None or minimum.isfinite().all()):
        matrix.fill_quantised(quantised.T, scale, minimum)
    else:
        matrix.fill(weight)  # says what is wrong with it


def inverse_factor(squares: Tensor) -> Tensor:
    """The upper triangular R [K, K] with R^T R = H^-1, where H is `squares` with some damping.

    With H = U U^T for an upper triangular U (Cholesky from the last row upwards), R is the inverse of U.
    """
    identity = torch.eye(squares.shape[0], device=squares.device)
    damping = max(DAMPING * squares.diagonal().mean().item(), 1e-30)
    factor, failure = torch.linalg.cholesky_ex((squares + damping * identity).flip(0, 1))
    while failure.item():
        damping *= 10
        factor, failure = torch.linalg.cholesky_ex((squares + damping * identity).flip(0, 1))
    return torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)


def _round_columns(left: Tensor, inverse: Tensor, form: PackedMatrix) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round left [K, N], which is overwritten -> q uint8 [K, N], scale and minimum (None if symmetric) fp16 [N, G].

    A group's scales are chosen when its turn comes, so they fit what the groups before it have left to it.
    """
    quantised = torch.empty_like(left, dtype=torch.uint8)
    scales, minima = [], []
    for start in range(0, left.shape[0], form.group_size):
        group = slice(start, start + form.group_size)
        scale, minimum = choose_scales(left[group], form.bits, form.symmetric)
        errors = _round_group(left[group], inverse[group, group], quantised[group], scale, minimum, form.bits)
        left[group.stop :] -= inverse[group, group.stop :].T @ errors
        scales.append(scale)
        if minimum is not None:
            minima.append(minimum)
    return quantised, torch.stack(scales, dim=1), torch.stack(minima, dim=1) if minima else None


def _round_group(
    left: Tensor, inverse: Tensor, quantised: Tensor, scale: Tensor, minimum: Tensor | None, bits: int
) -> Tensor:
    """Round left [g, N] into `quantised`, one column after another; returns the errors over R's diagonal [g, N]."""
    errors = torch.empty_like(left)
    offset = 2 ** (bits - 1) if minimum is None else 0
    for column in range(left.shape[0]):
        quantised[column] = quantize_groups(left[column : column + 1], scale, minimum, bits)[0]
        value = (quantised[column].float() - offset) * scale.float() + (0 if minimum is None else minimum.float())
        errors[column] = (left[column] - value) / inverse[column, column]
        left[column + 1 :] -= inverse[column, column + 1 :, None] * errors[column]
    return errors
