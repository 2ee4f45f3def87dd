"""The learning rate over a run, against closed forms and the schedules of transformers."""

import pytest
import torch
import transformers
from torch import nn

from codemill.errors import UsageError
from codemill.train.config import SCHEDULES, OptimizerConfig
from codemill.train.schedule import learning_rate_scale

STEPS = 20


def scales(**settings: float | str) -> list[float]:
    config = OptimizerConfig(**settings)  # type: ignore[arg-type]
    return [learning_rate_scale(step, config, STEPS) for step in range(STEPS)]


def test_warm_up_stable_decay() -> None:
    found = scales(warmup_steps=4, decay=0.3)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:14] == [1.0] * 10
    assert found[14:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_constant() -> None:
    assert scales(schedule="constant", warmup_steps=2) == [0.5, *[1.0] * 19]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_linear_and_cosine_are_those_of_transformers(schedule: str, warmup: int) -> None:
    """Theirs warms up from 0, so that the first step learns nothing; from the end of the warm-up on they are equal."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    theirs = transformers.get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS)
    expected = []
    for _ in range(STEPS):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    found = scales(schedule=schedule, warmup_steps=warmup)
    assert found[warmup:] == pytest.approx(expected[warmup:])
    assert found[: max(0, warmup - 1)] == pytest.approx(expected[1:warmup])


def test_cosine_with_a_minimum_is_that_of_pytorch() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=0.1)
    expected = []
    for _ in range(STEPS):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert scales(schedule="cosine", warmup_steps=0, minimum=0.1) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_the_minimum_is_where_it_ends(schedule: str) -> None:
    found = scales(schedule=schedule, warmup_steps=4, minimum=0.2)
    assert found[3] == max(found) == 1.0
    assert 0.2 < found[-1] < 0.35
    assert found[:3] == [0.25, 0.5, 0.75]
    assert found[4:] == sorted(found[4:], reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("warmup", "decay", "steps"), [(0, 0.0, 1), (0, 1.0, 5), (100, 0.5, 3), (1, 0.0, 7), (3, 1, 3)]
)
def test_every_step_learns_something(schedule: str, warmup: int, decay: float, steps: int) -> None:
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup, decay=decay)
    assert all(0 < learning_rate_scale(step, config, steps) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "optimizer.schedule = 'cosin' is none of constant, linear, cosine, wsd"),
        ({"name": "sgd"}, "optimizer.name = 'sgd' is none of adamw, muon"),
        ({"betas": (0.9,)}, "betas = .* must be two numbers"),
        ({"betas": (0.9, 1.0)}, "betas: 1.0 must be at least 0 and below 1"),
        ({"momentum": 1.5}, "momentum: 1.5"),
        ({"minimum": 2.0}, "minimum = 2.0 must be between 0 and 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OptimizerConfig(**settings)  # type: ignore[arg-type]
