"""The configuration of `codemill train sft`, and what fine-tuning of every kind shares."""

from dataclasses import dataclass, field

from codemill.data.conversations import ConversationData
from codemill.errors import UsageError
from codemill.train.balance_config import BalanceConfig
from codemill.train.config import LoopConfig, OptimizerConfig, check_output
from codemill.train.lora_config import LoraSection
from codemill.train.parallel_config import ParallelConfig


@dataclass(frozen=True)
class EvaluationSection:
    """Benchmarks of `codemill eval`, run every `loop.evaluate_every` steps on their first `limit` problems.

    style: how problems are asked, "chat" or "base"; empty for each suite's own. data: as `--data` of `codemill eval`.
    """

    suites: tuple[str, ...]
    limit: int = 50
    style: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        if self.style not in ("", "base", "chat"):
            raise UsageError(f"evaluation.style = {self.style!r} must be base or chat")
        if not self.suites or self.limit < 1:
            raise UsageError("evaluation.suites must name a benchmark, and evaluation.limit be at least 1")


@dataclass(frozen=True)
class FineTuneConfig:
    """`model` is a model spec, empty for the embedded model; with `[lora]` an adapter is trained in its place."""

    output: str
    loop: LoopConfig
    data: ConversationData
    model: str = ""
    lora: LoraSection | None = None
    balance: BalanceConfig | None = None
    evaluation: EvaluationSection | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        check_output(self.output)


@dataclass(frozen=True)
class SftConfig(FineTuneConfig):
    """`codemill train sft CONFIG.toml`."""
