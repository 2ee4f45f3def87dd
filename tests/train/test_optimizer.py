"""Who learns by which rule, and at which rate."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from codemill.train.config import OptimizerConfig
from codemill.train.gradients import clip_gradients
from codemill.train.muon import Muon
from codemill.train.optimizer import build_optimizers, set_learning_rates
from models.reference import make_ours, make_reference
from train.conftest import make_model

MUON = OptimizerConfig(lr=0.1, matrix_lr=0.2, weight_decay=0.3)


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, object]:
    """A setting of each parameter that the optimizer has."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def test_matrices_of_the_layers_learn_by_muon_and_norms_do_not_shrink() -> None:
    model = make_model()
    muon, adam = build_optimizers(model, MUON)
    assert isinstance(muon, Muon)
    assert isinstance(adam, AdamW)
    by_muon = names_of(model, muon, "weight_decay")
    assert set(by_muon) == {name for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2}
    decays = names_of(model, adam, "weight_decay")
    assert set(by_muon) | set(decays) == {name for name, _ in model.named_parameters()}
    assert decays.pop("model.embed_tokens.weight") == 0.3
    assert set(decays.values()) == {0.0}


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_everything_that_is_no_matrix_learns_by_adamw(family: str) -> None:
    model = make_ours(make_reference(family)).requires_grad_(True)
    muon, adam = build_optimizers(model, MUON)
    by_adam, by_muon = names_of(model, adam, "weight_decay"), names_of(model, muon, "joined")
    assert set(by_adam) | set(by_muon) == {name for name, _ in model.named_parameters()}
    assert not set(by_adam) & set(by_muon)
    ends = ("embed_tokens.weight", "lm_head.weight", "norm.weight", "A_log", "dt_bias", "conv1d.weight")
    assert {name for name in by_adam if not name.endswith((*ends, "shared_expert_gate.weight"))} == set()
    decayed = {name.rsplit("layers.")[-1].split(".", 1)[-1] for name, decay in by_adam.items() if decay}
    assert decayed <= {"embed_tokens.weight", "weight", "linear_attn.conv1d.weight", "mlp.shared_expert_gate.weight"}
    assert {name for name, joined in by_muon.items() if joined == 2} == {
        name for name in by_muon if name.endswith("experts.gate_up_proj")
    }
    if family != "qwen3":
        assert {"model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.down_proj"} <= set(by_muon)


def test_with_adamw_everything_learns_by_it() -> None:
    model = make_ours(make_reference("qwen3_moe")).requires_grad_(True)
    config = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    (adam,) = build_optimizers(model, config)
    decays = names_of(model, adam, "weight_decay")
    assert {name for name, decay in decays.items() if decay == 0} == {name for name in decays if "norm" in name}
    assert len(decays) == len(list(model.parameters()))
    assert all((group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6) for group in adam.param_groups)


def test_what_is_frozen_is_left_out() -> None:
    model = make_model()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers.requires_grad_(False)
    (adam,) = build_optimizers(model, MUON)
    assert set(names_of(model, adam, "lr")) == {"model.norm.weight"}


def test_what_is_no_model_learns_by_adamw() -> None:
    """An adapter, whose matrices are no weights of their own."""
    assert [type(each) for each in build_optimizers(nn.Linear(3, 3), MUON)] == [AdamW]


def test_rates_scale_from_where_they_began() -> None:
    optimizers = build_optimizers(make_model(), MUON)
    for scale in (0.5, 0.25):
        set_learning_rates(optimizers, scale)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    assert rates == [[0.05], [0.025, 0.025]]


def test_clipping_gives_the_norm_before() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(layer, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]), atol=1e-5, rtol=0)
    assert clip_gradients(layer, 2.0) == pytest.approx(1.0)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9])
def test_clipping_is_that_of_pytorch(max_norm: float) -> None:
    found, expected = make_model(), make_model()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    norm = clip_gradients(found, max_norm)
    theirs = torch.nn.utils.clip_grad_norm_(expected.parameters(), max_norm or 1e30)
    assert norm == pytest.approx(theirs.item(), rel=1e-5)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_norm_of_a_large_gradient_is_exact() -> None:
    """PyTorch's sum in fp32 loses half a percent here."""
    layer = nn.Linear(4096, 4096, bias=False)
    layer.weight.grad = torch.full_like(layer.weight, 0.37)
    assert clip_gradients(layer, 0.0) == pytest.approx(0.37 * 4096, rel=1e-5)


def test_no_gradient_has_norm_zero() -> None:
    assert clip_gradients(nn.Linear(2, 2), 1.0) == 0.0
