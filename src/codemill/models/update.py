"""Puts new weights into a network that is in use, as training does between rollouts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from codemill.errors import UsageError
from codemill.models.decoder import CausalLM
from codemill.models.names import disk_views, is_ignored


@torch.no_grad()
def update_weights(model: CausalLM, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the parameters of `model`, in place; what it lacks stays as it is.

    Names are those of the parameters, or those on disk, where experts are one tensor each. Dtype and device may differ.
    Raises UsageError for a name or shape that the network does not have, before anything is changed.
    """
    targets = _targets(model)
    wanted = {name: tensor for name, tensor in state.items() if name in targets or not is_ignored(name, model.config)}
    for name, tensor in wanted.items():
        if name not in targets:
            raise UsageError(f"the network has no weight {name!r}: nothing was changed")
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is of type {type(tensor).__name__}, not a tensor: nothing was changed")
        if tensor.is_floating_point() != targets[name].is_floating_point():
            raise UsageError(
                f"{name} is {tensor.dtype}, the network's {targets[name].dtype}: a quantised network takes weights "
                "of its own format only (quantization 'none' dequantises a GGUF file); nothing was changed"
            )
        if tensor.shape != targets[name].shape:
            shapes = f"{tuple(tensor.shape)}, the network's {tuple(targets[name].shape)}"
            raise UsageError(f"{name} has the shape {shapes}: nothing was changed")
    for name, tensor in wanted.items():
        targets[name].copy_(tensor)


def _targets(model: CausalLM) -> dict[str, Tensor]:
    """Every name by which a weight may come, and the memory that it goes to."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    views = {part: view for name, parameter in parameters.items() for part, view in disk_views(name, parameter)}
    return parameters | views
