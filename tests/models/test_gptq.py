"""GPTQ against its derivation: the optimal step after each column, from the inverse of what remains (OBQ)."""

import pytest
import torch
from torch import Tensor

from codemill.errors import CodemillError
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.gptq import DAMPING, Statistics, fill_calibrated, inverse_factor

FORMATS = [(bits, group_size, symmetric) for bits in (4, 8) for group_size in (32, 64) for symmetric in (True, False)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(num_tokens: int, size: int, seed: int = 1) -> Tensor:
    """Inputs [T, K] of which some vary much more than others, and most together."""
    mixing = draw(size // 3 + 1, size, seed=7) * torch.logspace(-1, 1, size)
    return draw(num_tokens, size // 3 + 1, seed=seed) @ mixing + 0.3 * draw(num_tokens, size, seed=seed + 50)


def statistics_of(x: Tensor) -> Statistics:
    statistics = Statistics()
    for rows in x.split(100):
        statistics.add(rows)
    return statistics


def both(weight: Tensor, x: Tensor, bits: int, group_size: int, symmetric: bool) -> tuple[PackedMatrix, PackedMatrix]:
    """Calibrated, and plain."""
    matrix = PackedMatrix.empty(tuple(weight.shape), bits, group_size, symmetric)
    fill_calibrated(matrix, weight, statistics_of(x))
    return matrix, PackedMatrix.quantize(weight, bits, group_size, symmetric)


def damped(squares: Tensor) -> Tensor:
    squares = squares.double()
    return squares + DAMPING * squares.diagonal().mean() * torch.eye(len(squares))


def test_statistics_are_the_sum_of_squares() -> None:
    x = draw(3, 70, 20)
    statistics = statistics_of(x)
    assert statistics.num_tokens == 210
    flat = x.flatten(0, 1).double()
    assert statistics.usable is not None
    torch.testing.assert_close(statistics.usable.double(), flat.T @ flat, rtol=1e-5, atol=1e-4)


def test_factor_is_that_of_the_inverse() -> None:
    squares = statistics_of(correlated(500, 50)).squares
    assert squares is not None
    factor = inverse_factor(squares).double()
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped(squares), torch.eye(50).double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("squares", [torch.zeros(20, 20), torch.ones(20, 20), -torch.eye(20) + 0.9])
def test_factor_of_what_has_no_inverse_is_finite(squares: Tensor) -> None:
    assert inverse_factor(squares).isfinite().all()


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
def test_each_column_is_made_up_for_as_well_as_can_be(bits: int, group_size: int, symmetric: bool) -> None:
    """Every weight is the nearest to what the columns before it have left, unless it is clipped."""
    weight, x = draw(17, 100), correlated(800, 100)
    ours = both(weight, x, bits, group_size, symmetric)[0]
    numbers, step = ours.quantised_rows().flatten(1), ours.scale_rows(ours.scale).double()
    rounded, left, squares = ours.dequantize().double(), weight.double().clone(), damped(statistics_of(x).squares)
    waiting = order_by_hand(squares.diagonal(), group_size)
    while waiting:
        column, *others = waiting
        error = left[:, column] - rounded[:, column]
        clipped = (numbers[:, column] == 0) | (numbers[:, column] == 2**bits - 1)
        assert ((error.abs() <= 0.502 * step[:, column // group_size].abs()) | clipped).all()
        inverse = torch.linalg.inv(squares[waiting][:, waiting])
        left[:, others] -= (error / inverse[0, 0])[:, None] * inverse[0, 1:]
        waiting = others


def order_by_hand(squares: Tensor, group_size: int) -> list[int]:
    groups = [list(range(start, min(start + group_size, len(squares)))) for start in range(0, len(squares), group_size)]
    groups.sort(key=lambda group: -squares[group].sum().item())
    return [column for group in groups for column in sorted(group, key=lambda each: -squares[each].item())]


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
@pytest.mark.parametrize("shape", [(17, 33), (48, 64), (50, 129)])
def test_outputs_for_new_inputs_are_nearer(shape: tuple[int, int], bits: int, group_size: int, symmetric: bool) -> None:
    weight, x = draw(*shape), correlated(4000, shape[1])
    new = correlated(1000, shape[1], seed=9)
    ours, plain = both(weight, x, bits, group_size, symmetric)
    errors = [(new @ (matrix.dequantize() - weight).T).norm() for matrix in (ours, plain)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_that_are_not_correlated_change_nothing(symmetric: bool) -> None:
    weight = draw(20, 70)
    statistics = Statistics()
    statistics.add(torch.eye(70) * torch.linspace(1, 5, 70)[:, None])
    matrix = PackedMatrix.empty((20, 70), 4, 32, symmetric)
    fill_calibrated(matrix, weight, statistics)
    plain = PackedMatrix.quantize(weight, 4, 32, symmetric)
    assert torch.equal(matrix.dequantize(), plain.dequantize())


@pytest.mark.parametrize("x", [torch.zeros(0, 70), correlated(15, 70), correlated(500, 70) * torch.nan])
def test_without_enough_tokens_it_is_plain(x: Tensor) -> None:
    statistics = Statistics()
    statistics.add(x)
    matrix = PackedMatrix.empty((20, 70), 4)
    fill_calibrated(matrix, draw(20, 70), statistics)
    assert torch.equal(matrix.weight, PackedMatrix.quantize(draw(20, 70), 4).weight)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weight, x = draw(20, 70), correlated(500, 70)
    x[:, 10:50] = 0
    ours, plain = both(weight, x, 4, 32, True)
    assert (ours.dequantize() - weight)[:, 10:50].abs().max() < 0.3
    assert (x @ (ours.dequantize() - weight).T).norm() < (x @ (plain.dequantize() - weight).T).norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7])
def test_weights_that_cannot_be_quantised_are_refused(value: float) -> None:
    weight = draw(20, 70)
    weight[3, 60] = value
    with pytest.raises(CodemillError, match=r"NaN or infinite|too large"):
        both(weight, correlated(500, 70), 4, 32, True)
