"""What a benchmark is: problems, how a model is asked, what of its answer counts, and how that is judged.

A suite is a file beside this one with a subclass of `Suite`. It knows nothing of models: `generation` asks them, and
the runner brings both together. Untrusted code goes to the `run` that `judge` is given and nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from codemill.sandbox.job import Job
from codemill.sandbox.result import RunResult, Status

Style = Literal["base", "chat", "fim"]
Run = Callable[[Job], RunResult]


@dataclass(frozen=True)
class SuiteOptions:
    """Which part of a suite: `variant` and `language` mean what the suite says; None is its default, or what the data
    itself shows."""

    variant: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class Problem:
    """One problem. `fields` is the record of the data file; the suite that loaded it knows what is in it."""

    task_id: str
    fields: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: `text` to continue, `messages` to answer (with `tools`), or the hole between `prefix` and
    `suffix`. Exactly one of the three is set. `stop`: strings that end the answer.

    context_files, path, repo_name: for a hole in a repository, its other files as (path, content), the nearest last,
    and the names of the file and of the repository, as in `chat.prompts.fim_ids`. Where a context is short, the first
    of the files may be left out.
    """

    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    prefix: str | None = None
    suffix: str = ""
    stop: tuple[str, ...] = ()
    max_tokens: int = 512
    context_files: tuple[tuple[str, str], ...] = ()
    path: str | None = None
    repo_name: str | None = None


@dataclass(frozen=True)
class Answer:
    """What is judged. `whole`: the text is a complete program (EvalPlus's `solution`), not what follows the prompt."""

    text: str
    whole: bool = False


@dataclass(frozen=True)
class Judgement:
    """The verdict on one answer. `detail` says in a line or two why it is not "ok" (the error's last lines).

    score: for suites that measure more than right or wrong, such as edit similarity (0 to 1).
    waited_seconds: see RunResult; tells the runner that a timeout may be the machine's fault.
    """

    verdict: Status
    detail: str = ""
    score: float | None = None
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class DataSource:
    """The public home of a data set: `repo_id` on the Hub (a dataset repository) and a file in it, or a plain URL."""

    repo_id: str | None = None
    filename: str | None = None
    url: str | None = None


class Suite(ABC):
    """One benchmark. Instances are immutable and safe to use from several threads."""

    name: ClassVar[str]
    title: ClassVar[str]  # as its authors write it
    styles: ClassVar[tuple[Style, ...]]  # the first is the default
    cheap_gold: ClassVar[bool] = True  # all gold solutions can be run before every evaluation (seconds, not minutes)
    cut_prompts: ClassVar[bool] = False  # a text prompt too long for the model may lose its beginning

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:
        """Raises UsageError for a variant or language that the suite does not have."""
        self.options = options

    @abstractmethod
    def source(self) -> DataSource:
        """Where the data comes from if the user names no file."""

    @abstractmethod
    def load(self, path: Path) -> list[Problem]:
        """The problems in a file or folder of the suite's public format. Raises CodemillError naming file and line."""

    @abstractmethod
    def prompt(self, problem: Problem, style: Style) -> Prompt:
        """How a model is asked in this style."""

    @abstractmethod
    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        """What of a model's raw answer is judged, cut the way the suite's authors cut it."""

    @abstractmethod
    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        """The verdict. Never raises for anything an answer may contain."""

    def gold(self, problem: Problem) -> Answer | None:
        """The suite's own solution, or None if its data has none."""
        return None

    def wrong(self, problem: Problem) -> Answer | None:
        """A solution that the suite's data calls wrong, or None."""
        return None

    def missing(self) -> str | None:
        """What this host lacks to judge the suite (a toolchain, with the package that brings it), or None."""
        return None

    def toolchain_fault(self, problems: Sequence[Problem], run: Run) -> str | None:
        """What is wrong on this host with what these problems need, in one line, or None. Asked before judging."""
        return self.missing()

    def preload(self) -> Sequence[str]:
        """Python modules that the tests import often: loaded once in the sandbox's warm interpreter."""
        return ()

    def summary(self, judgements: Sequence[Judgement]) -> Mapping[str, float]:
        """Figures beside pass@k, such as the mean edit similarity."""
        return {}


def judgement_of(result: RunResult, needs_end: bool = True) -> Judgement:
    """The judgement that a single run amounts to.

    needs_end: the program must have reached its last line: an answer that exits early has not passed its tests.
    """
    if result.status == "ok" and needs_end and not result.completed:
        return Judgement("failed", "the program exited before its tests ended", waited_seconds=result.waited_seconds)
    return Judgement(result.status, _why(result), waited_seconds=result.waited_seconds)


def _why(result: RunResult) -> str:
    if result.status == "ok":
        return ""
    lines = [line for line in result.stderr.splitlines() if line.strip(" \t^~")]  # a line of carets says nothing alone
    return "\n".join(filter(None, [result.detail, *lines[-2:]]))[:2000]
