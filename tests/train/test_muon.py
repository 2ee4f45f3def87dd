"""Muon against PyTorch's, which takes single matrices only."""

import pytest
import torch
from torch import Tensor, nn

from codemill.train.muon import Muon, orthogonalise


def steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def theirs(parameters: list[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(parameters, lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8), (1, 5)])
def test_of_a_matrix_it_is_that_of_pytorch_to_the_last_bit(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    gradients = [[torch.randn(shape, generator=generator)] for _ in range(4)]
    mine, other = [nn.Parameter(weight.clone())], [nn.Parameter(weight.clone())]
    steps(mine, Muon(mine, lr=0.1, weight_decay=0.2, momentum=0.9), gradients)
    steps(other, theirs(other), gradients)
    assert torch.equal(mine[0], other[0])
    assert not torch.equal(mine[0], weight)


@pytest.mark.parametrize("joined", [1, 2])
def test_stacked_matrices_learn_each_for_itself(joined: int) -> None:
    """The arbiter has them as parameters of their own. In bf16, so equal to its rounding."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 8 * joined, 5, generator=generator)
    gradients = [torch.randn(weight.shape, generator=generator) for _ in range(4)]
    stack = [nn.Parameter(weight.clone())]
    group = {"params": stack, "joined": joined}
    steps(stack, Muon([group], lr=0.1, weight_decay=0.2, momentum=0.9), [[each] for each in gradients])
    apart = [nn.Parameter(each.clone()) for expert in weight for each in expert.chunk(joined)]
    steps(apart, theirs(apart), [[part for expert in each for part in expert.chunk(joined)] for each in gradients])
    together = torch.stack(list(apart)).view(weight.shape)
    torch.testing.assert_close(stack[0].detach(), together.detach(), atol=5e-3, rtol=0)
    assert (stack[0] - weight).abs().mean() > 0.05


@pytest.mark.parametrize("shape", [(16, 16), (7, 3, 12), (2, 12, 3)])
def test_singular_values_are_near_one(shape: tuple[int, ...]) -> None:
    """Jordan's coefficients give between 0.68 and 1.13 for all that are not tiny."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    values = left.mT @ orthogonalise(x).float() @ right.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.6) & (diagonal < 1.25)).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_a_parameter_without_gradient_stays() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    Muon([weight], lr=0.1, weight_decay=0.2, momentum=0.9).step()
    assert torch.equal(weight, torch.ones(2, 3))


def test_a_gradient_of_zeros_only_decays() -> None:
    weight = nn.Parameter(torch.ones(2, 4, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.2, momentum=0.9).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 4, 3), 0.98))
