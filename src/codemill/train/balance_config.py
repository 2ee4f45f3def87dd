"""How strongly the experts of a mixture are kept busy alike; see `balance.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BalanceConfig:
    """coefficient: of the load-balancing loss, `router_aux_loss_coef` in `transformers`; Qwen3's is 0.001.

    z_coefficient: of the mean squared log-sum-exp of the routers' logits (Zoph et al. 2022, arXiv:2202.08906, eq. 5).
    dead_after: steps without a single token, after which an expert counts as dead.
    """

    coefficient: float = 0.001
    z_coefficient: float = 0.0
    dead_after: int = 100
