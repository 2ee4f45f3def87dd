"""Frozen experts with updates in the C++ library, plain and packed, against autograd; a token's bits in any company."""

import pytest
import torch
from torch import Tensor

from codemill.kernels import experts as dispatch
from codemill.kernels.expert_adapter import adapted_experts, has_adapter_kernel
from codemill.kernels.expert_training import Projection
from codemill.kernels.experts import AdaptedExperts, grouped_experts, route
from codemill.kernels.low_rank import ExpertUpdates, LowRank
from codemill.kernels.packed_matrix import PackedMatrix
from kernels.test_expert_training import draw, plain

# (tokens, experts, top-k, D, F): experts without tokens, with one, and with more than a tile of rows.
SHAPES = [(1, 4, 2, 32, 32), (37, 8, 3, 64, 32), (5, 16, 1, 32, 96), (300, 4, 2, 96, 64)]
FORMATS = {
    "fp32": lambda weight: weight,
    "bf16": Tensor.bfloat16,
    "int8": lambda weight: PackedMatrix.quantize(weight, 8),
    "int8, asymmetric": lambda weight: PackedMatrix.quantize(weight, 8, symmetric=False),
    "int4": lambda weight: PackedMatrix.quantize(weight, 4),
    "int4, asymmetric, groups of 64": lambda weight: PackedMatrix.quantize(weight, 4, 64, symmetric=False),
}
NAMES = ("out", "x", "weights", "gate_up.a", "gate_up.b", "down.a", "down.b")
SCALE = 0.75
_X = torch.zeros(1, 32, dtype=torch.bfloat16)
_ZEROS = Projection(torch.zeros(1, 64, 32)), Projection(torch.zeros(1, 32, 32))
pytestmark = pytest.mark.skipif(
    not has_adapter_kernel(_X, *_ZEROS), reason="the processor has no AMX, or the library was not built"
)


def draw_update(num_experts: int, out_features: int, in_features: int, rank: int) -> tuple[Tensor, Tensor]:
    """a [E, r, in], b [E, out, r], so large that an update weighs as much as a weight."""
    a, b = torch.randn(num_experts, rank, in_features), torch.randn(num_experts, out_features, rank)
    return a * in_features**-0.5, b * rank**-0.5


def dequantized(weight: Tensor | PackedMatrix) -> Tensor:
    return weight.dequantize() if isinstance(weight, PackedMatrix) else weight.float()


def compute(function, x: Tensor, weights: Tensor, updates: list[Tensor]) -> tuple[Tensor, ...]:
    """The output, and the gradients of all arguments."""
    trained = [each.detach().requires_grad_() for each in (x, weights, *updates)]
    out = function(*trained)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return out, *torch.autograd.grad(out, trained, upstream.to(out.dtype))


