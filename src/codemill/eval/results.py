"""What a run leaves in its directory, and how it is read back.

results.json    this file's `RunResults`, written when the run is complete
samples.jsonl   every answer with its verdict, written as the run goes (`sample_log`)
prompts.jsonl   what the model was asked (`sample_log`)
report.html     made from the three by `report_html`
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, cast

from codemill import __version__
from codemill.errors import CodemillError
from codemill.eval.sample_log import LogContents, PromptRecord, SampleLog, SampleRecord, read_prompts, write_prompts
from codemill.eval.scores import LEVEL, Estimate, Interval, Scores
from codemill.sandbox.result import Status

__all__ = [
    "LogContents",
    "ProblemResult",
    "PromptRecord",
    "RunConfiguration",
    "RunResults",
    "SampleLog",
    "SampleRecord",
    "Source",
    "data_sha256",
    "problem_results",
    "read_prompts",
    "results_path",
    "samples_path",
    "versions",
    "write_prompts",
    "write_results",
]

Source = Literal["model", "endpoint", "samples", "gold", "buggy"]
FORMAT = 1  # raised when a reader of older files would misunderstand


@dataclass(frozen=True)
class RunConfiguration:
    """How the answers came about.

    source: what gave them; `model`: its name (a model spec, the endpoint's model, the samples file, None for gold).
    sampling: temperature, top_p, max_tokens and the like, as used. seed: the base of the samples' seeds. limits: of a
    run in the sandbox (bytes, seconds), where they are not the suite's own. more: anything else worth knowing.
    """

    source: Source
    model: str | None = None
    endpoint: str | None = None
    style: str | None = None
    samples_per_problem: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    limit: int | None = None
    limits: Mapping[str, float | None] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProblemResult:
    """The verdicts of a problem's samples in the order of their indices; scores likewise where the suite gives any."""

    task_id: str
    verdicts: tuple[Status, ...]
    scores: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class RunResults:
    """A complete run.

    variant, language: as in SuiteOptions. data: the data file's name, data_sha256: of its bytes. model_fingerprint: of
    the weights, None where they are out of reach. started, finished: UTC, ISO 8601. seconds: working time, less than
    their difference for a run that was resumed. summary: the suite's figures beside pass@k.
    """

    suite: str
    configuration: RunConfiguration
    scores: Scores
    problems: tuple[ProblemResult, ...]
    title: str = ""
    variant: str | None = None
    language: str | None = None
    data: str | None = None
    data_sha256: str | None = None
    model_fingerprint: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    summary: Mapping[str, float] = field(default_factory=dict)

    @property
    def pass_at_1(self) -> float | None:
        """None if no problem has a sample that counts."""
        estimate = self.scores.pass_at.get(1)
        return None if estimate is None else estimate.value

    def to_json(self) -> dict[str, Any]:
        """The object of `results.json`, which `codemill eval --json` prints too."""
        first = self.scores.pass_at.get(1)
        return {
            "format": FORMAT,
            "suite": self.suite,
            "title": self.title,
            "variant": self.variant,
            "language": self.language,
            "n": len(self.problems),
            "pass@1": self.pass_at_1,
            "pass@k": {str(k): estimate.value for k, estimate in self.scores.pass_at.items()},
            "interval": None if first is None else {"level": LEVEL, **asdict(first.interval)},
            "estimates": {str(k): asdict(estimate) for k, estimate in self.scores.pass_at.items()},
            "verdicts": dict(self.scores.verdicts),
            "excluded": dict(self.scores.excluded),
            "summary": dict(self.summary),
            "configuration": asdict(self.configuration),
            "versions": dict(self.versions),
            "model_fingerprint": self.model_fingerprint,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "started": self.started,
            "finished": self.finished,
            "seconds": self.seconds,
            "problems": [asdict(problem) for problem in self.problems],
        }

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The results in a run directory. Raises CodemillError if there are none or they cannot be read."""
        path = results_path(directory)
        if not path.is_file():
            hint = "the run is not complete: resume it" if samples_path(directory).is_file() else "give a run directory"
            raise CodemillError(f"{directory} has no {path.name}: {hint}")
        try:
            return cls._from_json(json.loads(path.read_bytes()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CodemillError(f"{path} is not what a run writes ({type(error).__name__}: {error})") from None

    @classmethod
    def _from_json(cls, value: Mapping[str, Any]) -> Self:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}, this version reads {FORMAT}")
        plain = [f.name for f in fields(cls) if f.name not in ("configuration", "scores", "problems")]
        return cls(
            configuration=RunConfiguration(**value["configuration"]),
            scores=_scores(value),
            problems=tuple(_problem(problem) for problem in value["problems"]),
            **{name: value[name] for name in plain},
        )


def results_path(directory: Path) -> Path:
    return directory / "results.json"


def samples_path(directory: Path) -> Path:
    return directory / "samples.jsonl"


def write_results(directory: Path, results: RunResults) -> Path:
    """Write `results.json` whole or not at all, and return its path."""
    path = results_path(directory)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(results.to_json(), indent=1, allow_nan=False) + "\n", encoding="ascii")
    os.replace(temporary, path)
    return path


def problem_results(task_ids: Iterable[str], samples: Iterable[SampleRecord]) -> tuple[ProblemResult, ...]:
    """The samples of these problems gathered, in the order of `task_ids`; one without samples has no verdicts."""
    gathered: dict[str, list[SampleRecord]] = {task_id: [] for task_id in task_ids}
    for sample in samples:
        if sample.task_id in gathered:
            gathered[sample.task_id].append(sample)
    return tuple(_gather(task_id, sorted(of, key=lambda sample: sample.index)) for task_id, of in gathered.items())


def data_sha256(path: Path) -> str:
    """The SHA-256 of a file, or of all files below a folder with their names."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(os.fsencode(file.relative_to(path).as_posix()) + b"\0")
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Codemill, Python, the platform, and torch where this process has loaded it."""
    found = {"codemill": __version__, "python": platform.python_version(), "platform": platform.platform()}
    if "torch" in sys.modules:
        found["torch"] = importlib.metadata.version("torch")
    return found


def _gather(task_id: str, samples: Sequence[SampleRecord]) -> ProblemResult:
    scored = any(sample.score is not None for sample in samples)
    scores = tuple(sample.score for sample in samples) if scored else ()
    return ProblemResult(task_id, tuple(sample.verdict for sample in samples), scores)


def _scores(value: Mapping[str, Any]) -> Scores:
    estimates = {}
    for k, estimate in value["estimates"].items():
        interval = Interval(**estimate["interval"])
        too_few = tuple(estimate["too_few"])
        estimates[int(k)] = Estimate(float(estimate["value"]), interval, int(estimate["problems"]), too_few)
    return Scores(estimates, cast(dict[Status, int], dict(value["verdicts"])), dict(value["excluded"]))


def _problem(value: Mapping[str, Any]) -> ProblemResult:
    return ProblemResult(str(value["task_id"]), tuple(value["verdicts"]), tuple(value["scores"]))
