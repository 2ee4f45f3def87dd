"""From timings to figures: what was reached, what the machine would allow, and how the peers did."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codemill.bench.engines import OURS, Timing
from codemill.bench.machine import Machine
from codemill.bench.roofline import Roofline
from codemill.bench.workload import Measurement, Workload


@dataclass(frozen=True)
class PeerFigure:
    """A peer's value, with the setting that was best for it. ratio: above 1 where we are better."""

    value: float
    ratio: float
    setting: str


@dataclass(frozen=True)
class Figure:
    """One figure of ours. roofline: the best that the machine's measured limits allow, in the same unit; None where
    there is no such thing. fraction: how much of it was reached, 0 to 1, also where less is better.

    num_bytes, num_operations: of a step of decode or of the whole prompt; these are what the roofline follows from.
    """

    name: str
    value: float
    unit: str
    roofline: float | None = None
    less_is_better: bool = False
    num_bytes: float | None = None
    num_operations: float | None = None
    peers: Mapping[str, PeerFigure] = field(default_factory=dict)

    @property
    def fraction(self) -> float | None:
        if self.roofline is None or not self.value:
            return None
        return self.roofline / self.value if self.less_is_better else self.value / self.roofline

    def to_json(self) -> dict[str, Any]:
        figure: dict[str, Any] = {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "roofline": self.roofline,
            "fraction": self.fraction,
        }
        if self.num_bytes is not None:
            figure |= {"bytes": self.num_bytes, "operations": self.num_operations}
        if self.peers:
            figure["peers"] = {
                name: {"value": peer.value, "ratio": peer.ratio, "setting": peer.setting}
                for name, peer in self.peers.items()
            }
        return figure


