"""Whether this host can judge a suite at all: its own solutions have to pass before anything else is judged."""

import threading
from collections.abc import Callable, Mapping

from codemill.errors import CodemillError
from codemill.eval.answers import SuiteAnswers
from codemill.eval.judging import Judge, Judged, JudgingLoop
from codemill.eval.suite import Problem, Suite

SPOT_CHECKS = 10  # of a suite whose gold solutions take long


def checked_problems(suite: Suite, problems: Mapping[str, Problem]) -> dict[str, Problem]:
    """The problems whose gold solutions are run: all that have one, or some evenly spaced ones."""
    having = {task_id: problem for task_id, problem in problems.items() if suite.gold(problem) is not None}
    if suite.cheap_gold or len(having) <= SPOT_CHECKS:
        return having
    task_ids = list(having)
    chosen = [task_ids[round(i * (len(task_ids) - 1) / (SPOT_CHECKS - 1))] for i in range(SPOT_CHECKS)]
    return {task_id: having[task_id] for task_id in chosen}


def check_gold(
    suite: Suite,
    problems: Mapping[str, Problem],
    judge: Judge,
    workers: int,
    done: Callable[[Judged], None],
    abort: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Run the gold solutions of `problems` -> task id: why it does not pass here, for those that do not. done: hears
    each verdict. abort: see `JudgingLoop`.

    Raises CodemillError if more than half fail: then it is the host that is broken.
    """
    failures: dict[str, str] = {}
    lock = threading.Lock()

    def record(judged: Judged) -> None:
        if not judged.is_final:
            return
        with lock:
            if judged.judgement.verdict != "ok":
                failures[judged.candidate.problem.task_id] = explain(judged)
            done(judged)

    answers = SuiteAnswers(suite.gold)
    JudgingLoop(judge, workers, record, abort).run(answers.candidates(problems, answers.keys(problems), {}))
    failures = {task_id: failures[task_id] for task_id in problems if task_id in failures}
    if 2 * len(failures) > len(problems):
        raise CodemillError(_broken(failures, len(problems)))
    return failures


def explain(judged: Judged) -> str:
    """The verdict and its reason in one line."""
    judgement = judged.judgement
    reason = " / ".join(line.strip() for line in judgement.detail.splitlines() if line.strip())
    return f"{judgement.verdict}: {reason}" if reason else judgement.verdict


def _broken(failures: Mapping[str, str], checked: int) -> str:
    task_id, why = next(iter(failures.items()))
    return (
        f"{len(failures)} of {checked} gold solutions do not pass here ({task_id}: {why}): the toolchain or the "
        "sandbox is broken, see `codemill sandbox --check`; --no-gold-check goes on regardless"
    )
