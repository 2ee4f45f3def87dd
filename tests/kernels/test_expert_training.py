"""The experts with gradients, in tiles and in the C++ library, against autograd; a token's bits in any company.

The library has two forms: bf16 on processors with AMX, and fp32 in vectors of some lanes.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels import expert_kernel, expert_training
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.expert_kernel import has_expert_kernel
from codemill.kernels.expert_training import Projection, experts_with_gradients
from codemill.kernels.experts import AdaptedExperts, grouped_experts, route
from codemill.kernels.low_rank import ExpertUpdates, LowRank
from codemill.kernels.packed_matrix import PackedMatrix

NAMES = ("out", "x", "weights", "gate_up", "down")
# (tokens, experts, top-k, D, F): experts without tokens, with one, with more than a tile of 64 or of 128.
SHAPES = [(1, 4, 2, 32, 32), (37, 8, 3, 64, 32), (5, 16, 1, 32, 64), (300, 4, 2, 96, 32), (600, 2, 2, 32, 96)]
ODD = [(40, 8, 3, 13, 7), (200, 4, 3, 24, 10)]
FORMS = ["tiles", "4 lanes", "8 lanes", "16 lanes"]


def choose(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the experts be computed in this form."""
    if form == "tiles":
        monkeypatch.setattr(expert_training, "has_expert_kernel", lambda *_: False)
        return
    if load_cpu_library() is None or (form == "amx" and not expert_kernel._has_amx()):
        pytest.skip("the processor has no AMX, or the library was not built")
    if form != "amx":
        monkeypatch.setattr(expert_kernel, "_has_amx", lambda: False)
        monkeypatch.setattr(expert_kernel, "MAX_LANES", int(form.split()[0]))


def draw(num_tokens: int, num_experts: int, top_k: int, size: int, ffn: int, seed: int = 0) -> list[Tensor]:
    """x, weights, experts, gate_up, down."""
    torch.manual_seed(seed)
    weights, experts = route(torch.randn(num_tokens, num_experts) * 3, top_k, normalise=True)
    gate_up, down = torch.randn(num_experts, 2 * ffn, size), torch.randn(num_experts, size, ffn)
    return [torch.randn(num_tokens, size), weights, experts, gate_up * size**-0.5, down * ffn**-0.5]


