"""What a run writes down: one report a step."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StepReport:
    """One step, from 1.

    `loss` and `validation` are in the objective's unit (cross entropy: nats per weighted token); `validation` and
    `evaluation` (scores of benchmarks) only where they were measured. `mfu` is the share of the machine's measured
    peak in matrix products that the model's operations take. `skipped`: the gradient was an outlier, and not applied.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate_scale: float
    tokens_per_second: float
    validation: Mapping[str, float] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    mfu: float = 0.0
    skipped: bool = False
    evaluation: Mapping[str, float] | None = None

    @property
    def summary(self) -> dict[str, float]:
        """The metrics without those of single layers."""
        return {name: value for name, value in self.metrics.items() if name.count("/") < 2}


@dataclass(frozen=True)
class TrainingLog:
    """One JSON object a step, appended as the run goes."""

    path: Path

    def append(self, report: StepReport) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")

    def read(self) -> list[StepReport]:
        """All steps so far. A last line that a kill cut short is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [StepReport(**json.loads(line)) for line in lines if line.endswith("\n")]

    def truncate(self, steps: int) -> None:
        """Forget what came after `steps`: a resumed run does it again."""
        kept = [report for report in self.read() if report.step <= steps]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(asdict(report)) + "\n" for report in kept), encoding="utf-8")
        temporary.replace(self.path)
