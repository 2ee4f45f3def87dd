"""The configuration of `codemill train distill`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from codemill.errors import UsageError
from codemill.train.sft_config import FineTuneConfig

LOSSES = ("reverse_kl", "sampled_reverse_kl", "forward_kl", "jensen_shannon")
DEFAULT = "default"


@dataclass(frozen=True)
class DistillSection:
    """`[distill]`: who teaches, on which texts, and how the student is compared.

    teachers: model specs by the domain of the example; "default" is for all other domains. teacher_quantization: packs
    the teachers ("int8", "int4"); otherwise they are in the dtype of their checkpoints.

    on_policy: the student answers the prompts of the data itself, at each step anew, with at most max_new_tokens
    tokens; otherwise the answers of the data are learned from.

    loss: a divergence over the whole vocabulary, see `losses.py`, or "sampled_reverse_kl", which looks only at the
    tokens that the student chose. beta: of "jensen_shannon". cross_entropy_weight: so much cross entropy of the data's
    answers beside it.
    """

    teachers: Mapping[str, str]
    on_policy: bool = True
    loss: str = "reverse_kl"
    beta: float = 0.5
    cross_entropy_weight: float = 0.0
    teacher_quantization: str = ""
    max_new_tokens: int = 512
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.teachers:
            raise UsageError('distill.teachers names no teacher: write default = "SPEC" in [distill.teachers]')
        if self.loss not in LOSSES:
            raise UsageError(f"distill.loss = {self.loss!r} must be one of {', '.join(LOSSES)}")
        if self.loss == "sampled_reverse_kl" and not self.on_policy:
            raise UsageError('distill.loss = "sampled_reverse_kl" needs on_policy: others\' tokens say nothing of it')
        if self.loss == "sampled_reverse_kl" and self.temperature != 1:
            raise UsageError(
                'distill.loss = "sampled_reverse_kl" needs temperature = 1: it counts on the student\'s own odds'
            )
        if self.on_policy and self.cross_entropy_weight:
            raise UsageError(
                "distill.cross_entropy_weight needs on_policy = false: the student's own answers are no aim"
            )
        if not 0 < self.beta < 1:
            raise UsageError(f"distill.beta = {self.beta} must be between 0 and 1")
        if self.max_new_tokens < 1 or self.temperature <= 0:
            raise UsageError("distill.max_new_tokens must be at least 1, distill.temperature above 0")

    @cached_property
    def specs(self) -> tuple[str, ...]:
        """The teachers, each once."""
        return tuple(dict.fromkeys(self.teachers.values()))

    def index(self, domain: str) -> int:
        """Which of `specs` teaches a domain. Raises UsageError if none does."""
        spec = self.teachers.get(domain, self.teachers.get(DEFAULT))
        if spec is None:
            raise UsageError(
                f"the data has the domain {domain!r}, but distill.teachers has {', '.join(self.teachers)}: "
                "add it, or a default"
            )
        return self.specs.index(spec)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(FineTuneConfig):
    """`codemill train distill CONFIG.toml`."""

    distill: DistillSection

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill.on_policy and (self.data.validation or self.data.validation_fraction):
            raise UsageError("data.validation: answers of the student's own have none; use [evaluation]")
        if self.distill.on_policy and (self.parallel.shard or self.parallel.tensor > 1 or self.parallel.expert > 1):
            raise UsageError("[parallel]: a student that answers itself is whole on every process; leave data only")
        if self.data.validation_fraction:
            raise UsageError("data.validation_fraction: give the files to validate with as data.validation")
