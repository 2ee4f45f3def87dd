"""Norms, rotations and SwiGLU in the C++ library against autograd over PyTorch's own functions, in fp64."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels import training_rows
from codemill.kernels.cpu_library import load_cpu_library
from codemill.models.rope import apply_rotary

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="the library was not built")
EPS = 1e-6
SIZES = [3, 13, 64, 96, 1000]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


@pytest.fixture(params=[4, 8, 16], autouse=True)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_rows, "MAX_LANES", request.param)


def draw(*shapes: Sequence[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def check(ours: Callable[..., Sequence[Tensor]], exact: Callable[..., Sequence[Tensor]], inputs: list[Tensor]) -> None:
    """Results and gradients of `ours` are within rounding of those of `exact` in fp64."""
    outs = ours(*inputs)
    doubled = [x.detach().double().requires_grad_() for x in inputs]
    expected = exact(*doubled)
    upstream = [torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype) for out in outs]
    gradients = torch.autograd.grad(outs, inputs, upstream)
    exact_gradients = torch.autograd.grad(expected, doubled, [each.double() for each in upstream])
    for mine, theirs in zip((*outs, *gradients), (*expected, *exact_gradients), strict=True):
        assert mine.isfinite().all()
        assert (mine.double() - theirs).norm() <= TOLERANCE[mine.dtype] * theirs.norm() + 1e-7
    assert [x.dtype for x in gradients] == [x.dtype for x in inputs]


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_norm(size: int, dtype: torch.dtype) -> None:
    inputs = [*draw((5, 7, size), dtype=dtype), *draw((size,))]
    check(lambda x, w: [training_rows.norm(x, w, EPS)], lambda x, w: [plain_norm(x, w)], inputs)
    zero_centered = lambda x, w: [training_rows.norm(x, w, EPS, offset=1.0)]  # noqa: E731
    check(zero_centered, lambda x, w: [plain_norm(x, 1 + w)], inputs)


@pytest.mark.parametrize("added_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_sum_and_its_norm(size: int, added_dtype: torch.dtype) -> None:
    """The sum is used on another way too, so that two gradients meet in it."""
    inputs = [*draw((300, size)), *draw((300, size), dtype=added_dtype), *draw((size,))]
    check(
        lambda x, y, w: training_rows.add_and_norm(x, y, w, EPS),
        lambda x, y, w: (x + y, plain_norm(x + y, w)),
        inputs,
    )
    passed_on = lambda x, w: training_rows.add_and_norm(x, None, w, EPS)  # noqa: E731
    check(passed_on, lambda x, w: (x, plain_norm(x, w)), [inputs[0], inputs[2]])


@pytest.mark.parametrize("used", [0, 1])
def test_one_result_alone(used: int) -> None:
    x, added, weight = draw((9, 24), (9, 24), (24,))
    out = training_rows.add_and_norm(x, added, weight, EPS)[used]
    expected = (x + added, plain_norm(x + added, weight))[used]
    inputs = (x, added, weight)[: 2 + used]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    pairs = (torch.autograd.grad(each, inputs, upstream) for each in (out, expected))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize(("head_dim", "rotated"), [(64, 64), (96, 96), (128, 128), (256, 64), (10, 6), (40, 40)])
def test_norm_and_rotation(head_dim: int, rotated: int, num_rows: int) -> None:
    """Positions of their own for each row, and the same for all; all of the head rotated, and a part of it."""
    angles = torch.randn(num_rows, 11, 1, rotated // 2, generator=torch.Generator().manual_seed(3)) * 9
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    check(
        lambda x, w: [training_rows.norm_and_rotate(x, w, cos, sin, EPS)],
        lambda x, w: [apply_rotary(plain_norm(x, w), cos.double(), sin.double())],
        draw((3, 11, 2, head_dim), (head_dim,)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu(dtype: torch.dtype) -> None:
    inputs = [10 * x.detach() for x in draw((57, 1001), (57, 1001), dtype=dtype)]
    check(
        lambda gate, up: [training_rows.swiglu(gate, up)],
        lambda gate, up: [F.silu(gate) * up],
        [x.requires_grad_() for x in inputs],
    )


def test_dtypes_under_autocast() -> None:
    """Sums stay in fp32; what products read is in bf16."""
    x, weight = draw((4, 32), (32,))
    with torch.autocast("cpu", torch.bfloat16):
        total, out = training_rows.add_and_norm(x, x.bfloat16(), weight, EPS)
        assert (total.dtype, out.dtype) == (torch.float32, torch.bfloat16)
        assert training_rows.norm(x, weight, EPS).dtype == torch.float32
    torch.testing.assert_close(out.float(), plain_norm(total, weight), atol=0.02, rtol=0.01)


def test_the_number_of_threads_changes_no_bit() -> None:
    x, added, weight = draw((3000, 40), (3000, 40), (40,))
    results = []
    for num_threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        try:
            outs = training_rows.add_and_norm(x, added, weight, EPS)
            results.append((*outs, *torch.autograd.grad(sum(out.sin().sum() for out in outs), (x, added, weight))))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


def test_no_rows() -> None:
    x, weight = draw((0, 8), (8,))
    out = training_rows.norm(x, weight, EPS)
    (gradient,) = torch.autograd.grad(out.sum(), weight)
    assert out.shape == x.shape
    assert torch.equal(gradient, torch.zeros(8))


def test_fp64_is_left_to_pytorch() -> None:
    assert not training_rows.fused(torch.zeros(4, 8, dtype=torch.float64))
