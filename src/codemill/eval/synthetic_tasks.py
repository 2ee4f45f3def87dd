"""Our own held-out tasks: functions to be written from a sentence, of combinations of operations that no model of ours
was trained on (see `codemill.data.synthesis`). The generator is the source; a file of such tasks may take its place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.errors import CodemillError, UsageError
from codemill.eval.cleaning import answered_function, continued_function
from codemill.eval.humaneval import function_prompt
from codemill.eval.python_program import judge_program
from codemill.eval.python_text import defines
from codemill.eval.records import Record, find_file, read_records
from codemill.eval.suite import (
    Answer,
    DataSource,
    Judgement,
    Problem,
    Prompt,
    Run,
    Style,
    Suite,
    SuiteOptions,
)
from codemill.sandbox.job import Limits

if TYPE_CHECKING:
    from codemill.data.synthesis import SyntheticTask

SEED = 987_654  # not that of training
COUNT = 500
_LIMITS = Limits(cpu_seconds=5.0)


class SyntheticTasks(Suite):
    """`--data` is a file in HumanEval's format: `prompt`, `entry_point`, `canonical_solution` and `test`; without it,
    the first 500 held-out tasks."""

    name = "tasks"
    title = "Held-out synthetic tasks"
    styles = ("base", "chat")

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant is not None:
            raise UsageError(f"tasks has no variants, so none is called {options.variant!r}")
        if options.language not in (None, "python"):
            raise UsageError(f"tasks are in Python only, not in {options.language!r}")

    def source(self) -> DataSource:
        return DataSource()

    def builtin(self) -> list[Problem]:
        """The tasks that come with the package: the same ones in every process."""
        from codemill.data.synthesis import generate_tasks

        return [task_problem(task) for task in islice(generate_tasks(SEED, held_out=True), COUNT)]

    def load(self, path: Path) -> list[Problem]:
        file = find_file(path, ("*.jsonl", "*.jsonl.gz", "*.json"))
        return list(map(_read, read_records(file, {"prompt": str})))

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        instruction = problem.fields.get("instruction")
        if style == "base" or not instruction:
            return function_prompt(problem.fields["prompt"], style)
        return Prompt(messages=({"role": "user", "content": instruction},), max_tokens=512)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        text, name = problem.fields["prompt"], problem.fields["entry_point"]
        return continued_function(raw, text, name) if style == "base" else answered_function(raw, text, name)

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        start = answer.text if answer.whole else problem.fields["prompt"] + answer.text
        return judge_program(run, "\n".join([start, *problem.fields["tests"]]), _LIMITS)

    def gold(self, problem: Problem) -> Answer | None:
        solution = problem.fields.get("canonical_solution")
        return Answer(solution) if isinstance(solution, str) else None


def task_problem(task: "SyntheticTask") -> Problem:
    """The problem of a task."""
    fields = asdict(task)
    return Problem(task.task_id, {**fields, "canonical_solution": fields.pop("solution")})


def _read(record: Record) -> Problem:
    fields: Mapping[str, Any] = record.fields
    return Problem(
        str(fields["task_id"]),
        {**fields, "entry_point": record.need("entry_point", str), "tests": list(_tests(record))},
    )


def _tests(record: Record) -> Iterator[str]:
    """Assertions in a list, or HumanEval's `check` with a call of it."""
    tests = record.fields.get("tests", record.fields.get("test"))
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        yield from tests
    elif isinstance(tests, str) and tests.strip():
        yield tests
        if defines(tests, "check"):
            yield f"check({record.fields['entry_point']})"
    else:
        raise CodemillError(f"{record.where}: the record has no 'test' (Python text) or 'tests' (a list of assertions)")
