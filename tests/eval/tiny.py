"""A suite small enough for tests: each problem asks for an expression, and its test is a line of Python."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from codemill.eval.evaluation import Tally
from codemill.eval.suite import Answer, DataSource, Judgement, Problem, Prompt, Run, Style, Suite, judgement_of
from codemill.sandbox.job import Limits, python_job

LIMITS = Limits(cpu_seconds=0.5)


class TinySuite(Suite):
    """`value = ` is to be continued so that the test holds."""

    name = "tiny"
    title = "Tiny"
    styles = ("base", "chat", "fim")

    def source(self) -> DataSource:
        return DataSource()

    def load(self, path: Path) -> list[Problem]:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return [Problem(record["task_id"], record) for record in records]

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        text = problem.fields["prompt"]
        if style == "chat":
            return Prompt(messages=({"role": "user", "content": text},), stop=(), max_tokens=8)
        if style == "fim":
            return Prompt(prefix=text, suffix="\n", stop=("\n",), max_tokens=8)
        return Prompt(text=text, stop=("\n",), max_tokens=8)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        return Answer(raw.strip())

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        program = answer.text if answer.whole else problem.fields["prompt"] + answer.text
        return judgement_of(run(python_job(f"{program}\n{problem.fields['test']}\n", limits=LIMITS)))

    def gold(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["solution"])

    def wrong(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["bug"])


def records(count: int) -> list[dict[str, str]]:
    return [
        {"task_id": f"T/{i}", "prompt": "value = ", "solution": str(i), "bug": "-1", "test": f"assert value == {i}"}
        for i in range(count)
    ]


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


class Notes:
    """A listener that remembers. `on_advance` is called with each tally."""

    def __init__(self, on_advance: Callable[[Tally], None] = lambda tally: None) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self._on_advance = on_advance

    def stage(self, name: str, tally: Tally) -> None:
        self.stages.append(f"{name} {tally.done}/{tally.total}")

    def advance(self, tally: Tally) -> None:
        self._on_advance(tally)

    def note(self, text: str) -> None:
        self.notes.append(text)
