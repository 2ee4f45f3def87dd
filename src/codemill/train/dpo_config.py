"""The configuration of `codemill train dpo`."""

from dataclasses import dataclass, field

from codemill.errors import UsageError
from codemill.train.sft_config import FineTuneConfig

LOSSES = ("sigmoid", "ipo", "simpo")


@dataclass(frozen=True)
class DpoSection:
    """`[dpo]`: which loss of preference pairs, see `preference.py`.

    gamma and label_smoothing: of simpo, and of sigmoid and simpo. sft_weight: so much cross entropy of the chosen
    answers is added, as a mean over their tokens (RPO, arXiv:2404.19733).
    """

    loss: str = "sigmoid"
    beta: float = 0.1
    gamma: float = 0.0
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UsageError(f"dpo.loss = {self.loss!r} must be one of {', '.join(LOSSES)}")
        if self.beta <= 0:
            raise UsageError(f"dpo.beta = {self.beta} must be above 0")
        if self.gamma and self.loss != "simpo":
            raise UsageError(f'dpo.gamma is the margin of loss = "simpo", not of {self.loss!r}')
        if self.label_smoothing >= 0.5:
            raise UsageError(f"dpo.label_smoothing = {self.label_smoothing} must be below 0.5: then labels say nothing")
        if self.label_smoothing and self.loss == "ipo":
            raise UsageError('dpo.label_smoothing has no meaning for loss = "ipo"')

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the model before training."""
        return self.loss != "simpo"


@dataclass(frozen=True)
class DpoConfig(FineTuneConfig):
    """`codemill train dpo CONFIG.toml`."""

    dpo: DpoSection = field(default_factory=DpoSection)
