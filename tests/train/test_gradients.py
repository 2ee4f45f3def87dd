"""Gradients of all parameters of every family equal those that `transformers` computes."""

import pytest
import torch
import transformers
from torch import Tensor, nn

from codemill.models import CausalLM
from models.reference import FAMILIES, make_ours, make_reference
from train.packed import Packed, token_losses

TOLERANCE = 1e-4  # of the largest gradient of a parameter


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        difference = (ours[name] - gradient).abs().max() / gradient.abs().max()
        assert difference < TOLERANCE, f"{name}: {difference:.1e}"


def pair(family: str, **changes: object) -> tuple[transformers.PreTrainedModel, CausalLM]:
    reference = make_reference(family, **changes)
    return reference, make_ours(reference).requires_grad_(True).train()


@pytest.mark.parametrize("tokens", [3, 63, 64, 65, 130])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_plain_rows(family: str, tokens: int) -> None:
    reference, ours = pair(family)
    ids = torch.randint(97, (3, tokens), generator=torch.Generator().manual_seed(tokens))
    losses = [
        torch.stack([token_losses(x, y) for x, y in zip(logits, ids, strict=True)]).mean()
        for logits in (ours(ids), reference(ids).logits)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    assert_same(gradients(ours, losses[0]), gradients(reference, losses[1]))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"num_experts": 16, "num_experts_per_tok": 5, "norm_topk_prob": False}),
        ("qwen3_next", {}),
    ],
)
def test_of_packed_rows(family: str, changes: dict[str, object]) -> None:
    """Against the sum of each document's loss, computed alone."""
    reference, ours = pair(family, **changes)
    packed = Packed.draw()
    alone = [reference(packed.input_ids[place][None]).logits[0] for place in packed.places]
    expected = [
        token_losses(logits, packed.input_ids[place]) for logits, place in zip(alone, packed.places, strict=True)
    ]
    losses = packed.losses(packed.logits(ours))
    for mine, theirs in zip(losses, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert_same(gradients(ours, torch.cat(losses).mean()), gradients(reference, torch.cat(expected).mean()))


def test_in_bf16_they_are_near_those_in_fp32() -> None:
    """Under autocast; the same weights, rounded in every product. (Experts would be chosen otherwise now and then.)"""
    _, ours = pair("qwen3")
    packed = Packed.draw()
    both = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = packed.losses(packed.logits(ours))
        both.append(gradients(ours, torch.cat(losses).mean()))
    for name, exact in both[1].items():
        difference = (both[0][name] - exact).norm() / exact.norm()
        assert both[0][name].dtype == torch.float32
        assert difference < 0.05, f"{name}: {difference:.1e}"
