"""Histograms against NumPy's, replicas merged against one engine that saw everything, and snapshots under load."""

import itertools
import json
import subprocess
import sys
import threading
from typing import get_args

import numpy as np
import pytest

from codemill.engine.metrics import SECONDS, SECONDS_PER_TOKEN, EngineMetrics, Histogram, merge
from codemill.engine.outputs import FinishReason


def filled(values, bounds=SECONDS) -> Histogram:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    return histogram


def random_seconds(seed: int, size: int = 5000) -> np.ndarray:
    """Some below the first bound, some above the last."""
    return np.random.default_rng(seed).lognormal(mean=-1, sigma=3, size=size)


def play(metrics: EngineMetrics, rng: np.random.Generator, num_requests: int) -> None:
    """Random requests; seconds are multiples of 2**-10, so that their sums do not depend on the order."""
    for _ in range(num_requests):
        num_prompt_tokens, num_tokens, *eighths = (int(i) for i in rng.integers(0, 4000, 6))
        queue, first, decode, total = (i / 1024 for i in eighths)
        metrics.request_received(num_prompt_tokens)
        metrics.request_started(queue, num_prompt_tokens // 3)
        metrics.first_token(first)
        metrics.step_done(num_drafts=5, num_accepted=int(rng.integers(0, 6)), num_forced=int(rng.integers(0, 3)))
        metrics.preemptions += int(rng.integers(0, 2))
        reason = get_args(FinishReason)[rng.integers(0, 4)]
        # A power of two, so that the time per token is exact too.
        metrics.request_finished(reason, 1 + 2 ** (num_tokens % 8), total, decode)
    metrics.running, metrics.waiting = int(rng.integers(0, 9)), int(rng.integers(0, 9))
    metrics.kv_blocks_used, metrics.kv_blocks_total = int(rng.integers(0, 100)), 100
    metrics.state_slots_used, metrics.state_slots_total = int(rng.integers(0, 10)), 10


@pytest.mark.parametrize("bounds", [SECONDS, SECONDS_PER_TOKEN])
def test_buckets_are_numpys_counts_accumulated(bounds):
    values = random_seconds(0)
    histogram = filled(values, bounds)
    # NumPy's bins include their lower edge and ours the upper one: the same for values that are on no edge.
    counts, _ = np.histogram(values, bins=[0, *bounds, np.inf])
    assert counts.all(), "every bucket is to be tried"
    assert list(histogram.buckets.values()) == np.cumsum(counts).tolist()
    assert [float(bound) for bound in histogram.buckets] == [*bounds, np.inf]
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(values.sum())


def test_a_value_on_a_bound_belongs_to_that_bucket():
    buckets = filled(SECONDS).buckets
    assert buckets == {str(bound): i + 1 for i, bound in enumerate(SECONDS)} | {"+Inf": len(SECONDS)}


@pytest.mark.parametrize("q", [0.01, 0.25, 0.5, 0.9, 0.99])
def test_a_quantile_is_in_the_bucket_of_numpys(q):
    values = random_seconds(1)
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    lower, upper = next(pair for pair in itertools.pairwise([0.0, *SECONDS]) if exact <= pair[1])
    assert lower <= filled(values).quantile(q) <= upper


def test_quantiles_are_exact_where_values_are_even():
    values = np.linspace(0, 10, 20_001)[1:]
    histogram = filled(values, bounds=[float(i) for i in range(1, 11)])
    for q in np.linspace(0, 1, 41):
        assert histogram.quantile(q) == pytest.approx(np.quantile(values, q), abs=1e-3)


def test_quantiles_at_the_ends():
    assert Histogram(SECONDS).quantile(0.5) == 0
    assert filled([10_000.0]).quantile(0.5) == SECONDS[-1]
    assert filled([0.0, -1e-9]).quantile(1) == SECONDS[0]
    assert filled([0.3, 0.4]).quantile(0) == 0.25


def test_merged_snapshots_are_those_of_one_engine_that_saw_everything():
    together, replicas = EngineMetrics(), [EngineMetrics() for _ in range(3)]
    for number, replica in enumerate(replicas):
        play(replica, np.random.default_rng(number), 200 * (number + 1))
        play(together, np.random.default_rng(number), 200 * (number + 1))
    for gauge in ("running", "waiting", *(f"{k}_{e}" for k in ("kv_blocks", "state_slots") for e in ("used", "total"))):
        setattr(together, gauge, sum(getattr(replica, gauge) for replica in replicas))
    through_json = [json.loads(json.dumps(replica.snapshot())) for replica in replicas]
    assert merge(through_json) == together.snapshot()
    assert merge([]) == EngineMetrics().snapshot()
    assert merge([merge(through_json[:2]), through_json[2]]) == together.snapshot()


def test_a_merge_of_other_buckets_is_refused():
    snapshot = EngineMetrics().snapshot()
    snapshot["ttft_seconds"] = Histogram((1.0, 2.0)).snapshot()
    with pytest.raises(ValueError, match="different bounds"):
        merge([snapshot])


def test_the_life_of_requests():
    metrics = EngineMetrics()
    metrics.request_received(100)
    metrics.request_received(60)
    metrics.request_started(0.2, cached_tokens=64)
    metrics.first_token(0.7)
    metrics.step_done(num_drafts=8, num_accepted=6, num_forced=2)
    metrics.request_finished("stop", num_output_tokens=11, total_seconds=2.7, decode_seconds=2.0)
    metrics.request_finished("length", num_output_tokens=1, total_seconds=0.0, decode_seconds=0.0)
    metrics.request_finished("abort", num_output_tokens=0, total_seconds=0.5, decode_seconds=0.0)
    metrics.kv_blocks_used, metrics.kv_blocks_total = 3, 12
    snapshot = metrics.snapshot()
    assert snapshot["requests_received"] == 2
    assert snapshot["requests_finished"] == {"stop": 1, "length": 1, "abort": 1, "error": 0}
    assert (snapshot["prompt_tokens"], snapshot["cached_prompt_tokens"]) == (160, 64)
    assert (snapshot["generated_tokens"], snapshot["steps"], snapshot["forced_tokens"]) == (12, 1, 2)
    assert (snapshot["cache_hit_rate"], snapshot["acceptance_rate"], snapshot["kv_use"]) == (0.4, 0.75, 0.25)
    assert snapshot["tpot_seconds"]["count"] == 1
    assert snapshot["tpot_seconds"]["total"] == pytest.approx(0.2)
    assert snapshot["request_seconds"]["total"] == pytest.approx(3.2)
    assert (snapshot["queue_seconds"]["total"], snapshot["ttft_seconds"]["total"]) == (0.2, 0.7)


def test_rates_of_an_engine_that_did_nothing_are_zero():
    snapshot = EngineMetrics().snapshot()
    assert (snapshot["cache_hit_rate"], snapshot["acceptance_rate"], snapshot["kv_use"]) == (0, 0, 0)


def test_a_snapshot_is_strict_json_and_does_not_change_afterwards():
    metrics = EngineMetrics()
    play(metrics, np.random.default_rng(7), 100)
    snapshot = metrics.snapshot()
    text = json.dumps(snapshot, allow_nan=False)
    play(metrics, np.random.default_rng(8), 10)
    assert json.loads(text) == snapshot


def test_snapshots_from_another_thread_are_whole():
    metrics, done = EngineMetrics(), threading.Event()

    def work() -> None:
        play(metrics, np.random.default_rng(0), 5000)
        done.set()

    writer = threading.Thread(target=work)
    writer.start()
    previous = 0
    while not done.is_set():
        snapshot = metrics.snapshot()
        for name in ("queue_seconds", "ttft_seconds", "tpot_seconds", "request_seconds"):
            counts = list(snapshot[name]["buckets"].values())
            assert counts == sorted(counts)
            assert counts[-1] == snapshot[name]["count"]
        assert previous <= snapshot["generated_tokens"]
        previous = snapshot["generated_tokens"]
    writer.join()
    assert metrics.snapshot()["requests_received"] == 5000


def test_no_torch_and_no_prometheus():
    code = "import sys, codemill.engine.metrics; print({'torch', 'prometheus_client'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
