"""Many judgements at a time."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from codemill.eval.suite import Answer, Judgement, Problem, Run, Suite


def judge_all(
    suite: Suite, problems: Sequence[Problem], answer: Callable[[Problem], Answer | None], run: Run
) -> dict[str, Judgement]:
    """The judgements on the answers, by task id."""

    def one(problem: Problem) -> Judgement:
        given = answer(problem)
        assert given is not None
        return suite.judge(problem, given, run)

    with ThreadPoolExecutor(2) as threads:
        return dict(zip([problem.task_id for problem in problems], threads.map(one, problems), strict=True))


def verdicts(
    suite: Suite, problems: Sequence[Problem], answer: Callable[[Problem], Answer | None], run: Run
) -> Counter[str]:
    """How many there are of each."""
    return Counter(judgement.verdict for judgement in judge_all(suite, problems, answer, run).values())
