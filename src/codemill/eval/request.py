"""What a user asks of an evaluation. Checked when it is made, as far as that takes neither data nor a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import UsageError
from codemill.eval.endpoint import FimForm
from codemill.eval.endpoint_client import Endpoint
from codemill.eval.generation import DEFAULT_TEMPERATURE, Sampling
from codemill.eval.suite import Style, SuiteOptions

if TYPE_CHECKING:
    from codemill.engine.llm import LLM


@dataclass(frozen=True)
class LocalModel:
    """A model for this process, as in `codemill.engine.llm.LLM`. threads: of the CPU, None for one a core."""

    spec: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    threads: int | None = None
    quantization: str | None = None

    @property
    def name(self) -> str:
        return self.spec or "embedded"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is in this process already, such as one that is being trained. adapter: the name of one to use."""

    llm: "LLM"
    name: str
    adapter: str | None = None


@dataclass(frozen=True)
class Server:
    """A model behind an endpoint. concurrency: requests at a time. fim: see `EndpointGenerator`."""

    endpoint: Endpoint
    concurrency: int = 8
    fim: FimForm = "tokens"


@dataclass(frozen=True)
class SamplesFile:
    """Completions that exist already. allow_missing: tasks without one are left out instead of failing."""

    path: Path
    allow_missing: bool = False


@dataclass(frozen=True)
class SuiteSolutions:
    """The suite's own solutions, or those that it calls wrong."""

    wrong: bool = False


AnswersFrom = LocalModel | LoadedModel | Server | SamplesFile | SuiteSolutions


@dataclass(frozen=True)
class Drawing:
    """How a model's answers are drawn: `samples` of each problem in `style` (None: the suite's first).

    temperature: None is 0 for one sample, `DEFAULT_TEMPERATURE` for several. seed: what the samples' seeds come from.
    """

    style: Style | None = None
    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"-n {self.samples}: at least one sample a problem")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature {self.temperature}: must be 0 or more")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError(f"-n {self.samples} with --temperature 0: the samples would all be the same")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"--max-tokens {self.max_tokens}: must be at least 1")

    @property
    def sampling(self) -> Sampling:
        usual = DEFAULT_TEMPERATURE if self.samples > 1 else 0.0
        return Sampling(usual if self.temperature is None else self.temperature, self.top_p, self.max_tokens)


@dataclass(frozen=True)
class EvalRequest:
    """An evaluation as it is asked for; the fields that `Evaluation` has too mean the same.

    data: None is the suite's public home. limit: only the first so many problems.
    """

    suite: str
    answers: AnswersFrom
    options: SuiteOptions = field(default_factory=SuiteOptions)
    data: Path | None = None
    limit: int | None = None
    drawing: Drawing = field(default_factory=Drawing)
    ks: Sequence[int] | None = None
    output: Path | None = None
    overwrite: bool = False
    gold_check: bool = True
    workers: int = 1
    timeout: float | None = None
    unsafe: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: must be at least 1")
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise UsageError(f"--timeout {self.timeout}: must be above 0 seconds")
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers}: must be at least 1")
        asks_model = isinstance(self.answers, LocalModel | LoadedModel | Server)
        if not asks_model and self.drawing != Drawing(seed=self.drawing.seed):
            raise UsageError("--style, -n, --temperature, --top-p and --max-tokens are for a model: none is asked here")
        if self.overwrite and self.output is None:
            raise UsageError("--overwrite needs --output DIR: say which run is to be replaced")
        for k in self.ks or ():
            if k < 1 or (k > self.drawing.samples and not isinstance(self.answers, SamplesFile)):
                raise UsageError(f"-k {k}: must be from 1 to the samples a problem, which are {self.drawing.samples}")
