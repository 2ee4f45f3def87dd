"""What one evaluation is, how far it is, and what it came to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from codemill import __version__
from codemill.eval.answers import AnswerSource
from codemill.eval.dataset import Dataset
from codemill.eval.results import RunConfiguration, RunResults, SampleRecord
from codemill.eval.suite import Style, Suite
from codemill.sandbox.result import Status


@dataclass(frozen=True)
class Evaluation:
    """All that one evaluation is.

    labels: what a new directory is named after; without them nothing is kept unless `output` is given. style: in which
    the prompts are kept for the report. ks: which pass@k besides pass@1, None for the usual ones. workers: programs
    that run at once. timeout: CPU seconds of a run instead of the suite's own limit.
    """

    suite: Suite
    dataset: Dataset
    answers: AnswerSource
    configuration: RunConfiguration
    style: Style
    labels: Sequence[str] = ()
    output: Path | None = None
    overwrite: bool = False
    ks: Sequence[int] | None = None
    model_fingerprint: str | None = None
    gold_check: bool = True
    workers: int = 1
    timeout: float | None = None
    unsafe: bool = False

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """All that decides what comes out: a run is continued only with the same."""
        return {
            "codemill": __version__,
            "suite": self.suite.name,
            "variant": self.suite.options.variant,
            "language": self.suite.options.language,
            "problems": self.dataset.sha256,
            "weights": self.model_fingerprint,
            "gold_check": self.gold_check,
            "timeout": self.timeout,
            "unsafe": self.unsafe,
            **asdict(self.configuration),
        }


@dataclass
class Tally:
    """How far a stage is. Harness errors count as done, not in the score."""

    total: int
    verdicts: Counter[Status] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return self.verdicts.total()

    @property
    def score(self) -> float | None:
        """The share of counted samples that pass, None before the first."""
        counted = self.done - self.verdicts["harness error"]
        return self.verdicts["ok"] / counted if counted else None


class Listener(Protocol):
    """Hears how the work goes; `advance` comes from several threads, one at a time."""

    def stage(self, name: str, tally: Tally) -> None:
        """A new stage begins, of which `tally` may be partly done."""
        ...

    def advance(self, tally: Tally) -> None: ...

    def note(self, text: str) -> None:
        """Something that the user should read, in one line."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to. directory: None if nothing is kept. gold_failures: task id -> why its gold solution
    does not pass here. records: of all samples, without their texts."""

    results: RunResults
    directory: Path | None
    gold_failures: Mapping[str, str]
    records: Sequence[SampleRecord]
