"""What `/metrics` says, in Prometheus' text format. Units are seconds and bytes; names begin with `codemill_`."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from codemill.server.http_metrics import HttpCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Snapshots = Mapping[str, Mapping[str, Any]]

COUNTERS = {
    "requests_received": "Samples that were asked for.",
    "prompt_tokens": "Tokens of all prompts.",
    "cached_prompt_tokens": "Tokens of prompts that the prefix cache had.",
    "generated_tokens": "Tokens of all answers.",
    "draft_tokens": "Tokens that were guessed and checked.",
    "accepted_tokens": "Guessed tokens that were right.",
    "forced_tokens": "Tokens that a grammar left no choice about.",
    "steps": "Passes of the network.",
    "preemptions": "Samples that lost their KV cache to others and are computed again.",
}
GAUGES = {  # name here -> name in the snapshot, what it is
    "requests_running": ("running", "Samples that are being computed."),
    "requests_waiting": ("waiting", "Samples in the queue."),
    "kv_blocks_used": ("kv_blocks_used", "Blocks of the KV cache in use."),
    "kv_blocks": ("kv_blocks_total", "Blocks that the KV cache has."),
    "kv_use_ratio": ("kv_use", "Part of the KV cache in use."),
    "state_slots_used": ("state_slots_used", "Slots for recurrent states in use."),
    "state_slots": ("state_slots_total", "Slots for recurrent states."),
}
HISTOGRAMS = {
    "queue_seconds": "Seconds from a request's arrival until its prompt is begun.",
    "ttft_seconds": "Seconds from a request's arrival to its first token.",
    "tpot_seconds": "Seconds per token after the first.",
    "request_seconds": "Seconds from a request's arrival to its end.",
}


class MetricsPage:
    """The page, and the counts of HTTP requests that are on it."""

    def __init__(self) -> None:
        self.http = HttpCounts()
        self._process = CollectorRegistry()
        ProcessCollector(namespace="codemill", registry=self._process)

    def text(self, snapshots: Snapshots) -> bytes:
        """snapshots: `EngineMetrics.snapshot` by the model's name."""
        return generate_latest(_Families(snapshots, self.http)) + generate_latest(self._process)


class _Families(Collector):
    def __init__(self, snapshots: Snapshots, http: HttpCounts) -> None:
        self._snapshots = snapshots
        self._http = http

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._gauges()
        yield from self._histograms()
        yield from _http_families(self._http)

    def _counters(self) -> Iterator[Metric]:
        for name, says in COUNTERS.items():
            counter = CounterMetricFamily(f"codemill_{name}", says, labels=["model_name"])
            for model, snapshot in self._snapshots.items():
                counter.add_metric([model], snapshot[name])
            yield counter
        finished = CounterMetricFamily(
            "codemill_requests_finished", "Samples that ended, by why.", labels=["model_name", "finish_reason"]
        )
        for model, snapshot in self._snapshots.items():
            for reason, count in snapshot["requests_finished"].items():
                finished.add_metric([model, reason], count)
        yield finished

    def _gauges(self) -> Iterator[Metric]:
        for name, (source, says) in GAUGES.items():
            gauge = GaugeMetricFamily(f"codemill_{name}", says, labels=["model_name"])
            for model, snapshot in self._snapshots.items():
                gauge.add_metric([model], snapshot[source])
            yield gauge

    def _histograms(self) -> Iterator[Metric]:
        for name, says in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"codemill_{name}", says, labels=["model_name"])
            for model, snapshot in self._snapshots.items():
                histogram.add_metric([model], *_buckets(snapshot[name]))
            yield histogram


def _http_families(http: HttpCounts) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "codemill_http_requests", "HTTP requests that were answered.", labels=["method", "path", "status"]
    )
    for (method, path, status), count in list(http.requests.items()):
        requests.add_metric([method, path, str(status)], count)
    yield requests
    seconds = HistogramMetricFamily(
        "codemill_http_request_seconds", "Seconds until an HTTP request's answer has ended.", labels=["path"]
    )
    for path, histogram in list(http.seconds.items()):
        seconds.add_metric([path], *_buckets(histogram.snapshot()))
    yield seconds
    yield GaugeMetricFamily("codemill_http_streams_open", "Answers that are being streamed.", value=http.open_streams)


def _buckets(histogram: Mapping[str, Any]) -> tuple[list[tuple[str, float]], float]:
    """Buckets and sum as Prometheus' client takes them."""
    return list(histogram["buckets"].items()), histogram["total"]
