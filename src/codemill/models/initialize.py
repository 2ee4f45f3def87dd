"""Random weights, as the reference draws them for a model that is to be trained."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import torch
from torch import Tensor, nn

from codemill.models.decoder import CausalLM
from codemill.models.gated_deltanet import GatedDeltaNet
from codemill.models.layers import GatedRMSNorm, RMSNorm
from codemill.models.progress import progress

_BLOCK_ELEMENTS = 1 << 16  # drawn in fp32 and small enough to stay in the CPU's cache
_DECAY_RANGE = (0.01, 16.0)


def initialize(model: CausalLM, seed: int = 0) -> None:
    """Fill every parameter in place: projections and embeddings normal(0, initializer_range), norms neutral.

    A parameter depends on the seed and its own name only, not on the number of threads. Values are drawn in fp32 in
    small blocks, so a bf16 model never exists in fp32.
    """
    fill_parameter = initializer(model, seed)
    parameters = dict(model.named_parameters())
    total = sum(parameter.nbytes for parameter in parameters.values())

    def fill(name: str) -> int:
        fill_parameter(name, parameters[name].detach())
        return parameters[name].nbytes

    with progress("random weights", total) as advance, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done in pool.map(fill, parameters):
            advance(done)


def initializer(model: CausalLM, seed: int = 0) -> Callable[[str, Tensor], None]:
    """A function that fills the parameter of a name, given as a tensor in memory; `model` itself may be without any."""
    fixed = _fixed_values(model)

    def fill(name: str, parameter: Tensor) -> None:
        if name in fixed:
            parameter.fill_(fixed[name])
        else:
            _draw(name, parameter, seed, model.config.initializer_range)

    return fill


def _fixed_values(model: nn.Module) -> dict[str, float]:
    """Parameters that start at one value: norms scale by 1, biases add 0, and dt_bias is 1."""
    values: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            values[f"{name}.weight"] = 0.0 if module.zero_centered else 1.0
        elif isinstance(module, GatedRMSNorm):
            values[f"{name}.weight"] = 1.0
        elif isinstance(module, GatedDeltaNet):
            values[f"{name}.dt_bias"] = 1.0
        elif isinstance(module, nn.Linear) and module.bias is not None:
            values[f"{name}.bias"] = 0.0
    return values


def _draw(name: str, parameter: Tensor, seed: int, std: float) -> None:
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=4).digest()
    generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest, "little"))
    flat = parameter.view(-1)
    block = torch.empty(min(_BLOCK_ELEMENTS, flat.numel()), device=parameter.device)
    for target in flat.split(_BLOCK_ELEMENTS):
        values = block[: target.numel()]
        if name.endswith(".A_log"):
            values.uniform_(*_DECAY_RANGE, generator=generator).log_()
        else:
            values.normal_(0.0, std, generator=generator)
        target.copy_(values)
