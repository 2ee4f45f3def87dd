"""Two runs of one suite beside each other: is one better, by how much, and on which problems.

Only problems that both runs scored are compared, each with itself, because problems differ far more in difficulty than
models do. All of it is computed exactly; nothing is drawn at random.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from codemill.errors import CodemillError
from codemill.eval.results import ProblemResult, RunResults
from codemill.eval.scores import LEVEL, Interval, mean_interval

_FINEST = 1000  # differences of pass rates are multiples of one over this at the finest
_SHOWN = 10  # task ids in the text


@dataclass(frozen=True)
class Change:
    """A problem whose pass rate differs: the share of its counted samples that pass, in A and in B."""

    task_id: str
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """B against A.

    a, b: pass@1 over the `problems` that both scored. difference: b - a, with its interval. p_value: of the two-sided
    test that neither is better. gained: better in B; lost: better in A. only_a, only_b: problems without a counted
    sample in the other run. warnings: what else differs between the runs, one line each.
    """

    a_name: str
    b_name: str
    suite: str
    a: float
    b: float
    difference: float
    interval: Interval
    p_value: float
    problems: int
    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that `codemill eval compare --json` prints."""
        value = asdict(self)
        value["interval"] = {"level": LEVEL, **value["interval"]}
        return value


def compare(a: RunResults, b: RunResults) -> Comparison:
    """B against A. Raises CodemillError if they share no scored problem."""
    rates_a, rates_b = _rates(a), _rates(b)
    common = [task_id for task_id in rates_a if task_id in rates_b]
    if not common:
        raise CodemillError(f"the runs share no scored problem ({a.suite} and {b.suite}): they cannot be compared")
    of_a, of_b = ([rates[task_id].value for task_id in common] for rates in (rates_a, rates_b))
    changes = [Change(task_id, x, y) for task_id, x, y in zip(common, of_a, of_b, strict=True)]
    mean_a, mean_b = (math.fsum(values) / len(common) for values in (of_a, of_b))
    return Comparison(
        a_name=run_name(a),
        b_name=run_name(b),
        suite=a.title or a.suite,
        a=mean_a,
        b=mean_b,
        difference=mean_b - mean_a,
        interval=difference_interval(of_a, of_b, *(_draws(rates, common) for rates in (rates_a, rates_b))),
        p_value=sign_flip_test([change.b - change.a for change in changes], _grid(rates_a, rates_b, common)),
        problems=len(common),
        gained=tuple(change for change in changes if change.b > change.a),
        lost=tuple(change for change in changes if change.b < change.a),
        only_a=tuple(task_id for task_id in rates_a if task_id not in rates_b),
        only_b=tuple(task_id for task_id in rates_b if task_id not in rates_a),
        warnings=tuple(_warnings(a, b)),
    )


def run_name(results: RunResults) -> str:
    """What a person would call the run: its model, or where its answers came from."""
    configuration = results.configuration
    return configuration.model or {"gold": "gold solutions"}.get(configuration.source, configuration.source)


def pass_rates(results: RunResults) -> dict[str, float]:
    """Task id -> the share of the samples that count which pass; problems without any are missing."""
    return {task_id: rate.value for task_id, rate in _rates(results).items()}


def sign_flip_test(differences: Sequence[float], grid: int) -> float:
    """The p-value of the two-sided paired permutation test (Fisher 1935): how probable is a sum of differences at least
    as far from 0 if each could as well have had the other sign?

    The sum's whole distribution is computed, on multiples of 1/grid. Where all differences are -1, 0 or 1, as with one
    sample a problem, this is McNemar's exact test.
    """
    steps = [round(difference * grid) for difference in differences]
    sizes = [abs(step) for step in steps if step]
    reach, observed = sum(sizes), abs(sum(steps))
    if observed == 0:
        return 1.0
    chance = np.ones(1)  # of the sums -reach..reach of the sizes so far
    for size in sizes:
        spread = np.zeros(len(chance) + 2 * size)
        spread[: len(chance)] += chance
        spread[2 * size :] += chance
        chance = spread / 2.0
    return min(1.0, 2.0 * math.fsum(chance[reach + observed :]))


