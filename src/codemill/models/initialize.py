"""Random weights, as the reference draws them for a model that is to be trained."""

from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import torch
from torch import Tensor, nn

from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.decoder import CausalLM
from codemill.models.gated_deltanet import GatedDeltaNet
from codemill.models.layers import GatedRMSNorm, RMSNorm
from codemill.models.progress import progress
from codemill.models.quantized import named_weights

_BLOCK_ELEMENTS = 1 << 16  # drawn in fp32 and small enough to stay in the CPU's cache
_DECAY_RANGE = (0.01, 16.0)
_SIGN_BIT = -(1 << 15)  # of a 16-bit number


def initialize(model: CausalLM, seed: int = 0) -> None:
    """Fill every parameter in place: projections and embeddings normal(0, initializer_range), norms neutral.

    A parameter depends on the seed and its own name only, not on the number of threads. Values are drawn in fp32 in
    small blocks, so a bf16 model never exists in fp32; packed weights are drawn as they are, see `RandomWeights`.
    """
    source, weights = RandomWeights(model, seed), named_weights(model)

    def fill(name: str) -> int:
        source.fill(name, weights[name])
        return weights[name].nbytes

    total = sum(weight.nbytes for weight in weights.values())
    with progress("random weights", total) as advance, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done in pool.map(fill, weights):
            advance(done)


class RandomWeights:
    """Draws the weights of a network by their names."""

    def __init__(self, model: CausalLM, seed: int) -> None:
        self._fixed = _fixed_values(model)
        self._std = model.config.initializer_range
        self._seed = seed

    def fill(self, name: str, weight: Tensor | PackedMatrix) -> None:
        """Fill one weight in place.

        Packed weights are random bytes with a scale that gives them the same standard deviation. They are uniform, not
        normal: that is as quick as memory is, and a benchmark does not see the difference.
        """
        digest = blake2b(f"{self._seed}/{name}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "little")
        if isinstance(weight, PackedMatrix):
            _draw_packed(weight, self._std, torch.Generator(weight.weight.device).manual_seed(seed))
        elif name in self._fixed:
            weight.fill_(self._fixed[name])
        else:
            _draw(name, weight, self._std, torch.Generator(weight.device).manual_seed(seed))


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
        elif isinstance(getattr(module, "bias", None), Tensor):
            values[f"{name}.bias"] = 0.0
    return values


def _draw(name: str, parameter: Tensor, std: float, generator: torch.Generator) -> None:
    flat = parameter.view(-1)
    block = torch.empty(min(_BLOCK_ELEMENTS, flat.numel()), device=parameter.device)
    for target in flat.split(_BLOCK_ELEMENTS):
        values = block[: target.numel()]
        if name.endswith(".A_log"):
            values.uniform_(*_DECAY_RANGE, generator=generator).log_()
        else:
            values.normal_(0.0, std, generator=generator)
        target.copy_(values)


def _draw_packed(matrix: PackedMatrix, std: float, generator: torch.Generator) -> None:
    """Uniform q have the standard deviation sqrt((4^bits - 1) / 12). Scales of both signs make the mean 0."""
    largest = 2**matrix.bits - 1
    scale = torch.tensor(std / ((4**matrix.bits - 1) / 12) ** 0.5, dtype=torch.float16)
    _draw_bits(matrix.weight, generator)
    _draw_bits(matrix.scale, generator)
    matrix.scale.view(torch.int16).bitwise_and_(_SIGN_BIT).bitwise_or_(scale.view(torch.int16).item())
    if matrix.minimum is not None:
        torch.mul(matrix.scale, -largest / 2, out=matrix.minimum)


def _draw_bits(tensor: Tensor, generator: torch.Generator) -> None:
    tensor.view(-1).view(torch.int64).random_(-(2**63), None, generator=generator)
