"""What this host cannot judge is reported, not scored."""

import json
from collections import Counter
from pathlib import Path

import pytest

from codemill.errors import CodemillError
from codemill.eval.gold_check import checked_problems
from codemill.eval.runner import evaluate
from codemill.eval.suite import Answer, Judgement, Problem, Run
from eval.scripted import Scripted, drawn, evaluation, number, problems, verdicts
from eval.tiny import Notes, TinySuite


class PartlyBroken(TinySuite):
    """The gold solutions of `broken` do not pass here. `runs` counts what was judged."""

    broken: frozenset[str] = frozenset({"T/1"})

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()

    def gold(self, problem: Problem) -> Answer | None:
        return Answer("None") if problem.task_id in self.broken else super().gold(problem)

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        self.runs[problem.task_id] += 1
        return super().judge(problem, answer, run)


def test_problems_whose_gold_fails_are_excluded_and_named(tmp_path: Path) -> None:
    model = Scripted(number)
    suite = PartlyBroken()
    found = evaluate(evaluation(drawn(model), suite=suite, gold_check=True, output=tmp_path / "run"), Notes())
    assert list(found.gold_failures) == ["T/1"]
    assert "AssertionError" in found.results.scores.excluded["T/1"]
    assert verdicts(found)["T/1"] == ()
    assert "T/1" not in {request.task_id for request in model.asked}
    assert found.results.pass_at_1 == 1.0
    assert found.results.scores.pass_at[1].problems == 5
    assert json.loads((tmp_path / "run" / "gold.json").read_text()).keys() == {"T/1"}


def test_a_continued_run_does_not_check_again(tmp_path: Path) -> None:
    changes = {"gold_check": True, "output": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation(drawn(Scripted(number, 0)), suite=PartlyBroken(), **changes), Notes())
    suite, listener = PartlyBroken(), Notes()
    found = evaluate(evaluation(drawn(Scripted(number)), suite=suite, **changes), listener)
    assert suite.runs.total() == 5
    assert listener.stages == ["judging 0/5"]
    assert list(found.gold_failures) == ["T/1"]


def test_a_broken_toolchain_is_reported_not_scored(tmp_path: Path) -> None:
    suite, model = PartlyBroken(), Scripted(number)
    suite.broken = frozenset({"T/1", "T/2", "T/3", "T/4"})
    with pytest.raises(CodemillError, match=r"^4 of 6 gold solutions do not pass here \(T/1: failed: ") as caught:
        evaluate(evaluation(drawn(model), suite=suite, gold_check=True, output=tmp_path / "run"), Notes())
    assert "\n" not in str(caught.value)
    assert model.asked == []
    suite.broken = frozenset()
    assert evaluate(evaluation(drawn(model), suite=suite, gold_check=True, output=tmp_path / "run"), Notes())


def test_the_gold_check_can_be_left_out() -> None:
    suite = PartlyBroken()
    suite.broken = frozenset({"T/1", "T/2", "T/3", "T/4"})
    found = evaluate(evaluation(drawn(Scripted(number)), suite=suite), Notes())
    assert (found.results.pass_at_1, suite.runs.total()) == (1.0, 6)


def test_suites_whose_gold_takes_long_are_spot_checked() -> None:
    suite = TinySuite()
    every = {problem.task_id: problem for problem in problems(100)}
    assert len(checked_problems(suite, every)) == 100
    suite.cheap_gold = False  # type: ignore[misc]
    assert list(checked_problems(suite, every)) == [f"T/{i}" for i in range(0, 100, 11)]
    few = dict(list(every.items())[:7])
    assert checked_problems(suite, few) == few


def test_a_missing_toolchain_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinySuite, "missing", lambda self: "no tinyc (apt install tinyc)")
    with pytest.raises(CodemillError, match=r"Tiny cannot be judged here: no tinyc \(apt install tinyc\)"):
        evaluate(evaluation(drawn(Scripted(number))), Notes())