@dataclass
class Contestant:
    """What was measured of one engine: by run, the timings of all rounds, and the setting they were made with; and
    what went wrong, a line each."""

    load_seconds: float = 0.0
    empty_memory: int = 0  # resident before it had a model, in bytes
    load_peak: int = 0  # the most that was resident while it loaded one
    run_peak: int = 0  # the same since it was warm
    settings: dict[Measurement, str] = field(default_factory=dict)
    timings: dict[Measurement, list[Timing]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def peak_memory(self) -> int:
        return max(self.load_peak, self.run_peak)

    def seconds(self, measurement: Measurement, what: str) -> list[float]:
        return [getattr(timing, what) for timing in self.timings.get(measurement, [])]


@dataclass(frozen=True)
class FigureMaker:
    """Makes the figures of a workload from what was measured so far."""

    workload: Workload
    roofline: Roofline
    machine: Machine
    contestants: Mapping[str, Contestant]
    loads: bool = True  # whether there was something to load

    def figures(self) -> list[Figure]:
        """All figures for which there is at least one measurement."""
        found = [*self._prefill(), *self._decode(), *self._memory()]
        return [figure for figure in found if figure is not None]

    def _prefill(self) -> list[Figure | None]:
        figures: list[Figure | None] = []
        for length in self.workload.prompt_lengths:
            measurement = self.workload.prefill(length)
            counts = self.roofline.prefill_bytes(length), self.roofline.prefill_operations(length)
            figures.append(self._rate(f"prefill {length}", measurement, "first_seconds", length, 1, counts))
        if self.workload.prompt_lengths:
            length = min(self.workload.prompt_lengths)
            figures.append(self._first_token(length, self.workload.prefill(length)))
        return figures

    def _decode(self) -> list[Figure | None]:
        figures = []
        for batch in self.workload.batches:
            for depth in self.workload.depths(batch):
                measurement = self.workload.decode(depth, batch)
                name = f"decode after {depth}" + (f", batch {batch}" if batch > 1 else "")
                at = batch, measurement.mean_depth
                counts = self.roofline.decode_bytes(*at), self.roofline.decode_operations(*at)
                steps = measurement.num_steps
                figures.append(self._rate(name, measurement, "decode_seconds", steps * batch, steps, counts))
        return figures

    def _rate(
        self,
        name: str,
        measurement: Measurement,
        what: str,
        num_tokens: int,
        num_steps: int,
        counts: tuple[float, float],
    ) -> Figure | None:
        """Tokens per second; `counts` are bytes and operations of each of `num_steps` steps."""
        ours = self.contestants[OURS].seconds(measurement, what)
        if not ours:
            return None
        least = num_steps * self._least_seconds(counts)
        peers = self._peers(measurement, what, num_tokens)
        value = num_tokens / statistics.median(ours)
        return Figure(name, value, "tokens/s", num_tokens / least, False, *counts, peers)

    def _first_token(self, length: int, measurement: Measurement) -> Figure | None:
        ours = self.contestants[OURS].seconds(measurement, "first_seconds")
        if not ours:
            return None
        counts = self.roofline.prefill_bytes(length), self.roofline.prefill_operations(length)
        peers = self._peers(measurement, "first_seconds", None)
        name, value = f"time to first token, {length}", statistics.median(ours)
        return Figure(name, value, "s", self._least_seconds(counts), True, *counts, peers)

    def _least_seconds(self, counts: tuple[float, float]) -> float:
        return self.machine.seconds(*counts, self.roofline.weights.instruction)

    def _peers(self, measurement: Measurement, what: str, num_tokens: int | None) -> dict[str, PeerFigure]:
        """The peers' values: tokens/s of `num_tokens`, or seconds. Ratios are medians of those of single rounds."""
        ours, peers = self.contestants[OURS].seconds(measurement, what), {}
        for name, contestant in self.contestants.items():
            theirs = contestant.seconds(measurement, what)
            if name == OURS or not theirs:
                continue
            ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=False))
            seconds = statistics.median(theirs)
            value = seconds if num_tokens is None else num_tokens / seconds
            peers[name] = PeerFigure(value, ratio, contestant.settings[measurement])
        return peers

    def _memory(self) -> list[Figure | None]:
        ours, weights = self.contestants[OURS], self.roofline.weight_bytes
        figures: list[Figure | None] = []
        if self.loads:
            figures.append(Figure("load", ours.load_seconds, "s", None, True, peers=self._whole("load_seconds")))
        if ours.peak_memory and any(ours.timings.values()):
            cache, own = self._cache_bytes(), ours.peak_memory - ours.empty_memory
            peak, later = self._whole("peak_memory"), self._whole("run_peak")
            figures += [
                Figure("peak memory after loading", ours.run_peak, "bytes", weights + cache, True, peers=later),
                Figure("peak memory", ours.peak_memory, "bytes", weights + cache, True, peers=peak),
                Figure("of that: weights", weights, "bytes"),
                Figure("of that: KV cache and states", cache, "bytes"),
                Figure("of that: Python and PyTorch", ours.empty_memory, "bytes"),
                Figure("of that: buffers and the rest", own - weights - cache, "bytes"),
                Figure("peak memory over weights", ours.peak_memory / weights, "ratio", 1.0, True),
                Figure("peak memory over weights and cache", ours.peak_memory / (weights + cache), "ratio", 1.0, True),
                Figure("the same without Python and PyTorch", own / (weights + cache), "ratio", 1.0, True),
            ]
        return figures

    def _cache_bytes(self) -> int:
        """Keys, values and states of the run that has the most of them."""
        token, state = self.roofline.kv_bytes_per_token, self.roofline.state_bytes
        runs = (run for run, timings in self.contestants[OURS].timings.items() if timings)
        return max(run.batch * (run.num_tokens * token + state) for run in runs)

    def _whole(self, what: str) -> dict[str, PeerFigure]:
        """The peers' values of something that does not belong to a run; less is better."""
        ours = getattr(self.contestants[OURS], what)
        found = {name: getattr(peer, what) for name, peer in self.contestants.items() if name != OURS and peer.timings}
        return {name: PeerFigure(value, value / ours, "") for name, value in found.items() if value and ours}


def best_setting(measurement: Measurement, trials: Mapping[str, Timing]) -> str:
    """The setting that was fastest at what the run is for: its decode, or without one its first token."""

    def cost(setting: str) -> float:
        timing = trials[setting]
        return timing.decode_seconds if measurement.num_steps else timing.first_seconds

    return min(trials, key=cost)


def names_in_order(figures: Sequence[Figure]) -> list[str]:
    """The peers that any of the figures has."""
    return list(dict.fromkeys(name for figure in figures for name in figure.peers))