def plain(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every expert on every token, by autograd."""
    gate, up = torch.einsum("nd,efd->nef", x, gate_up).chunk(2, dim=-1)
    outputs = torch.einsum("nef,edf->ned", F.silu(gate) * up, down)
    return (outputs[torch.arange(len(x))[:, None], experts] * weights[..., None]).sum(dim=1)


def with_gradients(function, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    trained = [inputs[i].detach().requires_grad_() for i in (0, 1, 3, 4)]
    out = function(trained[0], trained[1], inputs[2], trained[2], trained[3])
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return out, *torch.autograd.grad(out, trained, upstream.to(out.dtype))


def ours(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return experts_with_gradients(x, weights, experts, Projection(gate_up), Projection(down))


def errors(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    pairs = zip(NAMES, results, expected, strict=True)
    return {name: float((x.float() - y).norm() / y.norm()) for name, x, y in pairs}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES + ODD)
def test_gradients_equal_autograd(shape: tuple[int, ...], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(form, monkeypatch)
    inputs = draw(*shape)
    assert max(errors(with_gradients(ours, inputs), with_gradients(plain, inputs)).values()) < 1e-6


@pytest.mark.parametrize("form", [*FORMS, "amx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_under_autocast(shape: tuple[int, ...], dtype: torch.dtype, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights in fp32 or bf16: within the rounding of bf16, and gradients in the dtypes of what they are of."""
    inputs = draw(*shape)
    inputs[3:] = (weight.to(dtype) for weight in inputs[3:])
    exact = with_gradients(plain, [x if x.dtype == torch.int64 else x.float() for x in inputs])
    choose(form, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        results = with_gradients(ours, inputs)
    assert [x.dtype for x in results] == [torch.float32] * 3 + [dtype] * 2
    assert max(errors(results, exact).values()) < 0.012


@pytest.mark.parametrize("form", ["fp32 tiles", "fp32 16 lanes", "tiles", "8 lanes", "amx"])
@pytest.mark.parametrize("shape", [(97, 8, 3, 64, 32), (97, 8, 3, 13, 7), (260, 4, 2, 40, 24), (700, 4, 2, 160, 64)])
def test_a_token_gets_the_same_bits_in_any_company(
    shape: tuple[int, ...], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistically: some tokens stay, wherever they lie, and the others change where they go, many times over."""
    choose(form.removeprefix("fp32 "), monkeypatch)
    num_tokens, num_experts, top_k, size, _ = shape
    x, weights, experts, gate_up, down = draw(*shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=not form.startswith("fp32")):
        expected = ours(x, weights, experts, gate_up, down)
        for trial in range(60):
            generator = torch.Generator().manual_seed(trial)
            stay = torch.rand(num_tokens, generator=generator) < 0.3
            others = route(torch.randn(num_tokens, num_experts, generator=generator) * 9, top_k, normalise=True)
            mixed = torch.where(stay[:, None], x, torch.randn(num_tokens, size, generator=generator))
            routes = [torch.where(stay[:, None], a, b) for a, b in zip((weights, experts), others, strict=True)]
            order = torch.randperm(num_tokens, generator=generator)
            out = torch.empty_like(expected)
            out[order] = ours(mixed[order], *(route[order] for route in routes), gate_up, down)
            assert torch.equal(out[stay], expected[stay])


def test_every_expert_for_every_token_and_more_threads_than_experts() -> None:
    inputs = draw(60, 5, 5, 40, 24)
    assert max(errors(with_gradients(ours, inputs), with_gradients(plain, inputs)).values()) < 1e-6
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        assert not has_expert_kernel(inputs[0], inputs[3], inputs[4], torch.float32)
        assert max(errors(with_gradients(ours, inputs), with_gradients(plain, inputs)).values()) < 1e-6
    finally:
        torch.set_num_threads(before)


def test_frozen_weights_have_no_gradient() -> None:
    x, *rest = draw(37, 8, 3, 64, 32)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = ours(x.requires_grad_(), *rest)
        assert torch.autograd.grad(out.sum(), x)[0].abs().max() > 0


def test_low_rank_updates_equal_updated_weights() -> None:
    """And their gradients those of the updated weights, by the chain rule."""
    inputs = draw(37, 8, 3, 24, 10)
    a, b = (torch.randn(8, *shape).requires_grad_() for shape in ((3, 24), (20, 3)))
    second = [torch.randn(8, *shape).requires_grad_() for shape in ((2, 10), (24, 2))]

    def updates(scale: float, a: Tensor, b: Tensor) -> list[LowRank]:
        return [LowRank(*pair, scale) for pair in zip(a.unbind(), b.unbind(), strict=True)]

    adapter = AdaptedExperts(slice(0, 37), ExpertUpdates(updates(0.3, a, b), updates(0.2, *second)))
    x = inputs[0].requires_grad_()
    results = (
        grouped_experts(*inputs, (30, 7), [adapter]),
        plain(x, *inputs[1:3], inputs[3] + 0.3 * b @ a, inputs[4] + 0.2 * second[1] @ second[0]),
    )
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    gradients = [torch.autograd.grad(out.square().sum(), (x, a, b, *second)) for out in results]
    for mine, expected in zip(*gradients, strict=True):
        assert (mine - expected).norm() < 1e-5 * expected.norm()


def test_packed_weights_count_as_what_they_stand_for() -> None:
    x, weights, experts, gate_up, down = draw(37, 8, 3, 64, 32)
    packed = [PackedMatrix.quantize(weight, 8) for weight in (gate_up, down)]
    x.requires_grad_()
    results = [
        grouped_experts(x, weights, experts, *packed),
        plain(x, weights, experts, *(each.dequantize() for each in packed)),
    ]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), x)[0] for out in results), atol=1e-4, rtol=1e-4)
