"""How the learning rate changes over a run."""

import math
from collections.abc import Callable

from codemill.train.config import OptimizerConfig


def learning_rate_scale(step: int, config: OptimizerConfig, steps: int) -> float:
    """The share of the peak rate in step number `step`, from 0, of so many.

    Linear up over `warmup_steps`, then by `config.schedule`: "constant"; "linear" and "cosine" (Loshchilov and Hutter
    2017, arXiv:1608.03983) down to `config.minimum`; or "wsd", warm-up, stable, decay (Hu et al. 2024,
    arXiv:2404.06395): constant, then linear down to the minimum over the last share `decay` of the run.
    The first step learns something, and so does the last one: the minimum would be reached one step after it.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    share = min(1.0, max(0.0, _SHAPES[config.schedule](step, steps, config)))
    return min(warm, config.minimum + (1 - config.minimum) * share)


def _progress(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the steps after the warm-up that are done."""
    return max(0.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))


def _constant(step: int, steps: int, config: OptimizerConfig) -> float:
    return 1.0


def _linear(step: int, steps: int, config: OptimizerConfig) -> float:
    return 1 - _progress(step, steps, config)


def _cosine(step: int, steps: int, config: OptimizerConfig) -> float:
    return (1 + math.cos(math.pi * min(1.0, _progress(step, steps, config)))) / 2


def _wsd(step: int, steps: int, config: OptimizerConfig) -> float:
    return (steps - step) / max(1, math.ceil(config.decay * steps))


_SHAPES: dict[str, Callable[[int, int, OptimizerConfig], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
}
