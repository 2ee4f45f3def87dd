"""Counts and times of an engine, cheap enough to take at every step. No torch here."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, get_args

from codemill.engine.outputs import FinishReason

# Upper bounds of the buckets, in seconds.
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 360.0, 600.0),
)
SECONDS_PER_TOKEN = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025),
    *(0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Histogram:
    """How often a value fell between fixed bounds, as Prometheus counts: a bucket includes its upper bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` ascend; a last bucket without a bound comes after them."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self._counts)

    @property
    def buckets(self) -> dict[str, int]:
        """Upper bound -> how many values are at most that, ascending; the last bound is "+Inf"."""
        return dict(zip(self._labels, accumulate(self._counts), strict=True))

    @property
    def _labels(self) -> list[str]:
        return [*map(str, self._bounds), "+Inf"]

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def quantile(self, q: float) -> float:
        """The value that a fraction `q` of the observed ones is at most; 0 if there are none.

        As Prometheus' `histogram_quantile`: linear inside a bucket, of which the first begins at 0; values above the
        last bound count as that bound.
        """
        rank, below, lower = q * self.count, 0, 0.0
        for bound, count in zip(self._bounds, self._counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * (rank - below) / count
            below, lower = below + count, bound
        return lower if self.count else 0.0

    def snapshot(self) -> dict[str, Any]:
        """Plain values: count, total, buckets, and the quantiles p50, p90 and p99."""
        frozen = Histogram(self._bounds)
        frozen._counts, frozen.total = list(self._counts), self.total
        quantiles = {name: frozen.quantile(q) for name, q in QUANTILES.items()}
        return {"count": frozen.count, "total": frozen.total, "buckets": frozen.buckets, **quantiles}

    def add(self, snapshot: Mapping[str, Any]) -> None:
        """Count what another histogram with the same bounds counted."""
        if list(snapshot["buckets"]) != self._labels:
            raise ValueError("histograms with different bounds cannot be added")
        below = 0
        for index, cumulative in enumerate(snapshot["buckets"].values()):
            self._counts[index] += cumulative - below
            below = cumulative
        self.total += snapshot["total"]


def _seconds() -> Histogram:
    return Histogram(SECONDS)


def _finish_reasons() -> dict[str, int]:
    return dict.fromkeys(get_args(FinishReason), 0)


@dataclass(eq=False)
class EngineMetrics:
    """Counters and histograms since the engine started, then gauges, which the engine sets. Times in seconds.

    A sequence counts as a request. prompt_tokens: of all requests received; cached_prompt_tokens: those of them that
    the prefix cache had. draft_tokens: guessed and checked; accepted_tokens: those of them that were right.
    forced_tokens: output that a grammar left no choice about. tpot_seconds: per token after the first, of requests with
    at least two. request_seconds: from arrival to the end, whatever ended it.

    One thread at a time calls the methods; `snapshot` may be called from any thread.
    """

    requests_received: int = 0
    requests_finished: dict[str, int] = field(default_factory=_finish_reasons)
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    forced_tokens: int = 0
    queue_seconds: Histogram = field(default_factory=_seconds)
    ttft_seconds: Histogram = field(default_factory=_seconds)
    tpot_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_PER_TOKEN))
    request_seconds: Histogram = field(default_factory=_seconds)
    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    state_slots_used: int = 0
    state_slots_total: int = 0

    @property
    def cache_hit_rate(self) -> float:
        """Fraction of the prompt tokens that the prefix cache had."""
        return _fraction(self.cached_prompt_tokens, self.prompt_tokens)

    @property
    def acceptance_rate(self) -> float:
        """Fraction of the draft tokens that were right."""
        return _fraction(self.accepted_tokens, self.draft_tokens)

    @property
    def kv_use(self) -> float:
        """Fraction of the KV blocks in use."""
        return _fraction(self.kv_blocks_used, self.kv_blocks_total)

    def request_received(self, num_prompt_tokens: int) -> None:
        self.requests_received += 1
        self.prompt_tokens += num_prompt_tokens

    def request_started(self, queue_seconds: float, cached_tokens: int) -> None:
        """The request left the queue for the first time, and `cached_tokens` of its prompt were there already."""
        self.queue_seconds.observe(queue_seconds)
        self.cached_prompt_tokens += cached_tokens

    def first_token(self, seconds: float) -> None:
        """A request has its first token, so long after it arrived (TTFT)."""
        self.ttft_seconds.observe(seconds)

    def request_finished(
        self, reason: FinishReason, num_output_tokens: int, total_seconds: float, decode_seconds: float
    ) -> None:
        """`total_seconds` since the request arrived, `decode_seconds` since its first token."""
        self.requests_finished[reason] += 1
        self.generated_tokens += num_output_tokens
        self.request_seconds.observe(total_seconds)
        if num_output_tokens > 1:
            self.tpot_seconds.observe(decode_seconds / (num_output_tokens - 1))

    def step_done(self, num_drafts: int = 0, num_accepted: int = 0, num_forced: int = 0) -> None:
        """A step checked so many drafts, so many were right, and took so many tokens that a grammar forced."""
        self.steps += 1
        self.draft_tokens += num_drafts
        self.accepted_tokens += num_accepted
        self.forced_tokens += num_forced

    def snapshot(self) -> dict[str, Any]:
        """All metrics by name as plain values that JSON can hold, and the three rates."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        rates = {name: getattr(self, name) for name in ("cache_hit_rate", "acceptance_rate", "kv_use")}
        return {name: _plain(value) for name, value in values.items()} | rates

    def add(self, snapshot: Mapping[str, Any]) -> None:
        """Count what another engine counted; gauges add up too."""
        for each in fields(self):
            value, other = getattr(self, each.name), snapshot[each.name]
            if isinstance(value, Histogram):
                value.add(other)
            elif isinstance(value, dict):
                value.update({reason: value[reason] + count for reason, count in other.items()})
            else:
                setattr(self, each.name, value + other)


def merge(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The snapshot of several replicas together: everything adds up, and rates and quantiles are of the sum."""
    merged = EngineMetrics()
    for snapshot in snapshots:
        merged.add(snapshot)
    return merged.snapshot()


def _fraction(part: int, whole: int) -> float:
    """0 where there is nothing yet."""
    return part / whole if whole else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return value.snapshot()
    return dict(value) if isinstance(value, dict) else value
