"""Benchmark problems as texts, for the check that training data holds none of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.data.contamination import BenchmarkProblem
from codemill.data.documents import strings
from codemill.errors import CodemillError, UsageError
from codemill.eval.dataset import Dataset, load_dataset
from codemill.eval.registry import get_suite
from codemill.eval.suite import Problem, Suite, SuiteOptions

PROGRAM = "prompt and solution"
# Fields about a problem, not of it.
_LABELS = frozenset(
    "task_id id name language original entry_point stop_tokens doctests prompt_terminology source_file".split()
)


@dataclass(frozen=True)
class Against:
    """A suite to check against: `part` is its variant or language; without a data file it is fetched from its home."""

    suite: str
    part: str | None = None
    data: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "Against":
        """SUITE, SUITE:PART, SUITE=PATH or SUITE:PART=PATH. Raises UsageError for anything else."""
        name, equals, path = text.partition("=")
        suite, colon, part = name.partition(":")
        if not suite or (equals and not path) or (colon and not part):
            raise UsageError(f"--against {text!r}: give SUITE, SUITE:PART or SUITE=PATH")
        return cls(suite, part or None, Path(path) if path else None)

    def open(self) -> Suite:
        """Raises UsageError if there is no such suite or it has no such part."""
        if self.part is None:
            return get_suite(self.suite)
        get_suite(self.suite)  # first, because its error is the clearer one
        try:
            return get_suite(self.suite, SuiteOptions(variant=self.part))
        except UsageError:
            return get_suite(self.suite, SuiteOptions(language=self.part))


def benchmark_problems(against: Sequence[Against]) -> list[BenchmarkProblem]:
    """The problems of all these suites. Raises UsageError and CodemillError as `load_dataset` does."""
    return [problem for chosen in against for problem in _problems(chosen)]


def _problems(against: Against) -> Iterator[BenchmarkProblem]:
    suite = against.open()
    for problem in _load(suite, against).problems:
        yield BenchmarkProblem(suite.name, problem.task_id, problem_parts(suite, problem))


def _load(suite: Suite, against: Against) -> Dataset:
    try:
        return load_dataset(suite, against.data)
    except CodemillError as error:  # it speaks of the option of `codemill eval`
        told = str(error).replace("--data PATH", f"--against {against.suite}=PATH")
        raise type(error)(told.replace(f"--data {against.data}", f"--against {suite.name}={against.data}")) from error


def problem_parts(suite: Suite, problem: Problem) -> Mapping[str, str]:
    """Field -> all text in it, and the whole program that the suite's own solution makes of the prompt."""
    texts = {name: "\n".join(strings(value)) for name, value in problem.fields.items() if name not in _LABELS}
    program = _program(suite, problem)
    return {name: text for name, text in {PROGRAM: program, **texts}.items() if text.strip()}


def _program(suite: Suite, problem: Problem) -> str:
    gold = suite.gold(problem)
    if gold is None or gold.whole:
        return gold.text if gold else ""
    return f"{_field(problem, 'prompt')}{gold.text}{_field(problem, 'suffix')}"


def _field(problem: Problem, name: str) -> str:
    value: Any = problem.fields.get(name)
    return value if isinstance(value, str) else ""