@pytest.mark.parametrize("rank", [3, 16, 40])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_autograd_of_the_changed_weights(shape: tuple[int, ...], form: str, rank: int) -> None:
    """Within the rounding of bf16, and gradients in the dtypes of what they are of."""
    x, weights, experts, gate_up, down = draw(*shape)
    num_experts, size, ffn = shape[1], *shape[3:]
    updates = [*draw_update(num_experts, 2 * ffn, size, rank), *draw_update(num_experts, size, ffn, rank)]
    frozen = [FORMATS[form](weight) for weight in (gate_up, down)]
    exact = [dequantized(weight) for weight in frozen]

    def ours(x: Tensor, weights: Tensor, *updates: Tensor) -> Tensor:
        first, second = (Projection(frozen[i], *updates[2 * i : 2 * i + 2], SCALE) for i in range(2))
        return adapted_experts(x, weights, experts, first, second)

    def expected(x: Tensor, weights: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return plain(x, weights, experts, exact[0] + SCALE * b @ a, exact[1] + SCALE * d @ c)

    with torch.autocast("cpu", torch.bfloat16):
        found = compute(ours, x, weights, updates)
    assert {each.dtype for each in found} == {torch.float32}
    for name, mine, theirs in zip(NAMES, found, compute(expected, x, weights, updates), strict=True):
        # Of two numbers, the gradient of the weights of one token, the errors do not even out.
        assert (mine - theirs).norm() < (0.012 if shape[0] > 1 else 0.06) * theirs.norm(), name


@pytest.mark.parametrize("adapted", ["gate_up", "down", "neither"])
def test_a_projection_may_have_no_update(adapted: str) -> None:
    x, weights, experts, gate_up, down = draw(37, 8, 3, 64, 32)
    packed = PackedMatrix.quantize(gate_up, 4), PackedMatrix.quantize(down, 8)
    shapes = {"gate_up": (64, 64), "down": (64, 32)}
    update = list(draw_update(8, *shapes[adapted], 5)) if adapted in shapes else []

    def ours(x: Tensor, weights: Tensor, *update: Tensor) -> Tensor:
        first = Projection(packed[0], *(update if adapted == "gate_up" else ()), scale=SCALE)
        second = Projection(packed[1], *(update if adapted == "down" else ()), scale=SCALE)
        return adapted_experts(x, weights, experts, first, second)

    def expected(x: Tensor, weights: Tensor, *update: Tensor) -> Tensor:
        change = SCALE * update[1] @ update[0] if update else torch.zeros(1)
        changes = [change if adapted == name else torch.zeros(1) for name in shapes]
        exact = [weight.dequantize() + change for weight, change in zip(packed, changes, strict=True)]
        return plain(x, weights, experts, *exact)

    with torch.autocast("cpu", torch.bfloat16):
        found = compute(ours, x, weights, update)
    for mine, theirs in zip(found, compute(expected, x, weights, update), strict=True):
        assert (mine - theirs).norm() < 0.012 * theirs.norm()


def adapter(num_experts: int, size: int, ffn: int, rows: int) -> AdaptedExperts:
    pairs = [draw_update(num_experts, *shape, 4) for shape in ((2 * ffn, size), (size, ffn))]
    updates = [
        [LowRank(a.bfloat16().requires_grad_(), b.bfloat16(), SCALE) for a, b in zip(*pair, strict=True)]
        for pair in pairs
    ]
    return AdaptedExperts(slice(0, rows), ExpertUpdates(*updates))


def test_is_taken_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """For frozen weights in bf16 and for packed ones; and gives what the form in PyTorch does."""
    x, weights, experts, gate_up, down = draw(37, 8, 3, 64, 32)
    x, own = x.bfloat16(), adapter(8, 64, 32, 37)
    taken: list[int] = []

    def count(*arguments):
        taken.append(1)
        return adapted_experts(*arguments)

    monkeypatch.setattr(dispatch, "adapted_experts", count)
    for form in ("bf16", "int4"):
        frozen = [FORMATS[form](weight) for weight in (gate_up, down)]
        fast = grouped_experts(x, weights, experts, *frozen, (30, 7), [own])
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, "has_adapter_kernel", lambda *_: False)
            slow = grouped_experts(x, weights, experts, *frozen, (30, 7), [own])
        assert (fast - slow).norm() < 0.01 * slow.norm()
    assert len(taken) == 2
    trained = gate_up.bfloat16().requires_grad_()
    grouped_experts(x, weights, experts, trained, down.bfloat16(), (30, 7), [own])
    grouped_experts(x.float(), weights, experts, gate_up, down, (30, 7), [adapter(8, 64, 32, 37)])
    assert len(taken) == 2


@pytest.mark.parametrize("form", ["bf16", "int4"])
def test_a_token_gets_the_same_bits_in_any_company(form: str) -> None:
    num_tokens, num_experts, size, ffn = 97, 8, 64, 32
    x, weights, experts, gate_up, down = draw(num_tokens, num_experts, 3, size, ffn)
    x, frozen = x.bfloat16(), [FORMATS[form](weight) for weight in (gate_up, down)]
    own = adapter(num_experts, size, ffn, num_tokens)
    expected = grouped_experts(x, weights, experts, *frozen, (num_tokens,), [own])
    for trial in range(20):
        generator = torch.Generator().manual_seed(trial)
        stay = torch.rand(num_tokens, generator=generator) < 0.3
        others = route(torch.randn(num_tokens, num_experts, generator=generator) * 9, 3, normalise=True)
        mixed = torch.where(stay[:, None], x, torch.randn(x.shape, generator=generator).bfloat16())
        routes = [torch.where(stay[:, None], a, b) for a, b in zip((weights, experts), others, strict=True)]
        order = torch.randperm(num_tokens, generator=generator)
        out = torch.empty_like(expected)
        out[order] = grouped_experts(mixed[order], *(each[order] for each in routes), *frozen, (num_tokens,), [own])
        assert torch.equal(out[stay], expected[stay])
