"""Packed matrices: what the bytes say, how near they are to the weights, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor

from codemill.errors import CodemillError, UsageError
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.packed_product import fused_multiply_add, product_reference, quantize_activations

SHAPES = [(16, 32), (1, 1), (17, 33), (5, 100), (48, 64), (50, 129), (3, 20, 70), (2, 2, 16, 96)]
FORMATS = [
    (bits, group_size, symmetric) for bits in (4, 8) for group_size in (32, 64, 96) for symmetric in (True, False)
]


def draw(*shape: int, scale: float = 0.02, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def error_bound(matrix: PackedMatrix, weight: Tensor) -> Tensor:
    """One step (clipped weights err by more than half), and what rounding scale and minimum to fp16 adds."""
    spread = 2 * weight.abs().amax() if matrix.symmetric else weight.amax() - weight.amin()
    return 1.1 * spread / (2**matrix.bits - 1) + weight.abs().amax() * 2**-10


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantised_is_near_the_weight(shape: tuple[int, ...], bits: int, group_size: int, symmetric: bool) -> None:
    weight = draw(*shape)
    matrix = PackedMatrix.quantize(weight, bits, group_size, symmetric)
    assert (matrix.shape, matrix.bits, matrix.symmetric) == (shape, bits, symmetric)
    assert matrix.group_size == min(group_size, -(-shape[-1] // 32) * 32)
    again = matrix.dequantize()
    assert again.shape == weight.shape
    assert (again - weight).abs().max() <= error_bound(matrix, weight)


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "expected"),
    [(4, 32, True, 0.0815), (4, 64, True, 0.0905), (4, 32, False, 0.0725), (4, 64, False, 0.0840),
     (8, 32, True, 0.0051), (8, 64, True, 0.0058), (8, 32, False, 0.0045), (8, 64, False, 0.0053)],
)  # fmt: skip
def test_relative_error_of_normal_weights(bits: int, group_size: int, symmetric: bool, expected: float) -> None:
    weight = draw(512, 1024)
    error = PackedMatrix.quantize(weight, bits, group_size, symmetric).dequantize() - weight
    assert error.norm() / weight.norm() <= expected


def test_scales_are_better_than_the_largest_weight_over_7() -> None:
    weight = draw(256, 1024)
    groups = weight.unflatten(1, (-1, 32))
    scale = groups.abs().amax(dim=2, keepdim=True) / 7
    plain = (groups / scale).round() * scale - groups
    ours = PackedMatrix.quantize(weight, 4).dequantize() - weight
    assert ours.norm() < 0.85 * plain.norm()


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_bytes_are_where_the_layout_puts_them(bits: int, symmetric: bool) -> None:
    """Every weight read from the bytes by index, one at a time."""
    matrix = PackedMatrix.quantize(draw(37, 100), bits, 64, symmetric)
    packed, again = matrix.weight.numpy(), matrix.dequantize().numpy()
    for row, column in np.ndindex(37, 100):
        block, r, group, within = row // 16, row % 16, column // 64, column % 64
        if bits == 8:
            q = int(packed[block, group].reshape(-1, 16, 4)[within // 4, r, within % 4])
        else:
            byte = int(packed[block, group].reshape(-1, 16, 4)[within // 8, r, within % 4])
            q = byte >> 4 if within % 8 >= 4 else byte & 15
        scale = np.float32(matrix.scale[block, group, r].item())
        if matrix.minimum is None:
            expected = scale * np.float32(q - 2 ** (bits - 1))
        else:
            expected = scale * np.float32(q) + np.float32(matrix.minimum[block, group, r].item())
        assert again[row, column] == expected


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
def test_quantising_what_was_dequantised_loses_next_to_nothing(bits: int, group_size: int, symmetric: bool) -> None:
    once = PackedMatrix.quantize(draw(40, 200), bits, group_size, symmetric).dequantize()
    twice = PackedMatrix.quantize(once, bits, group_size, symmetric).dequantize()
    assert (twice - once).norm() <= (0.05 if bits == 4 else 0.006) * once.norm()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_zero_rows_stay_zero_and_constant_rows_constant(bits: int, symmetric: bool) -> None:
    weight = draw(20, 70)
    weight[3], weight[7, 32:64], weight[9] = 0, 0, 0.25
    again = PackedMatrix.quantize(weight, bits, 32, symmetric).dequantize()
    assert not again[3].any()
    assert not again[7, 32:64].any()
    torch.testing.assert_close(again[9, :64], torch.full((64,), 0.25), rtol=1e-3, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-9, 1e-4, 1e3])
def test_huge_and_tiny_weights(scale: float, bits: int, symmetric: bool) -> None:
    """Scales below the smallest fp16 number vanish, with an error as small as they are."""
    weight = draw(16, 64, scale=scale)
    again = PackedMatrix.quantize(weight, bits, 32, symmetric).dequantize()
    assert again.isfinite().all()
    assert (again - weight).abs().max() <= 0.3 * scale + 2**bits * 2.0**-25


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e7, -1e30, 3e38])
def test_weights_that_no_scale_holds_are_refused(value: float, symmetric: bool) -> None:
    weight = draw(20, 40)
    weight[17, 39] = value
    with pytest.raises(
        CodemillError, match="NaN or infinite" if abs(value) > 3.1e38 or value != value else "too large"
    ):
        PackedMatrix.quantize(weight, 4, 32, symmetric)


@pytest.mark.parametrize(("bits", "group_size"), [(3, 32), (16, 32), (4, 0), (4, 48), (8, -32), (8, 1024)])
def test_formats_that_do_not_exist_are_refused(bits: int, group_size: int) -> None:
    with pytest.raises(UsageError):
        PackedMatrix.quantize(draw(16, 64), bits, group_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_rows_are_those_of_the_matrix(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    matrix = PackedMatrix.quantize(draw(50, 70).to(dtype), bits, 32, symmetric)
    ids = torch.tensor([[0, 49, 7], [16, 15, 7]])
    assert torch.equal(matrix.rows(ids, dtype), matrix.dequantize(dtype)[ids])


def test_stacked_matrices_are_those_of_each_alone() -> None:
    weight = draw(3, 20, 70)
    stacked = PackedMatrix.quantize(weight, 4, 32, False)
    for index, part in enumerate(weight):
        alone = PackedMatrix.quantize(part, 4, 32, False)
        assert torch.equal(stacked[index].weight, alone.weight)
        assert torch.equal(stacked[index].scale, alone.scale)
    assert torch.equal(stacked.dequantize()[1], stacked[1].dequantize())


@pytest.mark.parametrize("num_rows", [16, 2000])
def test_large_matrices_are_quantised_row_by_row_alike(num_rows: int) -> None:
    """Slices of rows are an affair of memory only."""
    weight = draw(num_rows, 1100)
    matrix, last = PackedMatrix.quantize(weight, 4), PackedMatrix.quantize(weight[-16:], 4)
    assert torch.equal(matrix.weight[-1], last.weight[0])
    assert torch.equal(matrix.scale[-1], last.scale[0])
    assert torch.equal(matrix.dequantize()[-16:], last.dequantize())


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
@pytest.mark.parametrize(("num_rows", "shape"), [(1, (16, 32)), (3, (17, 33)), (9, (50, 200))])
def test_reference_is_near_the_product_of_the_dequantised(
    num_rows: int, shape: tuple[int, int], bits: int, group_size: int, symmetric: bool
) -> None:
    x, matrix = (
        draw(num_rows, shape[1], scale=1, seed=1),
        PackedMatrix.quantize(draw(*shape), bits, group_size, symmetric),
    )
    numbers, scale = quantize_activations(x, matrix.group_size)
    rounded = (numbers * scale[..., None]).flatten(1)[:, : shape[1]]
    assert (rounded - x).abs().max() <= x.abs().max() / 127 / 2 * 1.001
    torch.testing.assert_close(product_reference(x, matrix), rounded @ matrix.dequantize().T, rtol=1e-4, atol=1e-5)


def test_reference_gives_a_row_the_same_bits_in_any_company() -> None:
    x, matrix = draw(7, 100, scale=1), PackedMatrix.quantize(draw(30, 100), 4, 32, False)
    together = product_reference(x, matrix)
    assert all(torch.equal(product_reference(x[i : i + 1], matrix)[0], together[i]) for i in range(7))


def test_zero_tiny_and_non_finite_activations() -> None:
    x, matrix = draw(5, 64, scale=1), PackedMatrix.quantize(draw(16, 64), 4)
    x[0], x[1], x[2, 40], x[3, 40] = 0, 1e-39, float("nan"), float("inf")
    out = product_reference(x, matrix)
    assert not out[:2].any()
    assert out[2:4].isnan().all()
    assert out[4].isfinite().all()


def test_fused_multiply_add_rounds_once() -> None:
    """Against exact rational arithmetic; the first case is one that two roundings get wrong."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(3000, generator=generator) for _ in range(3))
    c *= torch.logspace(-12, 3, 3000)
    a[0], b[0], c[0] = 1 + 2**-12, 1 + 2**-12, 2.0**-60
    exact = [
        Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    for ours, value in zip(fused_multiply_add(a, b, c), exact, strict=True):
        below, above = (torch.nextafter(ours, torch.tensor(end)) for end in (-torch.inf, torch.inf))
        distance = abs(Fraction(ours.item()) - value)
        assert all(distance <= abs(Fraction(other.item()) - value) for other in (below, above))


def test_the_number_of_threads_changes_nothing() -> None:
    weight, before = draw(700, 1100), torch.get_num_threads()
    alone = PackedMatrix.quantize(weight, 4)
    try:
        torch.set_num_threads(3)
        together = PackedMatrix.quantize(weight, 4)
        weight[690, 7] = float("nan")
        with pytest.raises(CodemillError, match="NaN"):
            PackedMatrix.quantize(weight, 4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together.weight, alone.weight)
    assert torch.equal(together.scale, alone.scale)
