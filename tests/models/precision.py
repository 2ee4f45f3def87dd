"""Tells a mistake from rounding: the networks in fp64, and how far rounding may take fp32 from there.

In fp64 two correct networks agree to some 1e-13, on every processor, so a tolerance can be tight. In fp32 they differ
by 1e-4 and more where outputs near zero are normalised, and by how much depends on the processor's kernels; there each
is held to what an error analysis asks of it, not to the rounding of the other.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codemill.models import CausalLM
from codemill.models.rope import inverse_frequencies

FP64_TOLERANCE = 1e-10  # largest difference of logits
EPSILON = torch.finfo(torch.float32).eps  # the step from 1 to the next number
# Tiny networks, ours as the reference, come to 1 in the median, and to 7 at worst of 2,500 seeds and kernels.
ALLOWED_EPSILONS = 16

Network = TypeVar("Network", bound=nn.Module)


class _Fp64ForFp32(TorchFunctionMode):
    """Both libraries compute parts in fp32 whatever the model's dtype; here these get fp64 instead."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_fp64(network: Network) -> Iterator[Network]:
    """A copy with the same weights in fp64, which computes in fp64 as long as the context lasts, as does its cache."""
    if isinstance(network, CausalLM):
        # Rotary frequencies are fp32 in both libraries by definition; once computed, ours are remembered.
        inverse_frequencies(network.config.rope, network.config.head_dim)
    double = copy.deepcopy(network).double()
    with torch.no_grad(), _Fp64ForFp32():
        yield double


def exact_logits(reference: transformers.PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Logits of a `transformers` model, fp64 [B, T, vocab]."""
    with in_fp64(reference) as double:
        return double(input_ids).logits


def fp32_limit(reference: transformers.PreTrainedModel, input_ids: Tensor, exact: Tensor) -> float:
    """How far logits computed in fp32 may be from the exact ones.

    ALLOWED_EPSILONS times the largest change when each weight changes by up to an EPSILON, at random: computing in fp32
    is then no worse than having been given slightly other weights (backward stability; Higham, Accuracy and Stability
    of Numerical Algorithms, 1.5). It follows the conditioning of this very network and input, and knows no processor.
    """
    changes = (exact_logits(_perturbed(reference, seed), input_ids) - exact for seed in range(3))
    return ALLOWED_EPSILONS * max(change.abs().max().item() for change in changes)


def _perturbed(network: Network, seed: int) -> Network:
    """A copy in fp64 with every weight off by up to one EPSILON of itself."""
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(network).double()
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1
            parameter.mul_(1 + EPSILON * noise)
    return network


def assert_same_network(ours: CausalLM, reference: transformers.PreTrainedModel, input_ids: Tensor) -> None:
    """Both compute the same logits, but for the roundings of fp64."""
    with in_fp64(ours) as double:
        logits = double(input_ids)
    torch.testing.assert_close(logits, exact_logits(reference, input_ids), atol=FP64_TOLERANCE, rtol=0)