def difference_interval(a: Sequence[float], b: Sequence[float], draws_a: float, draws_b: float) -> Interval:
    """The interval of mean(b) - mean(a) for paired values (0 to 1), from the intervals of both and their correlation.

    Method of variance estimates recovery (Zou and Donner 2008); with one sample a problem it is Newcombe's method for
    paired proportions (1998, without continuity correction). It keeps a width where no problem changed.
    draws: as in `scores.mean_interval`.
    """
    low_a, high_a = _distances(a, draws_a)
    low_b, high_b = _distances(b, draws_b)
    difference = math.fsum(b) / len(b) - math.fsum(a) / len(a)
    shared = 2.0 * _correlation(a, b)
    below = math.sqrt(max(0.0, low_b**2 + high_a**2 - shared * low_b * high_a))
    above = math.sqrt(max(0.0, high_b**2 + low_a**2 - shared * high_b * low_a))
    return Interval(max(-1.0, difference - below), min(1.0, difference + above))


def render(comparison: Comparison) -> str:
    """The comparison as text for a terminal, warnings first."""
    c = comparison
    lines = [f"warning: {warning}" for warning in c.warnings]
    width = max(len(c.a_name), len(c.b_name), len("difference"))
    lines += [
        f"{c.suite}, pass@1 over the {c.problems} problems that both scored",
        f"  A  {c.a_name:{width}}  {100 * c.a:6.2f} %",
        f"  B  {c.b_name:{width}}  {100 * c.b:6.2f} %",
        f"     {'difference':{width}}  {100 * c.difference:+6.2f}   "
        f"{LEVEL:.0%} interval {100 * c.interval.low:+.2f} to {100 * c.interval.high:+.2f}, p = {format_p(c.p_value)}",
        *_listed("gained by B", [change.task_id for change in c.gained]),
        *_listed("lost by B", [change.task_id for change in c.lost]),
        *(_listed("scored in A only", c.only_a) if c.only_a else ()),
        *(_listed("scored in B only", c.only_b) if c.only_b else ()),
    ]
    return "\n".join(lines)


def format_p(p: float) -> str:
    """A p-value for people: three decimals, or its magnitude."""
    return f"{max(p, 1e-300):.1e}" if p < 0.001 else f"{p:.3f}"


def _listed(title: str, task_ids: Sequence[str]) -> list[str]:
    more = f", and {len(task_ids) - _SHOWN} more" if len(task_ids) > _SHOWN else ""
    return [f"{title}: {len(task_ids)}", *([f"  {', '.join(task_ids[:_SHOWN])}{more}"] if task_ids else [])]


@dataclass(frozen=True)
class _Rate:
    passed: int
    samples: int

    @property
    def value(self) -> float:
        return self.passed / self.samples


def _rates(results: RunResults) -> dict[str, _Rate]:
    counted = {problem.task_id: _counted(problem) for problem in results.problems}
    return {task_id: _Rate(found.count("ok"), len(found)) for task_id, found in counted.items() if found}


def _counted(problem: ProblemResult) -> list[str]:
    return [verdict for verdict in problem.verdicts if verdict != "harness error"]


def _draws(rates: Mapping[str, _Rate], common: Sequence[str]) -> float:
    return float(sum(rates[task_id].samples for task_id in common))


def _grid(a: Mapping[str, _Rate], b: Mapping[str, _Rate], common: Sequence[str]) -> int:
    """The denominator that all differences share; if that is too fine, one to which they are rounded."""
    shared = math.lcm(*{rates[task_id].samples for rates in (a, b) for task_id in common})
    return min(shared, _FINEST)


def _distances(values: Sequence[float], draws: float) -> tuple[float, float]:
    mean, interval = math.fsum(values) / len(values), mean_interval(values, draws)
    return mean - interval.low, interval.high - mean


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    from_a, from_b = np.subtract(a, np.mean(a)), np.subtract(b, np.mean(b))
    scale = math.sqrt(float(from_a @ from_a) * float(from_b @ from_b))
    return float(from_a @ from_b) / scale if scale > 0.0 else 0.0


def _warnings(a: RunResults, b: RunResults) -> Iterator[str]:
    for name, of_a, of_b in _settings(a, b):
        if of_a != of_b:
            yield f"{name} differs: {_shown(of_a)} in A, {_shown(of_b)} in B"


def _settings(a: RunResults, b: RunResults) -> Iterator[tuple[str, Any, Any]]:
    """What ought to be equal for a fair comparison."""
    for name in ("suite", "variant", "language", "data_sha256"):
        yield name.replace("_", " "), getattr(a, name), getattr(b, name)
    of_a, of_b = a.configuration, b.configuration
    for name in ("style", "samples_per_problem"):
        yield name.replace("_", " "), getattr(of_a, name), getattr(of_b, name)
    for group in ("sampling", "limits"):
        left, right = getattr(of_a, group), getattr(of_b, group)
        for name in sorted({*left, *right}):
            yield f"{group} {name}", left.get(name), right.get(name)


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
