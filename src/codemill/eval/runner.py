"""Runs one evaluation: gold check, answers, verdicts, scores, and the directory that keeps them."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

from codemill.errors import CodemillError, UsageError
from codemill.eval.answers import Problems
from codemill.eval.evaluation import Evaluation, Listener, Outcome, Tally
from codemill.eval.generation import prompt_text
from codemill.eval.gold_check import check_gold, checked_problems
from codemill.eval.judging import Judge, Judged, JudgingLoop
from codemill.eval.lazy_pool import LazyPool
from codemill.eval.recorder import Recorder
from codemill.eval.report_html import write_report
from codemill.eval.results import RunResults, data_sha256, problem_results, samples_path, versions, write_results
from codemill.eval.run_directory import RunDirectory, open_run
from codemill.eval.sample_log import PromptRecord, SampleLog, SampleRecord, write_prompts
from codemill.eval.scores import Scores, score
from codemill.eval.suite import Judgement
from codemill.sandbox.result import Status


def evaluate(evaluation: Evaluation, listener: Listener) -> Outcome:
    """Run it, or what is left of it. Raises UsageError and CodemillError, and KeyboardInterrupt after Ctrl-C: what was
    judged until then is in the directory, and the same evaluation continues."""
    with ExitStack() as stack:
        directory = None
        if evaluation.output is not None or evaluation.labels:
            run = open_run(evaluation.output, evaluation.labels, evaluation.fingerprint, evaluation.overwrite)
            directory = stack.enter_context(run)
        preload = evaluation.suite.preload()
        pool = stack.enter_context(LazyPool(evaluation.workers, evaluation.unsafe, preload))
        return _Runner(evaluation, listener, pool, directory).run()


class _Runner:
    """One evaluation under way."""

    def __init__(
        self, evaluation: Evaluation, listener: Listener, pool: LazyPool, directory: RunDirectory | None
    ) -> None:
        self._evaluation = evaluation
        self._listener = listener
        self._pool = pool
        self._directory = directory
        self._judge = Judge(evaluation.suite, pool.run, evaluation.timeout)
        self._problems: Problems = {problem.task_id: problem for problem in evaluation.dataset.problems}
        self._started = directory.state.started if directory is not None else _now()
        self._begun = time.monotonic()

    def run(self) -> Outcome:
        complete = False
        try:
            self._check_toolchain()
            gold_failures = self._gold_failures()
            problems = {task_id: p for task_id, p in self._problems.items() if task_id not in gold_failures}
            recorder = self._judge_answers(problems)
            results = self._results(recorder, gold_failures)
            complete = not any(record.verdict == "harness error" for record in recorder.finished())
        finally:
            if self._directory is not None:
                self._directory.save(self._seconds(), complete)
        path = self._directory.path if self._directory is not None else None
        if path is not None:
            write_results(path, results)
            write_report(path)
        return Outcome(results, path, gold_failures, recorder.finished())

    def _check_toolchain(self) -> None:
        suite = self._evaluation.suite
        problems = list(self._problems.values())
        fault = suite.toolchain_fault(problems, self._pool.run) if self._evaluation.gold_check else suite.missing()
        if fault:
            raise CodemillError(f"{suite.title} cannot be judged here: {fault}")

    def _gold_failures(self) -> Mapping[str, str]:
        evaluation, directory = self._evaluation, self._directory
        if not evaluation.gold_check or evaluation.configuration.source == "gold":
            return {}
        kept = directory.read_gold() if directory is not None else None
        if kept is not None:
            return kept
        checked = checked_problems(evaluation.suite, self._problems)
        if not checked:
            return {}
        tally = Tally(len(checked))
        self._listener.stage("gold check", tally)

        def count(judged: Judged) -> None:
            tally.verdicts[judged.judgement.verdict] += 1
            self._listener.advance(tally)

        failures = check_gold(evaluation.suite, checked, self._judge, evaluation.workers, count, self._pool.abort)
        if directory is not None:
            directory.write_gold(failures)
        return failures

    def _judge_answers(self, problems: Problems) -> Recorder:
        evaluation = self._evaluation
        keys = evaluation.answers.keys(problems)
        if not keys:
            raise UsageError(f"there is no answer to judge: {evaluation.suite.title} has none for these problems")
        recorder = Recorder(self._listener, self._log(), keys)
        if self._directory is not None:
            texts = (PromptRecord(each.task_id, self._prompt(each.task_id)) for each in problems.values())
            write_prompts(self._directory.path, texts)
        self._listener.stage("judging", recorder.tally)
        candidates = evaluation.answers.candidates(problems, recorder.missing(), recorder.drawn)
        JudgingLoop(self._judge, evaluation.workers, recorder.record, self._pool.abort).run(candidates)
        return recorder

    def _prompt(self, task_id: str) -> str:
        return prompt_text(self._evaluation.suite.prompt(self._problems[task_id], self._evaluation.style))

    def _log(self) -> SampleLog | None:
        return SampleLog(samples_path(self._directory.path)) if self._directory is not None else None

    def _results(self, recorder: Recorder, gold_failures: Mapping[str, str]) -> RunResults:
        evaluation = self._evaluation
        records, path = recorder.finished(), evaluation.dataset.path
        configuration = evaluation.configuration
        more = {**configuration.more, "environment": self._pool.environment(), "gold_check": evaluation.gold_check}
        judgements = [Judgement(record.verdict, record.detail, record.score) for record in records]
        return RunResults(
            suite=evaluation.suite.name,
            title=evaluation.suite.title,
            configuration=replace(configuration, more=more),
            scores=self._scores(records, gold_failures),
            problems=problem_results(self._problems, records),
            variant=evaluation.suite.options.variant,
            language=evaluation.suite.options.language,
            data=path.name if path is not None else None,
            data_sha256=data_sha256(path) if path is not None and path.is_file() else evaluation.dataset.sha256,
            model_fingerprint=evaluation.model_fingerprint,
            versions=versions(),
            started=self._started,
            finished=_now(),
            seconds=round(self._seconds(), 3),
            summary=evaluation.suite.summary(judgements),
        )

    def _scores(self, records: Sequence[SampleRecord], gold_failures: Mapping[str, str]) -> Scores:
        verdicts: dict[str, list[Status]] = {task_id: [] for task_id in self._problems if task_id not in gold_failures}
        for record in records:
            verdicts[record.task_id].append(record.verdict)
        ks = self._evaluation.ks
        scores = score(verdicts, None if ks is None else {1, *ks})
        unfit = {task_id: f"its gold solution does not pass here ({why})" for task_id, why in gold_failures.items()}
        return replace(scores, excluded={**unfit, **scores.excluded})

    def _seconds(self) -> float:
        earlier = self._directory.state.seconds if self._directory is not None else 0.0
        return earlier + time.monotonic() - self._begun


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
