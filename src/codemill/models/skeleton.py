"""The network before it has weights: built on the meta device, then given memory parameter by parameter.

Some operations on meta tensors import torch's compiler, which takes longer than loading a small model; what is here
avoids them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codemill.config import ModelConfig
from codemill.models.decoder import CausalLM
from codemill.models.mtp import MtpHead
from codemill.models.placement import dtype_name

Network = TypeVar("Network", bound=nn.Module)


def build(config: ModelConfig, dtype: torch.dtype) -> CausalLM:
    """The network on the meta device, in eval mode and without gradients: shapes and dtypes, but no memory.

    Its config says what will be in memory: `dtype`, and no FP8.
    """
    return _build(CausalLM, config, dtype)


def build_mtp(config: ModelConfig, dtype: torch.dtype) -> MtpHead:
    """The MTP head of the network that `config` describes; as `build`."""
    return _build(MtpHead, config, dtype)


def _build(network: Callable[[ModelConfig], Network], config: ModelConfig, dtype: torch.dtype) -> Network:
    in_memory = replace(config, dtype=dtype_name(dtype), fp8=None)
    with torch.device("meta"), _SkipInit():
        return network(in_memory).to(dtype).eval().requires_grad_(False)


def materialize(model: nn.Module, device: torch.device) -> None:
    """Give a model from `build` memory on `device`, with arbitrary values in it."""
    for name, parameter in list(model.named_parameters()):
        set_parameter(model, name, empty(parameter, device))


def empty(meta: Tensor, device: torch.device) -> Tensor:
    """Memory for a tensor of the meta device."""
    return torch.empty(meta.shape, dtype=meta.dtype, device=device)  # empty_like would import the compiler


def set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in the place of the parameter called `name`."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))


class _SkipInit(TorchFunctionMode):
    """Leaves new parameters as they are: filling them on the meta device does nothing but import the compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))
