"""A network whose matrices are packed: which they are, and how their modules are put in place of the plain ones.

Packed are all linear projections, the experts, the embedding and the head. What is small or delicate stays as it is:
norms, convolutions, decays, routers and gates. Shapes: E experts, F ffn, D model.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor, nn

from codemill.config import PackedFormat
from codemill.kernels.linear import Linear
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import QuantizedEmbedding, QuantizedLinear, packed_tensors, set_packed
from codemill.models.decoder import CausalLM
from codemill.models.moe import Experts
from codemill.models.skeleton import empty

_KEPT = ("gate", "shared_expert_gate", "in_proj_ba")  # routers, and the gates of Gated DeltaNet


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """The weights of an unquantised network that may be packed, [..., N, K], by name."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            found |= {f"{name}.gate_up_proj": module.gate_up_proj, f"{name}.down_proj": module.down_proj}
        elif isinstance(module, nn.Embedding) or (isinstance(module, Linear) and _leaf(name) not in _KEPT):
            found[f"{name}.weight"] = module.weight
    return found


def pack_modules(model: CausalLM, format_of: Callable[[str], PackedFormat | None]) -> None:
    """Put quantised modules, with memory of the meta device, in place of those whose weights have a format."""
    dtype = model.dtype
    for name, weight in matrices(model).items():
        packed = format_of(name)
        if packed is not None:
            shape = tuple(weight.shape)
            meta = PackedMatrix.empty(shape, packed.bits, packed.group_size, packed.symmetric, device="meta")
            _pack(model, name, meta, dtype)


@overload
def empty_like(meta: PackedMatrix, device: torch.device) -> PackedMatrix: ...
@overload
def empty_like(meta: Tensor | PackedMatrix, device: torch.device) -> Tensor | PackedMatrix: ...
def empty_like(meta: Tensor | PackedMatrix, device: torch.device) -> Tensor | PackedMatrix:
    """Memory for a weight of the meta device."""
    if isinstance(meta, Tensor):
        return empty(meta, device)
    minimum = None if meta.minimum is None else empty(meta.minimum, device)
    return replace(meta, weight=empty(meta.weight, device), scale=empty(meta.scale, device), minimum=minimum)


def packed_weights(model: nn.Module) -> dict[str, PackedMatrix]:
    """The packed matrices of a network by the names of their weights; they share its memory."""
    found: dict[str, PackedMatrix] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            found[f"{name}.weight"] = module.matrix
        elif isinstance(module, Experts):
            stacked = {key: module.matrices(key) for key in ("gate_up_proj", "down_proj")}
            found |= {f"{name}.{key}": each for key, each in stacked.items() if isinstance(each, PackedMatrix)}
    return found


def named_weights(model: nn.Module) -> dict[str, Tensor | PackedMatrix]:
    """All weights of a network: packed matrices as a whole, everything else as it is."""
    packed = packed_weights(model)
    inside = {key for name, matrix in packed.items() for key in packed_tensors(name, matrix)}
    plain = {name: parameter.detach() for name, parameter in model.named_parameters() if name not in inside}
    return {**plain, **packed}


def _pack(model: CausalLM, name: str, matrix: PackedMatrix, dtype: torch.dtype) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, Experts):
        set_packed(module, leaf, matrix)
        return
    packed: nn.Module
    if isinstance(module, Linear):
        packed = QuantizedLinear(matrix, module.bias)
        packed.name = module.name
    else:
        packed = QuantizedEmbedding(matrix, dtype)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, packed.eval())


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
