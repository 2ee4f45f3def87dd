"""pass@k against exact arithmetic, intervals against published values and by their coverage."""

import random
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.errors import UsageError
from codemill.eval.scores import mean_interval, pass_at_k, score, usual_k, wilson_interval
from codemill.sandbox.result import Status


@given(st.data())
def test_pass_at_k_is_the_exact_estimator(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300))
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - Fraction(comb(n - correct, k), comb(n, k))
    assert pass_at_k(n, correct, k) == pytest.approx(float(exact), rel=1e-12, abs=1e-15)


def test_pass_at_k_at_its_ends() -> None:
    assert pass_at_k(3, 3, 1) == 1.0
    assert pass_at_k(200, 0, 100) == 0.0
    assert pass_at_k(3, 1, 1) == 1 / 3
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4)


@pytest.mark.parametrize(("n", "correct", "k"), [(1, 2, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_has_no_meaning(n: int, correct: int, k: int) -> None:
    with pytest.raises(UsageError, match=f"pass@{k} with {correct} of {n}"):
        pass_at_k(n, correct, k)


def test_scores_average_over_problems_with_different_numbers_of_samples() -> None:
    verdicts: dict[str, list[Status]] = {
        "a": ["ok", "failed", "failed", "timeout"],
        "b": ["ok", "ok"],
        "c": ["failed"],
    }
    scores = score(verdicts, ks=(2, 1))
    assert list(scores.pass_at) == [1, 2]
    assert scores.pass_at[1].value == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert scores.pass_at[1].problems == 3
    assert scores.pass_at[2].value == pytest.approx((1 / 2 + 1) / 2)
    assert scores.pass_at[2].too_few == ("c",)
    assert scores.verdicts["ok"] == 3
    assert scores.verdicts["timeout"] == 1
    assert scores.verdicts["blocked"] == 0
    assert sum(scores.verdicts.values()) == 7


def test_harness_errors_are_no_samples() -> None:
    clean = score({"a": ["ok", "failed"], "b": ["ok"]})
    noisy = score(
        {"a": ["ok", "harness error", "failed"], "b": ["harness error", "ok"], "c": ["harness error"], "d": []}
    )
    assert noisy.pass_at[1] == clean.pass_at[1]
    assert noisy.excluded == {"c": "harness error in its sample", "d": "no sample"}
    assert noisy.verdicts["harness error"] == 3


def test_a_run_of_harness_errors_alone_has_no_score() -> None:
    scores = score({"a": ["harness error", "harness error"]})
    assert scores.pass_at == {}
    assert scores.excluded == {"a": "harness error in all its 2 samples"}


def test_only_the_usual_k_that_the_samples_allow_are_reported() -> None:
    assert usual_k(1) == (1,)
    assert usual_k(20) == (1, 10)
    assert usual_k(200) == (1, 10, 100)
    assert list(score({"a": ["ok"] * 10, "b": ["ok"]}).pass_at) == [1, 10]


@pytest.mark.parametrize(
    ("p", "n", "low", "high"),
    [
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.5, 100, 0.4038, 0.5962),
        (81 / 263, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15 / 148, 148, 0.0624, 0.1605),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_published_values(p: float, n: int, low: float, high: float) -> None:
    interval = wilson_interval(p, n)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_one_sample_a_problem_gives_wilsons_interval() -> None:
    clustered, plain = mean_interval([1.0] * 40 + [0.0] * 60, 100), wilson_interval(0.4, 100)
    assert (clustered.low, clustered.high) == (pytest.approx(plain.low), pytest.approx(plain.high))


def test_more_samples_narrow_an_interval_down_to_the_spread_between_problems() -> None:
    def width(per_problem: float, draws: int) -> float:
        interval = mean_interval([per_problem, 1 - per_problem] * 50, draws)
        return interval.high - interval.low

    assert width(0.0, 100) == pytest.approx(width(0.0, 10_000))  # problems that differ wholly: samples do not help
    assert width(0.5, 10_000) < width(0.4, 10_000) < width(0.0, 10_000)
    assert width(0.5, 100) == pytest.approx(width(0.0, 100))


@pytest.mark.parametrize(("samples", "k"), [(1, 1), (5, 1), (20, 10)])
@pytest.mark.parametrize(("shape_a", "shape_b"), [(0.3, 0.7), (4.0, 1.0), (0.2, 3.0)])
def test_the_interval_covers_the_true_mean(samples: int, k: int, shape_a: float, shape_b: float) -> None:
    """Problems' difficulties are drawn from a Beta distribution: 95 % of the intervals must hold their mean pass@k."""
    draw = random.Random(7)
    truth = 1.0
    for i in range(k):  # E[(1 - p)^k] of a Beta distribution
        truth *= (shape_b + i) / (shape_a + shape_b + i)
    truth, runs, covered = 1 - truth, 800, 0
    for _ in range(runs):
        verdicts = {}
        for problem in range(60):
            p = draw.betavariate(shape_a, shape_b)
            verdicts[str(problem)] = [_verdict(draw.random() < p) for _ in range(samples)]
        interval = score(verdicts, ks=(k,)).pass_at[k].interval
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / runs <= 1.0


def _verdict(passed: bool) -> Status:
    return "ok" if passed else "failed"
