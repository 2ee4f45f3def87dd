"""From verdicts to scores: unbiased pass@k, confidence intervals and counts, the same for every suite.

A harness error says nothing about an answer, so it is no sample: it leaves its problem's n, and a problem without any
sample left is excluded by name. Everything here is a pure function of the verdicts; nothing is drawn at random.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from codemill.errors import UsageError
from codemill.sandbox.result import STATUSES, Status

LEVEL = 0.95
_Z = 1.959963984540054  # the standard normal's quantile at (1 + LEVEL) / 2
_USUAL_K = (1, 10, 100)


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval at `LEVEL`, both ends between 0 and 1."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """pass@k: the mean over `problems` problems. too_few: task ids left out because they have fewer than k samples."""

    value: float
    interval: Interval
    problems: int
    too_few: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """What a run's verdicts amount to.

    pass_at: k -> estimate; a k for which no problem has enough samples is missing. verdicts: samples by verdict, those
    that count and those that do not. excluded: task id -> why the problem counts nowhere.
    """

    pass_at: Mapping[int, Estimate]
    verdicts: Mapping[Status, int]
    excluded: Mapping[str, str] = field(default_factory=dict)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The probability that at least one of k samples, drawn without replacement from n of which `correct` pass, passes.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374, equation 1), as a product
    that neither overflows nor cancels. Raises UsageError unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise UsageError(f"pass@{k} with {correct} of {n} samples correct: k is at least 1 and at most the samples")
    if n - correct < k:
        return 1.0
    if k == 1:
        return correct / n  # the same number, without rounding
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def usual_k(samples: int) -> tuple[int, ...]:
    """The k that are reported for so many samples a problem: those of 1, 10 and 100 that they allow."""
    return tuple(k for k in _USUAL_K if k <= samples)


def score(verdicts: Mapping[str, Sequence[Status]], ks: Iterable[int] | None = None) -> Scores:
    """Scores of a run. verdicts: task id -> the verdicts of its samples; their number may differ between problems.

    ks: which pass@k; by default `usual_k` of the problem with most samples.
    """
    counted = {task_id: [v for v in given if v != "harness error"] for task_id, given in verdicts.items()}
    excluded = {task_id: _why_excluded(verdicts[task_id]) for task_id, left in counted.items() if not left}
    tallies = {task_id: (len(left), left.count("ok")) for task_id, left in counted.items() if left}
    most = max((n for n, _ in tallies.values()), default=0)
    wanted = usual_k(most) if ks is None else sorted(set(ks))
    estimates = {k: _estimate(tallies, k) for k in wanted}
    return Scores(
        pass_at={k: estimate for k, estimate in estimates.items() if estimate is not None},
        verdicts=count_verdicts(verdict for given in verdicts.values() for verdict in given),
        excluded=excluded,
    )


def count_verdicts(verdicts: Iterable[Status]) -> dict[Status, int]:
    """How often each verdict occurs, in the order of `STATUSES`, those that never occur as 0."""
    counts = Counter(verdicts)
    return {status: counts[status] for status in STATUSES}


def mean_interval(values: Sequence[float], draws: float) -> Interval:
    """The confidence interval of the mean of one value (0 to 1) a problem, where the problems are what is drawn.

    Wilson's score interval (1927) with the effective sample size that the spread between problems amounts to, the
    design-effect form for clustered samples (Korn and Graubard 1998). With one sample a problem it is Wilson's own.
    Unlike a bootstrap it keeps a width where every problem passes or none does. draws: how many independent trials all
    values together rest on; no interval is narrower than theirs. `values` must not be empty.
    """
    m = len(values)
    p = math.fsum(values) / m
    between = math.fsum((value - p) ** 2 for value in values) / m
    effective = float(m)
    if 0.0 < p < 1.0:
        independent = p * (1.0 - p)
        effective = min(draws, m * independent / between) if between > 0.0 else draws
    return wilson_interval(p, effective)


def wilson_interval(p: float, n: float) -> Interval:
    """Wilson's score interval of a proportion p seen in n draws, at `LEVEL`."""
    spread = _Z * _Z / n
    centre = (p + spread / 2.0) / (1.0 + spread)
    half = _Z / (1.0 + spread) * math.sqrt(p * (1.0 - p) / n + spread / (4.0 * n))
    # The ends are exact where rounding would leave a hair.
    return Interval(0.0 if p <= 0.0 else max(0.0, centre - half), 1.0 if p >= 1.0 else min(1.0, centre + half))


def _estimate(tallies: Mapping[str, tuple[int, int]], k: int) -> Estimate | None:
    enough = {task_id: tally for task_id, tally in tallies.items() if tally[0] >= k}
    if not enough:
        return None
    values = [pass_at_k(n, correct, k) for n, correct in enough.values()]
    return Estimate(
        value=math.fsum(values) / len(values),
        interval=mean_interval(values, sum(n for n, _ in enough.values()) / k),
        problems=len(values),
        too_few=tuple(task_id for task_id in tallies if task_id not in enough),
    )


def _why_excluded(verdicts: Sequence[Status]) -> str:
    if not verdicts:
        return "no sample"
    return f"harness error in {'its sample' if len(verdicts) == 1 else f'all its {len(verdicts)} samples'}"
