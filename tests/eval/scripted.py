"""A model that writes what a test says, and evaluations of the suite `tiny` with it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from codemill.eval.answers import ModelAnswers, SuiteAnswers
from codemill.eval.dataset import Dataset
from codemill.eval.evaluation import Evaluation, Outcome
from codemill.eval.generation import Generated, GenerationRequest
from codemill.eval.results import RunConfiguration
from codemill.eval.suite import Problem
from eval.tiny import TinySuite, records

Write = Callable[[GenerationRequest], str]


class Scripted:
    """A model that writes what `write` says. asked: the requests that it had; it fails after `strength` of them."""

    def __init__(self, write: Write, strength: int | None = None, failure: BaseException | None = None) -> None:
        self.write, self.strength = write, strength
        self.failure = failure or KeyboardInterrupt()
        self.asked: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
        for request in requests:
            if len(self.asked) == self.strength:
                raise self.failure
            self.asked.append(request)
            yield Generated(request, self.write(request), "stop")


def number(request: GenerationRequest) -> str:
    """Right for even tasks; for odd ones right in one sample of three."""
    task = int(request.task_id.removeprefix("T/"))
    return f" {task}" if task % 2 == 0 or request.index % 3 == 0 else " -7"


def problems(count: int) -> list[Problem]:
    return [Problem(record["task_id"], record) for record in records(count)]


def evaluation(answers: Any, count: int = 6, **changes: Any) -> Evaluation:
    suite = changes.pop("suite", None) or TinySuite()
    source = "gold" if isinstance(answers, SuiteAnswers) else "model"
    settings = {"configuration": RunConfiguration(source), "style": "base", "workers": 2, "gold_check": False} | changes
    return Evaluation(suite, Dataset(problems(count)), answers, **settings)


def drawn(model: Scripted, samples: int = 1) -> ModelAnswers:
    return ModelAnswers(TinySuite(), "base", samples, 0, lambda: model)


def verdicts(outcome: Outcome) -> dict[str, tuple[str, ...]]:
    return {problem.task_id: problem.verdicts for problem in outcome.results.problems}
