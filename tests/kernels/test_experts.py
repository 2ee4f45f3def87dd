"""Routing, and the experts against a plain loop over tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.experts import grouped_experts, route


def plain_loop(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    rows = []
    for token, token_weights, token_experts in zip(x, weights, experts, strict=True):
        out = torch.zeros_like(token)
        for weight, expert in zip(token_weights, token_experts.tolist(), strict=True):
            gate, up = (gate_up[expert] @ token).chunk(2)
            out = out + weight.to(x.dtype) * (down[expert] @ (F.silu(gate) * up))
        rows.append(out)
    return torch.stack(rows)


def draw(num_tokens: int, num_experts: int, top_k: int, size: int = 12) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_tokens)
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    return (
        torch.randn(num_tokens, size, generator=generator),
        *route(logits, top_k, normalise=True),
        torch.randn(num_experts, 2 * 7, size, generator=generator),
        torch.randn(num_experts, size, 7, generator=generator),
    )


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 4, 1), (1, 16, 10), (5, 8, 2), (40, 8, 8), (3, 64, 4)]
)
def test_grouped_equals_a_loop(num_tokens: int, num_experts: int, top_k: int) -> None:
    inputs = draw(num_tokens, num_experts, top_k)
    torch.testing.assert_close(grouped_experts(*inputs), plain_loop(*inputs), atol=1e-4, rtol=1e-4)


def test_gradients_of_packed_documents_are_their_sum() -> None:
    inputs = draw(40, 8, 3)
    trained = [x.requires_grad_() for x in (inputs[0], inputs[1], inputs[3], inputs[4])]
    outputs = grouped_experts(*inputs, (5, 1, 34)), grouped_experts(*inputs)
    packed, whole = (torch.autograd.grad(out.square().sum(), trained) for out in outputs)
    for ours, expected in zip(packed, whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-2, rtol=1e-3)


def test_one_expert_for_all_tokens() -> None:
    x, weights, experts, gate_up, down = draw(6, 4, 2)
    experts = torch.tensor([[3, 1]]).repeat(6, 1)
    ours = grouped_experts(x, weights, experts, gate_up, down)
    torch.testing.assert_close(ours, plain_loop(x, weights, experts, gate_up, down), atol=1e-4, rtol=1e-4)


def test_an_expert_that_nobody_chose_is_not_touched() -> None:
    x, weights, _, gate_up, down = draw(6, 4, 2)
    experts = torch.tensor([[0, 2]]).repeat(6, 1)
    gate_up[1], down[3] = float("nan"), float("nan")
    assert grouped_experts(x, weights, experts, gate_up, down).isfinite().all()


def test_bf16_keeps_its_dtype() -> None:
    x, weights, experts, gate_up, down = draw(9, 8, 3)
    out = grouped_experts(x.bfloat16(), weights, experts, gate_up.bfloat16(), down.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), grouped_experts(x, weights, experts, gate_up, down), atol=0.3, rtol=0.05)


def test_gradients_equal_those_of_the_loop() -> None:
    inputs = draw(7, 4, 2)
    trained = [x.requires_grad_() for x in (inputs[0], inputs[1], inputs[3], inputs[4])]
    results = [torch.autograd.grad(f(*inputs).square().sum(), trained) for f in (grouped_experts, plain_loop)]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-2, rtol=1e-3)


def test_route_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 2.0]]).log().bfloat16()  # probabilities 1/8, 2/8, 3/8, 2/8
    weights, experts = route(logits, 1, normalise=False)
    assert weights.dtype == torch.float32
    assert experts.tolist() == [[2]]
    assert weights.item() == pytest.approx(3 / 8, abs=2e-3)
    assert route(logits, 1, normalise=True)[0].item() == 1.0


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_route_takes_the_likeliest_and_normalises(top_k: int) -> None:
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    probabilities = logits.softmax(-1)
    weights, experts = route(logits, top_k, normalise=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20))
    chosen = probabilities.gather(1, experts)
    torch.testing.assert_close(weights, chosen / chosen.sum(-1, keepdim=True))
    assert torch.equal(chosen, probabilities.sort(descending=True).values[:, :top_k])
