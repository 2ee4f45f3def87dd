"""The learning-rate schedule, and who learns by which rule."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from codemill.train.config import OptimizerConfig
from codemill.train.optimizer import build_optimizers, clip_gradients, learning_rate_scale, set_learning_rates
from train.conftest import make_model


def test_warm_up_stable_decay() -> None:
    config = OptimizerConfig(warmup_steps=4, decay=0.3)
    scales = [learning_rate_scale(step, config, 20) for step in range(20)]
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4:14] == [1.0] * 10
    assert scales[14:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize(("warmup_steps", "decay", "steps"), [(0, 0.0, 1), (0, 1.0, 5), (100, 0.5, 3), (1, 0.0, 7)])
def test_every_step_learns_something(warmup_steps: int, decay: float, steps: int) -> None:
    config = OptimizerConfig(warmup_steps=warmup_steps, decay=decay)
    assert all(0 < learning_rate_scale(step, config, steps) <= 1 for step in range(steps))


def test_matrices_of_the_layers_learn_by_muon_and_norms_do_not_shrink() -> None:
    model = make_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adam = build_optimizers(model, OptimizerConfig(lr=0.1, matrix_lr=0.2, weight_decay=0.3))
    assert isinstance(muon, Muon)
    assert isinstance(adam, AdamW)
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert by_muon == {name for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2}
    decays = {names[id(p)]: group["weight_decay"] for group in adam.param_groups for p in group["params"]}
    assert by_muon | set(decays) == set(names.values())
    assert decays.pop("model.embed_tokens.weight") == 0.3
    assert set(decays.values()) == {0.0}


def test_a_model_without_layers_has_one_optimizer() -> None:
    assert len(build_optimizers(nn.Linear(3, 3), OptimizerConfig())) == 1


def test_rates_scale_from_where_they_began() -> None:
    optimizers = build_optimizers(make_model(), OptimizerConfig(lr=0.1, matrix_lr=0.2))
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
