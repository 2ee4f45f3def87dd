"""Where answers come from: a model, a file of samples, or the suite's own data. All end as candidates to be judged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from codemill.chat.reasoning import split_reasoning
from codemill.eval.generation import Generated, Generator, make_request, sample_seed
from codemill.eval.judging import UNJUDGEABLE, Candidate, unjudgeable
from codemill.eval.samples import GivenSamples
from codemill.eval.suite import Answer, Judgement, Problem, Style, Suite

Key = tuple[str, int]  # task id and index of the sample
Problems = Mapping[str, Problem]  # by task id


class AnswerSource(Protocol):
    """Something that has answers."""

    def keys(self, problems: Problems) -> list[Key]:
        """All the samples that belong to these problems, in order."""
        ...

    def candidates(self, problems: Problems, keys: Sequence[Key], drawn: Mapping[Key, str]) -> Iterator[Candidate]:
        """Those of `keys`, in any order, as they become ready. drawn: raw text that an earlier run has of some."""
        ...


@dataclass(frozen=True)
class SuiteAnswers:
    """One answer a problem from the suite's data: its own solutions, or those that it calls wrong."""

    answer: Callable[[Problem], Answer | None]

    def keys(self, problems: Problems) -> list[Key]:
        return [(task_id, 0) for task_id, problem in problems.items() if self.answer(problem) is not None]

    def candidates(self, problems: Problems, keys: Sequence[Key], drawn: Mapping[Key, str]) -> Iterator[Candidate]:
        for task_id, index in keys:
            answer = self.answer(problems[task_id])
            if answer is not None:
                yield Candidate(problems[task_id], index, answer, raw=answer.text)


@dataclass(frozen=True)
class GivenAnswers:
    """The samples of a file, judged as they are. A problem without any fails, unless `allow_missing`."""

    given: GivenSamples
    allow_missing: bool = False

    def keys(self, problems: Problems) -> list[Key]:
        found = [(sample.task_id, sample.index) for sample in self.given.samples if sample.task_id in problems]
        if self.allow_missing:
            return found
        per_task = range(self.given.per_task)
        return found + [(task_id, index) for task_id in self.given.missing(problems) for index in per_task]

    def candidates(self, problems: Problems, keys: Sequence[Key], drawn: Mapping[Key, str]) -> Iterator[Candidate]:
        answers = {(sample.task_id, sample.index): sample.answer for sample in self.given.samples}
        for task_id, index in keys:
            answer = answers.get((task_id, index))
            if answer is None:
                yield Candidate(
                    problems[task_id], index, Judgement("failed", "the samples file has none for this task")
                )
            else:
                yield Candidate(problems[task_id], index, answer, raw=answer.text)


@dataclass(frozen=True)
class ModelAnswers:
    """Samples that a model draws, cleaned by the suite. load: makes the generator when the first one is needed."""

    suite: Suite
    style: Style
    samples: int
    seed: int
    load: Callable[[], Generator]

    def keys(self, problems: Problems) -> list[Key]:
        return [(task_id, index) for task_id in problems for index in range(self.samples)]

    def candidates(self, problems: Problems, keys: Sequence[Key], drawn: Mapping[Key, str]) -> Iterator[Candidate]:
        for task_id, index in (key for key in keys if key in drawn):
            seed = sample_seed(self.seed, task_id, index)
            yield self._candidate(problems[task_id], index, seed, drawn[task_id, index])
        wanted = [key for key in keys if key not in drawn]
        if not wanted:
            return
        requests = [make_request(self.suite, problems[task_id], i, self.style, self.seed) for task_id, i in wanted]
        for generated in self.load().generate(requests):
            yield self._of(problems[generated.request.task_id], generated)

    def _of(self, problem: Problem, generated: Generated) -> Candidate:
        request = generated.request
        if generated.error is not None:
            return Candidate(problem, request.index, Judgement("harness error", generated.error), seed=request.seed)
        if generated.unable is not None:
            return Candidate(problem, request.index, Judgement("failed", generated.unable), seed=request.seed)
        notes = [generated.note, "the answer reached max_tokens" if generated.finish_reason == "length" else ""]
        note = "\n".join(filter(None, notes))
        return self._candidate(problem, request.index, request.seed, generated.text, note)

    def _candidate(self, problem: Problem, index: int, seed: int, raw: str, note: str = "") -> Candidate:
        text = split_reasoning(raw).content if self.style == "chat" else raw
        try:
            answer: Answer | Judgement = self.suite.clean(problem, text, self.style)
        except UNJUDGEABLE as error:
            answer = unjudgeable(error)
        return Candidate(problem, index, answer, raw, seed, note)
