"""Runs a bench: loads the engines, lets them take turns, and keeps what it has at any time."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codemill.bench.engines import OURS, PEERS, EngineOptions
from codemill.bench.figures import Contestant, Figure, FigureMaker
from codemill.bench.machine import Machine, measure_machine
from codemill.bench.process import EngineFailure, Worker
from codemill.bench.roofline import HeldWeights, Roofline, WeightFormat
from codemill.bench.turns import Note, Turns
from codemill.bench.workload import Workload
from codemill.config import ModelConfig
from codemill.errors import UsageError
from codemill.footprint import available_memory
from codemill.spec import resolve

# How `LLM(quantization=)` packs weights unless it is told otherwise.
QUANTIZED = {"int8": WeightFormat(8, 32), "int4": WeightFormat(4, 32)}
_DTYPE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32}
_SMALL = 100_000_000  # bytes of weights below which the machine is measured quickly
_MEMORY_RATIO = 1.3  # of an engine's memory to the weights, for large ones


@dataclass(frozen=True)
class BenchRequest:
    """What to measure: a model spec, how to run it, the workload, and against which peers of which Python.

    one_at_a_time: whether each engine has the machine's memory for itself and so no turns are taken; None to decide by
    the memory that there is.
    """

    spec: str | None = None
    quantization: str | None = None
    dtype: str = "auto"
    num_threads: int = 1
    workload: Workload = field(default_factory=Workload)
    rounds: int = 5
    peers: Sequence[str] = ()
    peers_python: str | None = None
    folder: Path = Path("codemill-bench")
    one_at_a_time: bool | None = None

    def __post_init__(self) -> None:
        if self.quantization not in (None, *QUANTIZED):
            raise UsageError(f"--quantization {self.quantization}: choose {' or '.join(QUANTIZED)}")
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds}: must be at least 1")
        unknown = [name for name in self.peers if name not in PEERS]
        if unknown:
            raise UsageError(f"--compare {unknown[0]}: unknown peer; choose among {', '.join(PEERS)}")


class Bench:
    """One bench. `figures` has what was measured so far, also after an interrupted `run`."""

    def __init__(self, request: BenchRequest) -> None:
        """Raises UsageError or CodemillError if there is no such model."""
        source = resolve(request.spec)
        self.name = source.name
        self.is_random = source.kind == "random"
        self.config = source.load_config()
        dtype = self.config.dtype or "bfloat16" if request.dtype == "auto" else request.dtype
        if dtype not in _DTYPE_BITS:
            raise UsageError(f"--dtype {dtype}: choose auto or {', '.join(_DTYPE_BITS)}")
        self.request = replace(request, dtype=dtype)
        self.workload = request.workload.within(self.config.max_position_embeddings)
        self.roofline = Roofline(self.config, weight_format(dtype, request.quantization))
        self.contestants = {name: Contestant() for name in (OURS, *request.peers)}
        self.machine: Machine | None = None
        self.held_bits: int | None = None  # of most weights, where what is loaded is quantised
        self.form = request.quantization or dtype
        together = _MEMORY_RATIO * len(self.contestants) * self.roofline.weight_bytes
        self.one_at_a_time = request.one_at_a_time
        if self.one_at_a_time is None:
            self.one_at_a_time = together > available_memory()

    def run(self, note: Note) -> None:
        """Measure it all; `note` is told what is going on."""
        groups = [[name] for name in self.contestants] if self.one_at_a_time else [list(self.contestants)]
        for names in groups:
            with ExitStack() as stack:
                workers = {}
                for name in names:
                    worker = self._start(name, note)
                    if worker is not None:
                        workers[name] = stack.enter_context(worker)
                if self.machine is None:
                    self._measure_machine(note)
                self._run_rounds(Turns(workers, self.contestants, self.workload, note), note)

    def _run_rounds(self, turns: Turns, note: Note) -> None:
        turns.warm_up()
        for number in range(1, self.request.rounds + 1):
            turns.run_round(number)

    def _start(self, name: str, note: Note) -> Worker | None:
        """None for a peer that cannot be started, though it is installed."""
        note(f"loading {self.name} in {name}")
        python = None if name == OURS else self.request.peers_python
        try:
            worker = Worker(name, self._options(name), python)
        except EngineFailure as error:
            if name == OURS:
                raise
            self.contestants[name].failures.append(str(error))
            return None
        if name == OURS:  # what is in memory is what counts, also where a checkpoint was quantised already
            held, weights = HeldWeights(**worker.weights["held"]), WeightFormat(**worker.weights["format"])
            self.roofline = Roofline(self.config, weights, held)
            if worker.weights["quantization"] is not None:
                self.held_bits, self.form = (
                    worker.weights["quantization"]["bits"],
                    worker.weights["quantization"]["name"],
                )
        self.contestants[name] = Contestant(worker.load_seconds, worker.empty_memory, worker.peak_memory)
        return worker

    def _options(self, name: str) -> EngineOptions:
        quantization = self.request.quantization
        if name != OURS and self.held_bits is not None:  # peers' weights have as many bits as ours, which start first
            quantization = f"int{self.held_bits}"
        self.request.folder.mkdir(parents=True, exist_ok=True)
        return EngineOptions(
            model=self.request.spec,
            config=_shape(self.config),
            quantization=quantization,
            dtype=self.request.dtype,
            num_threads=self.request.num_threads,
            max_tokens=self.workload.max_tokens,
            max_batch=max(self.workload.batches),
            folder=str(self.request.folder.resolve()),
        )

    def _measure_machine(self, note: Note) -> None:
        note("measuring the machine")
        weights = self.roofline.weight_bytes
        sizes = (round(self.roofline.touched_weight_bytes(1)),)
        self.machine = measure_machine(self.request.num_threads, sizes, quick=weights < _SMALL)

    def figures(self) -> list[Figure]:
        if self.machine is None:
            return []
        maker = FigureMaker(self.workload, self.roofline, self.machine, self.contestants, not self.is_random)
        return maker.figures()

    @property
    def failures(self) -> dict[str, list[str]]:
        """What went wrong in peers, a line each."""
        return {name: list(each.failures) for name, each in self.contestants.items() if each.failures}

    @property
    def left_out(self) -> list[str]:
        """What was asked for but does not fit the model's context."""
        asked, done = self.request.workload, self.workload
        prefill = (f"prefill {length}" for length in asked.prompt_lengths if length not in done.prompt_lengths)
        decode = (f"decode after {depth}" for depth in asked.decode_after if depth not in done.decode_after)
        return [*prefill, *decode]

    def to_json(self) -> dict[str, Any]:
        request = self.request
        return {
            "machine": None if self.machine is None else self.machine.to_json(),
            "model": {
                "spec": self.name,
                "dtype": request.dtype,
                "quantization": self.form if self.held_bits is not None else request.quantization,
                "weight_bytes": self.roofline.weight_bytes,
                "kv_bytes_per_token": self.roofline.kv_bytes_per_token,
                "state_bytes": self.roofline.state_bytes,
            },
            "rounds": max(map(len, self.contestants[OURS].timings.values()), default=0),
            "in_turns": not self.one_at_a_time,
            "decode_tokens": self.workload.decode_tokens,
            "failures": self.failures,
            "figures": [figure.to_json() for figure in self.figures()],
        }


def weight_format(dtype: str, quantization: str | None) -> WeightFormat:
    """How weights of that precision lie in memory."""
    bits = _DTYPE_BITS[dtype]
    if quantization is None:
        return WeightFormat(bits, kept_bits=bits)
    return replace(QUANTIZED[quantization], kept_bits=bits)


def _shape(config: ModelConfig) -> dict[str, Any]:
    """The configuration without what says how its weights are stored, for peers to make weights of their own."""
    return {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
