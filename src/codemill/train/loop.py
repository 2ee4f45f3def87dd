"""The training loop: packed rows in, a trained model out. Shapes: R rows, T tokens, D model, N learned tokens."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codemill.data.packing import PackedRows
from codemill.errors import CodemillError
from codemill.models import CausalLM
from codemill.train.checkpoint import Checkpoints
from codemill.train.config import LoopConfig, OptimizerConfig
from codemill.train.interruption import Interruption
from codemill.train.losses import weighted_cross_entropy
from codemill.train.optimizer import build_optimizers, clip_gradients, learning_rate_scale, set_learning_rates


@dataclass(frozen=True)
class StepReport:
    """One step: `loss` and `validation` in nats per weighted token; `validation` only where it was measured."""

    step: int
    loss: float
    grad_norm: float
    learning_rate_scale: float
    tokens_per_second: float
    validation: dict[str, float] | None = None


class Trainer:
    """Trains `model` on `rows`; every step is a function of the checkpoint before it and the seed."""

    def __init__(
        self,
        model: CausalLM,
        rows: PackedRows,
        validation: dict[str, PackedRows],
        loop: LoopConfig,
        optimizer: OptimizerConfig,
        directory: Path,
    ) -> None:
        self.model, self.rows, self.validation = model, rows, validation
        self.loop, self.optimizer_config, self.directory = loop, optimizer, directory
        self.optimizers = build_optimizers(model, optimizer)
        self.checkpoints = Checkpoints(directory / "checkpoints", loop.keep_checkpoints)

    def run(self) -> Iterator[StepReport]:
        """Train from the newest checkpoint to the last step, one report a step.

        Ctrl-C ends the run after the step in progress, with a checkpoint and KeyboardInterrupt. Raises CodemillError
        where the loss or its gradient is no longer a number; the checkpoint before stays.
        """
        start = self.checkpoints.restore(self.model, self.optimizers)
        log = TrainingLog(self.directory / "log.jsonl")
        log.truncate(start)
        with Interruption() as interruption:
            for step in range(start, self.loop.steps):
                report = self._step(step)
                log.append(report)
                done = step + 1
                if done % self.loop.checkpoint_every == 0 or done == self.loop.steps or interruption.requested:
                    self.checkpoints.save(done, self.model, self.optimizers)
                interruption.check()
                yield report

    def _step(self, step: int) -> StepReport:
        began = time.perf_counter()
        size = self.loop.rows_per_step
        indices = row_order(len(self.rows), self.loop.seed, step * size, size)
        loss = self._accumulate(indices)
        norm = clip_gradients(self.model, self.optimizer_config.max_grad_norm)
        for name, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise CodemillError(f"the {name} became {value} at step {step + 1}: lower optimizer.lr and matrix_lr")
        scale = learning_rate_scale(step, self.optimizer_config, self.loop.steps)
        set_learning_rates(self.optimizers, scale)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rate = size * self.rows.input_ids.shape[1] / (time.perf_counter() - began)
        return StepReport(step + 1, loss, norm, scale, rate, self._validate(step + 1))

    def _accumulate(self, indices: Sequence[int]) -> float:
        """Gradients of the mean loss over all `indices`, in micro-batches; returns that loss."""
        total_weight = float(self.rows.loss_weights[indices].sum())
        total = 0.0
        for start in range(0, len(indices), self.loop.rows_per_micro_batch):
            with self._autocast():
                loss = summed_loss(self.model, self.rows, indices[start : start + self.loop.rows_per_micro_batch])
            (loss / total_weight).backward()
            total += loss.item() / total_weight
        return total

    def _validate(self, done: int) -> dict[str, float] | None:
        if done % self.loop.evaluate_every and done != self.loop.steps:
            return None
        with self._autocast():
            return {name: mean_loss(self.model, rows) for name, rows in self.validation.items() if len(rows)}

    def _autocast(self) -> torch.autocast:
        bf16 = self.loop.precision == "bfloat16"
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=bf16)


def summed_loss(model: CausalLM, rows: PackedRows, indices: Sequence[int]) -> Tensor:
    """Weighted cross entropy summed over the rows; logits are made for learned tokens only."""
    input_ids, position_ids, document_ids = (
        torch.from_numpy(array[indices].astype(np.int64))
        for array in (rows.input_ids, rows.position_ids, rows.document_ids)
    )
    weights = torch.from_numpy(rows.loss_weights[indices])[:, 1:]
    hidden = model.hidden_states(input_ids, position_ids=position_ids, document_ids=document_ids)
    learned = weights > 0  # [R, T - 1]
    logits = model.logits(hidden[:, :-1][learned])  # [N, vocab]
    return weighted_cross_entropy(logits, input_ids[:, 1:][learned], weights[learned])


@torch.no_grad()
def mean_loss(model: CausalLM, rows: PackedRows, rows_per_batch: int = 8) -> float:
    """Loss over all rows, in nats per weighted token."""
    batches = [range(start, len(rows))[:rows_per_batch] for start in range(0, len(rows), rows_per_batch)]
    return sum(summed_loss(model, rows, batch).item() for batch in batches) / float(rows.loss_weights.sum())


def row_order(num_rows: int, seed: int, start: int, count: int) -> list[int]:
    """Row indices of draws start..start+count: a new permutation each epoch, all a function of the seed."""
    draws = (divmod(draw, num_rows) for draw in range(start, start + count))
    return [int(_permutation(num_rows, seed, epoch)[place]) for epoch, place in draws]


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


@dataclass(frozen=True)
class TrainingLog:
    """One JSON object a step, appended as the run goes."""

    path: Path

    def append(self, report: StepReport) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")

    def read(self) -> list[StepReport]:
        """All steps so far. A last line that a kill cut short is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [StepReport(**json.loads(line)) for line in lines if line.endswith("\n")]

    def truncate(self, steps: int) -> None:
        """Forget what came after `steps`: a resumed run does it again."""
        kept = [report for report in self.read() if report.step <= steps]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(asdict(report)) + "\n" for report in kept), encoding="utf-8")
