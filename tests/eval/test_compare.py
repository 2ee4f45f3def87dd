"""Comparison of two runs: the test against binomial arithmetic and enumeration, the interval by its coverage."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import comb

import pytest

from codemill.errors import CodemillError
from codemill.eval.compare import compare, difference_interval, format_p, render, sign_flip_test
from codemill.eval.results import ProblemResult, RunConfiguration, RunResults
from codemill.eval.scores import score, wilson_interval
from codemill.sandbox.result import Status

Verdicts = Mapping[str, Sequence[Status]]


def run_of(verdicts: Verdicts, model: str = "m") -> RunResults:
    problems = tuple(ProblemResult(task_id, tuple(given)) for task_id, given in verdicts.items())
    configuration = RunConfiguration("model", model, style="base", sampling={"temperature": 0.0})
    return RunResults("humaneval", configuration, score(verdicts), problems, data_sha256="0" * 64)


def outcomes(both: int, lost: int, gained: int, neither: int) -> tuple[Verdicts, Verdicts]:
    a = ["ok"] * (both + lost) + ["failed"] * (gained + neither)
    b = ["ok"] * both + ["timeout"] * lost + ["ok"] * gained + ["failed"] * neither
    return {str(i): [v] for i, v in enumerate(a)}, {str(i): [v] for i, v in enumerate(b)}  # type: ignore[list-item]


def mcnemar(gained: int, lost: int) -> float:
    n = gained + lost
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (12, 2), (3, 30), (300, 240), (0, 40)])
def test_one_sample_a_problem_gives_mcnemars_exact_test(gained: int, lost: int) -> None:
    a, b = outcomes(20, lost, gained, 7)
    assert compare(run_of(a), run_of(b)).p_value == pytest.approx(mcnemar(gained, lost), rel=1e-9)


def test_the_sign_flip_test_counts_all_signs() -> None:
    draw = random.Random(3)
    for _ in range(20):
        steps = [draw.randint(-4, 4) for _ in range(9)]
        sums = [
            abs(sum(s * sign for s, sign in zip(steps, signs, strict=True))) for signs in product((1, -1), repeat=9)
        ]
        expected = sum(found >= abs(sum(steps)) for found in sums) / len(sums)
        assert sign_flip_test([step / 4 for step in steps], 4) == pytest.approx(expected)


def test_gained_lost_and_the_difference() -> None:
    a: Verdicts = {"a": ["ok", "failed"], "b": ["ok", "ok"], "c": ["failed", "failed"], "d": ["ok", "ok"]}
    b: Verdicts = {"a": ["ok", "ok"], "b": ["timeout", "failed"], "c": ["failed", "memory"], "d": ["ok", "ok"]}
    found = compare(run_of(a), run_of(b))
    assert [(change.task_id, change.a, change.b) for change in found.gained] == [("a", 0.5, 1.0)]
    assert [(change.task_id, change.a, change.b) for change in found.lost] == [("b", 1.0, 0.0)]
    assert (found.a, found.b, found.problems) == (0.625, 0.5, 4)
    assert found.difference == pytest.approx(-0.125)
    assert found.interval.low < -0.125 < found.interval.high


def test_only_what_both_scored_is_compared() -> None:
    a: Verdicts = {"a": ["ok"], "b": ["harness error"], "c": ["failed"], "x": ["ok"]}
    b: Verdicts = {"a": ["ok"], "b": ["ok"], "c": ["harness error", "ok"], "y": ["failed"]}
    found = compare(run_of(a), run_of(b))
    assert (found.a, found.b, found.problems) == (0.5, 1.0, 2)
    assert (found.only_a, found.only_b) == (("x",), ("b", "y"))
    with pytest.raises(CodemillError, match="share no scored problem"):
        compare(run_of({"a": ["ok"]}), run_of({"b": ["ok"]}))


def test_what_else_differs_is_warned_about() -> None:
    a = run_of({"a": ["ok"]})
    configuration = replace(a.configuration, style="chat", sampling={"temperature": 0.8, "top_p": 0.95})
    b = replace(a, suite="mbpp", data_sha256="1" * 64, configuration=configuration)
    assert compare(a, a).warnings == ()
    assert compare(a, b).warnings == (
        "suite differs: humaneval in A, mbpp in B",
        "data sha256 differs: 000000000000... in A, 111111111111... in B",
        "style differs: base in A, chat in B",
        "sampling temperature differs: 0.0 in A, 0.8 in B",
        "sampling top_p differs: not given in A, 0.95 in B",
    )


def test_problems_with_very_different_numbers_of_samples_are_tested_in_bounded_time() -> None:
    draw = random.Random(5)
    a, b = (
        {str(i): [draw.choice(["ok", "failed"]) for _ in range(draw.randint(1, 97))] for i in range(300)}
        for _ in range(2)
    )
    found = compare(run_of(a), run_of(b))  # type: ignore[arg-type]
    assert 0.01 < found.p_value <= 1.0


def test_a_run_compared_with_itself_shows_no_difference_but_keeps_an_interval() -> None:
    a, _ = outcomes(10, 0, 0, 10)
    found = compare(run_of(a), run_of(a))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    one = difference_interval([1.0] * 10, [1.0] * 10, 10, 10)
    assert one.low == pytest.approx(wilson_interval(1.0, 10).low - 1.0)
    assert one.high == pytest.approx(1.0 - wilson_interval(1.0, 10).low)


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_interval_of_the_difference_covers_the_truth(samples: int, shift: float) -> None:
    """Both models find the same problems hard; B is better by `shift` on each. 95 % of the intervals must hold it."""
    draw, runs, covered = random.Random(11), 500, 0

    def rate(p: float) -> float:
        return sum(draw.random() < p for _ in range(samples)) / samples

    for _ in range(runs):
        hardness = [0.9 * draw.betavariate(0.4, 0.6) for _ in range(80)]
        a, b = [rate(p) for p in hardness], [rate(p + shift) for p in hardness]
        interval = difference_interval(a, b, 80 * samples, 80 * samples)
        covered += interval.low <= shift <= interval.high
    assert 0.92 <= covered / runs <= 0.99


def test_the_text_says_who_is_better() -> None:
    a, b = outcomes(100, 2, 12, 50)
    lines = render(compare(run_of(a, "old"), run_of(b, "a-newer-one"))).splitlines()
    assert lines[0] == "humaneval, pass@1 over the 164 problems that both scored"
    assert lines[1] == "  A  old           62.20 %"
    assert lines[2] == "  B  a-newer-one   68.29 %"
    assert lines[3].startswith("     difference    +6.10   95% interval +1.72 to +10.48, ")
    assert lines[3].endswith("p = 0.013")
    assert lines[4:] == [
        "gained by B: 12",
        f"  {', '.join(str(i) for i in range(102, 112))}, and 2 more",
        "lost by B: 2",
        "  100, 101",
    ]


def test_the_object_is_json() -> None:
    a, b = outcomes(3, 1, 2, 4)
    value = json.loads(json.dumps(compare(run_of(a), run_of(b)).to_json()))
    assert value["difference"] == pytest.approx(0.1)
    assert value["interval"]["level"] == 0.95
    assert [change["task_id"] for change in value["gained"]] == ["4", "5"]


def test_small_p_values_show_their_magnitude() -> None:
    assert [format_p(p) for p in (1.0, 0.0312, 0.00042, 0.0)] == ["1.000", "0.031", "4.2e-04", "1.0e-300"]
