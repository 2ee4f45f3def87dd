"""Products of the C++ library: packed weights against the reference, bit for bit, and plain ones against fp64."""

import pytest
import torch
from torch import Tensor

from codemill.kernels import cpu_product as cpu_product_module
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.cpu_product import cpu_product, has_product_kernel
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.packed_product import product_reference

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="needs a C++ compiler at installation")

# Outputs by inputs; the first few have less than a block of rows or a group of columns.
SHAPES = [(1, 1), (3, 7), (17, 33), (50, 100), (66, 352), (33, 1000)]
FORMATS = [
    (bits, group_size, symmetric) for bits in (4, 8) for group_size in (32, 64, 96, 512) for symmetric in (True, False)
]
NUM_ROWS = 40


@pytest.fixture(params=[256, 16, 8, 4])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The variant of an instruction set; a processor without it takes the next."""
    monkeypatch.setattr(cpu_product_module, "_LANES", request.param)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_activations(num_rows: int, num_columns: int) -> Tensor:
    """Rows of very different sizes, one of zeros, and one whose groups have an outlier."""
    x = draw(num_rows, num_columns, seed=1) * torch.logspace(-6, 4, num_rows)[:, None]
    x[num_rows // 2] = 0
    x[num_rows // 3, ::50] *= 1000
    return x


@pytest.mark.usefixtures("lanes", "threads")
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
def test_packed_is_the_reference_in_any_company(bits: int, group_size: int, symmetric: bool) -> None:
    for shape in SHAPES:
        matrix = PackedMatrix.quantize(draw(*shape) * 0.05, bits, group_size, symmetric)
        x = draw_activations(NUM_ROWS, shape[1])
        expected = product_reference(x, matrix)
        for start, stop in [(0, 40), (0, 1), (3, 5), (7, 10), (1, 9), (20, 35), (10, 26), (11, 28), (0, 33)]:
            assert torch.equal(cpu_product(x[start:stop], matrix), expected[start:stop]), (shape, start, stop)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_numbers_do_not_overflow(bits: int) -> None:
    """Weights and activations that are all as large as they can be, in groups as long as they can be."""
    x = torch.cat([torch.ones(2, 1024), -torch.ones(2, 1024), draw(16, 1024).sign()]) * 1e4
    for symmetric in (True, False):
        for weight in (torch.ones(20, 1024), draw(20, 1024, seed=2).sign(), -torch.ones(20, 1024)):
            matrix = PackedMatrix.quantize(weight, bits, 512, symmetric)
            assert torch.equal(cpu_product(x, matrix), product_reference(x, matrix))


@pytest.mark.usefixtures("lanes")
def test_activations_between_two_numbers_are_rounded_alike() -> None:
    """Of many rows, some have numbers so near the middle that the order of rounding decides."""
    x = draw(3000, 256, seed=5)
    x[:, ::32] = x[:, ::32].abs() + 4  # the largest of a group
    wanted = torch.randint(-100, 100, x.shape, generator=torch.Generator().manual_seed(6)) + 0.5
    near = (wanted * x[:, ::32].repeat_interleave(32, dim=1) / 127).float()
    x = torch.where(torch.arange(256) % 32 == 0, x, near)
    matrix = PackedMatrix.quantize(draw(16, 256), 8)
    assert torch.equal(cpu_product(x, matrix), product_reference(x, matrix))


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("num_rows", [3, 30])
def test_a_row_that_is_not_finite_stays_alone(value: float, num_rows: int) -> None:
    for weight in (PackedMatrix.quantize(draw(20, 70), 4), PackedMatrix.quantize(draw(20, 70), 8, 64, False)):
        x = draw(num_rows, 70, seed=1)
        expected = cpu_product(x, weight)
        x[1, 65] = value
        found = cpu_product(x, weight)
        assert found[1].isnan().all()
        others = torch.arange(num_rows) != 1
        assert torch.equal(found[others], expected[others])


@pytest.mark.usefixtures("lanes")
def test_every_finite_scale() -> None:
    """Normal and subnormal numbers of fp16, of both signs; finite ones, as NaN has many bits."""
    scales = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
    scales = torch.where(scales.isfinite(), scales, 1).view(-1, 1, 16)
    weight = torch.full((len(scales), 1, 16 * 32), 9 << 4 | 9, dtype=torch.uint8)
    for minimum in (None, scales.flip(0)):
        matrix = PackedMatrix(weight[..., :256], scales, minimum, scales.numel(), 32)
        x = draw(2, 32, seed=1)
        assert torch.equal(cpu_product(x, matrix), product_reference(x, matrix))


@pytest.mark.usefixtures("lanes", "threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_weights_are_near_fp64_in_any_company(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight, x = draw(*shape).to(dtype), draw(NUM_ROWS, shape[1], seed=1)
        found = cpu_product(x, weight)
        assert found.dtype == torch.float32
        exact = x.double() @ weight.double().T
        bound = 1e-6 * (x.double().abs() @ weight.double().abs().T)
        assert ((found - exact).abs() <= bound).all()
        for start, stop in [(0, 1), (3, 5), (7, 10), (1, 9), (11, 28)]:
            assert torch.equal(cpu_product(x[start:stop], weight), found[start:stop])


def test_shapes_strides_and_dtypes_of_activations() -> None:
    matrix = PackedMatrix.quantize(draw(20, 70), 4)
    x = draw(2, 3, 140, seed=1)[:, :, ::2]
    assert torch.equal(cpu_product(x, matrix), product_reference(x.reshape(6, 70), matrix).view(2, 3, 20))
    assert torch.equal(cpu_product(x.bfloat16(), matrix), cpu_product(x.bfloat16().float(), matrix))
    assert cpu_product(x[:0], matrix).shape == (0, 3, 20)


def test_what_it_does_not_take() -> None:
    x, weight = draw(2, 70), draw(20, 70)
    assert has_product_kernel(x, weight)
    assert has_product_kernel(x, PackedMatrix.quantize(weight, 4))
    assert not has_product_kernel(x.requires_grad_(), weight)
    assert not has_product_kernel(x.detach(), weight.double())
    assert not has_product_kernel(x.detach(), weight[:, ::2])
