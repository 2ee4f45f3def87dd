"""Which parameters learn by which rule, and how fast at each step."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from codemill.train.config import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Muon (Jordan 2024) for the matrices inside the layers, AdamW for embeddings, head, norms and biases.

    Muon's update is scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so both use alike rates.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_hidden_matrix = parameter.dim() == 2 and ".layers." in name
        (matrices if is_hidden_matrix else others).append(parameter)
    # Weight decay belongs on matrices; a norm's scale or a bias has no reason to shrink.
    adam_groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    adam = AdamW([group for group in adam_groups if group["params"]], lr=config.lr, betas=(0.9, 0.95), fused=True)
    if not matrices:
        return [adam]
    muon = Muon(
        matrices,
        lr=config.matrix_lr,
        weight_decay=config.weight_decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adam]


def learning_rate_scale(step: int, config: OptimizerConfig, steps: int) -> float:
    """Warm-up, stable, decay (WSD): linear up, constant, then linear down to 0 over the last `decay` share."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, math.ceil(config.decay * steps))
    return min(warm, max(0.0, (steps - step) / decay_steps), 1.0)


def set_learning_rates(optimizers: Iterable[Optimizer], scale: float) -> None:
    """Multiply every group's initial rate by `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * scale


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale gradients to a global norm of at most `max_norm`; returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
