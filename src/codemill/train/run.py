"""A run of training, from its configuration to the model that it leaves."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from codemill.config import ModelConfig
from codemill.data.overlong import OverlongCounts
from codemill.footprint import count_parameters
from codemill.models.placement import resolve_device
from codemill.train.config import LoopConfig
from codemill.train.log import StepReport, TrainingLog
from codemill.train.loop import Trainer
from codemill.train.memory import StepShape, step_memory
from codemill.train.parallel import Parallel, join
from codemill.train.parallel_config import ParallelConfig
from codemill.train.parallel_memory import process_memory, split_of
from codemill.train.policy import Policy
from codemill.train.trainable_share import ClassShare


@dataclass(frozen=True)
class DataPlan:
    """What one epoch reads. `tokens` are those of documents, `learned` those of them that count in the loss."""

    documents: int
    rows: int
    tokens: int
    learned: int


@dataclass(frozen=True)
class RunPlan:
    """What a run would do. data: None where it is not made yet.

    memory: bytes by purpose at the peak of a step, on each of so many `processes`.
    share: what is trained, by kinds of modules, where that is an adapter.
    left_out: of which data not all is read, and what is not.
    """

    steps: int
    rows_per_step: int
    context: int
    parameters: int
    trainable: int
    memory: Mapping[str, int]
    data: DataPlan | None = None
    share: Sequence[ClassShare] = ()
    processes: int = 1
    left_out: Mapping[str, OverlongCounts] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """In all steps; as many as the rows can hold where the data is not known."""
        rows = self.steps * self.rows_per_step
        return rows * self.context if self.data is None else round(rows * self.data.tokens / self.data.rows)


class TrainingRun(ABC):
    """One run, in a directory of its own: checkpoints/, log.jsonl, and at the end the model and curves.svg."""

    directory: Path

    @property
    @abstractmethod
    def parallel_config(self) -> ParallelConfig:
        """How its processes share the work."""

    @cached_property
    def parallel(self) -> Parallel:
        """This process's part. Raises UsageError if there are not as many as the configuration asks for."""
        return join(self.parallel_config)

    @property
    @abstractmethod
    def result(self) -> Path:
        """Where the trained model lies at the end."""

    def check_parallel(
        self, model: ModelConfig, loop: LoopConfig, has_adapter: bool = False, is_quantized: bool = False
    ) -> None:
        """Raises UsageError for a model or batches that cannot be cut for the processes."""
        config = self.parallel_config
        config.check(model, has_adapter, is_quantized)
        config.check_rows(loop.rows_per_step, loop.rows_per_micro_batch, config.num_processes)

    def memory_of(
        self, model: ModelConfig, weight_bytes: int, trainable: int, tokens: int, loop: LoopConfig
    ) -> dict[str, int]:
        """Bytes on each process at the peak of a step with AdamW; tokens: of a micro-batch."""
        shape, parallel = StepShape(tokens, loop.precision == "bfloat16", loop.recompute), self.parallel_config
        whole = step_memory(model, weight_bytes, trainable, 8.0, shape)
        if parallel.num_processes == 1:
            return whole
        has_adapter = trainable < count_parameters(model)
        split = split_of(model, parallel, parallel.num_processes)
        return process_memory(whole, weight_bytes, split, has_adapter, shape.is_bf16)

    @abstractmethod
    def plan(self) -> RunPlan:
        """What would be done, as far as that can be said without loading weights."""

    @abstractmethod
    def start(self) -> Trainer:
        """Load or make everything. Raises UsageError and CodemillError before anything is trained."""

    @property
    def left_out(self) -> Mapping[str, OverlongCounts]:
        """By the names of data that was read: what of it is not trained on."""
        return {}

    def placed(self, policy: Policy) -> Policy:
        """On a GPU, if there is one and this process is alone: `Parallel.wrap` moves what several processes train."""
        return policy.to(resolve_device("auto")) if self.parallel.num_processes == 1 else policy

    @abstractmethod
    def save(self, policy: Policy) -> None:
        """Write what was trained to `result`. All processes call it; those that are not the main one write nothing."""

    def train(self, trainer: Trainer) -> Iterator[StepReport]:
        """Train what `start` gave (or resume), one report a step, and leave the model."""
        yield from trainer.run()
        self.save(trainer.policy)
        if trainer.parallel.is_main:
            draw_curves(self.directory)
        trainer.parallel.wait()


def draw_curves(directory: Path) -> None:
    """A picture of the run's log, where matplotlib is installed."""
    from codemill.train.curves import draw, has_matplotlib

    if has_matplotlib():
        draw({directory.name: TrainingLog(directory / "log.jsonl").read()}, directory / "curves.svg")
