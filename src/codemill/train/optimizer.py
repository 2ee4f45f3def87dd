"""Which parameters learn by which rule, and how fast at each step."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from codemill.models import CausalLM
from codemill.train.config import OptimizerConfig
from codemill.train.muon import Muon


def build_optimizers(trained: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW for everything; or Muon for the matrices inside a model's layers, and AdamW for the rest.

    The rest are embedding, head, norms, biases and, of Gated DeltaNet, the convolution (a row of taps for each channel,
    no matrix), `A_log` and `dt_bias`. The router is a matrix like others (as in GLM-4.5, arXiv:2508.06471), the shared
    expert's gate a single row, and so for AdamW. An adapter always learns by AdamW: its a and b are no weights of their
    own, and Muon's equal steps in all directions are meant for their product.
    """
    matrices: list[nn.Parameter] = []
    pairs: list[nn.Parameter] = []  # gate and up of each expert in the rows of one
    others: list[nn.Parameter] = []
    uses_muon = config.name == "muon" and isinstance(trained, CausalLM)
    for name, parameter in trained.named_parameters():
        if not parameter.requires_grad:
            continue
        if uses_muon and name.endswith(".experts.gate_up_proj"):
            pairs.append(parameter)
        elif uses_muon and _is_matrix(name, parameter):
            matrices.append(parameter)
        else:
            others.append(parameter)
    optimizers: list[Optimizer] = []
    if matrices or pairs:
        groups = [*_groups(matrices, lambda _: {"joined": 1}), *_groups(pairs, lambda _: {"joined": 2})]
        optimizers.append(Muon(groups, config.matrix_lr, config.weight_decay, config.momentum))
    if others:
        # Weight decay belongs on matrices; a norm's scale or a bias has no reason to shrink.
        groups = _groups(others, lambda p: {"weight_decay": config.weight_decay if p.dim() >= 2 else 0.0})
        beta1, beta2 = config.betas
        optimizers.append(AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True))
    return optimizers


def set_learning_rates(optimizers: Iterable[Optimizer], scale: float) -> None:
    """Multiply every group's initial rate by `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * scale


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix, or a stack of them, of a layer."""
    is_matrix = parameter.dim() == 2 and parameter.shape[0] > 1
    return ".layers." in name and (is_matrix or name.endswith(".experts.down_proj"))


def _groups(
    parameters: Iterable[nn.Parameter], settings: Callable[[nn.Parameter], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Parameters of equal settings together, but those in shards on other processes apart: AdamW takes no mixture."""
    groups: dict[Any, dict[str, Any]] = {}
    for parameter in parameters:
        mine = settings(parameter)
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault((mesh, *mine.values()), {"params": [], **mine})["params"].append(parameter)
    return list(groups.values())
