"""The training loop: batches in, a trained policy out, and nothing lost on the way."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch

from codemill.errors import CodemillError
from codemill.kernels.heap import give_back_memory, keep_all_freed_memory
from codemill.train.batch import Batch
from codemill.train.checkpoint import Checkpoints
from codemill.train.config import LoopConfig, OptimizerConfig
from codemill.train.gradients import clip_gradients
from codemill.train.guard import SpikeGuard
from codemill.train.interruption import Interruption
from codemill.train.log import StepReport, TrainingLog
from codemill.train.objective import Objective, ReportsSteps
from codemill.train.optimizer import build_optimizers, set_learning_rates
from codemill.train.parallel import Parallel
from codemill.train.policy import Policy
from codemill.train.schedule import learning_rate_scale
from codemill.train.source import BatchSource
from codemill.train.speed import StepCost
from codemill.train.tensorboard import TensorBoardLog, check_tensorboard

_TRIM_EVERY = 25  # steps: what is kept for the next ones falls to pieces bit by bit, as their shapes differ

Evaluate = Callable[[], Mapping[str, float]]
"""Scores of the policy as it stands."""


class Trainer:
    """Trains `policy` on what `source` gives; every step is a function of the checkpoint before it and its number.

    `validation` are micro-batches by name, over which the objective is measured now and then; `evaluate`, if it is
    given, is called every `evaluate_every` steps and at the end. `parallel`: the processes that train it together, of
    which `source` gives the share of this one; they cut the policy, and each has a Trainer.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        source: BatchSource,
        validation: Mapping[str, Sequence[Batch]],
        loop: LoopConfig,
        optimizer: OptimizerConfig,
        directory: Path,
        evaluate: Evaluate | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        keep_all_freed_memory()
        if loop.tensorboard:
            check_tensorboard()
        self.parallel = Parallel() if parallel is None else parallel
        self.parallel.check_rows(loop)
        self.parallel.wrap(policy, loop.precision)
        policy.model.recompute = loop.recompute
        self.policy, self.objective, self.source, self.validation = policy, objective, source, validation
        self.loop, self.optimizer_config, self.directory, self.evaluate = loop, optimizer, directory, evaluate
        self.optimizers = build_optimizers(policy.trained, optimizer)
        self.checkpoints = Checkpoints(directory / "checkpoints", loop.keep_checkpoints, self.parallel)
        self._precision = torch.bfloat16 if loop.precision == "bfloat16" else torch.float32
        model = policy.model
        self._cost = StepCost(model.config, model.device, self._precision, is_frozen=policy.adapter is not None)

    def run(self) -> Iterator[StepReport]:
        """Train from the newest checkpoint to the last step, one report a step.

        Ctrl-C or SIGTERM, to any of the processes, ends the run after the step in progress, with a checkpoint and
        KeyboardInterrupt, which has the signal's number. Raises CodemillError where the loss or its gradient is no
        longer a number; the checkpoint before stays.
        """
        seeds = np.random.SeedSequence((self.loop.seed, self.parallel.data_rank))
        torch.manual_seed(int(seeds.generate_state(1)[0]))  # of dropout, until a checkpoint knows better
        start = self.checkpoints.restore(self.policy.trained, self.optimizers, self.objective)
        log = TrainingLog(self.directory / "log.jsonl")
        before = [report for report in log.read() if report.step <= start]
        guard = SpikeGuard(self.loop.skip_spikes_over, before)
        self.parallel.wait()  # until all have read it, before the first one cuts it
        with ExitStack() as stack:
            logs = self._logs(log, stack, start) if self.parallel.is_main else []
            interruption = stack.enter_context(Interruption())
            for step in range(start, self.loop.steps):
                report = self._step(step, guard)
                for each in logs:
                    each.append(report)
                done = step + 1
                if done % _TRIM_EVERY == 0:
                    give_back_memory()
                interruption.signal = self.parallel.largest(interruption.signal)
                if done % self.loop.checkpoint_every == 0 or done == self.loop.steps or interruption.signal:
                    self.checkpoints.save(done, self.policy.trained, self.optimizers, self.objective)
                interruption.check()
                yield report
            interruption.signal = self.parallel.largest(interruption.signal)
            interruption.check()

    def _logs(self, log: TrainingLog, stack: ExitStack, start: int) -> list[TrainingLog | TensorBoardLog]:
        log.truncate(start)
        if not self.loop.tensorboard:
            return [log]
        return [log, stack.enter_context(closing(TensorBoardLog(self.directory / "tensorboard", start)))]

    def _step(self, step: int, guard: SpikeGuard) -> StepReport:
        began = time.perf_counter()
        batches = [batch.to(self.policy.model.device) for batch in self.source.micro_batches(step)]
        loss, metrics = self._accumulate(batches)
        if isinstance(self.objective, ReportsSteps):
            metrics |= self.objective.finish_step()
        norm = clip_gradients(self.policy.trained, self.optimizer_config.max_grad_norm)
        is_skipped = guard.skips(step + 1, loss, norm)
        scale = learning_rate_scale(step, self.optimizer_config, self.loop.steps)
        set_learning_rates(self.optimizers, scale)
        for optimizer in self.optimizers:
            if not is_skipped:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        work = self.parallel.sum(
            {
                "tokens": sum(batch.num_tokens for batch in batches),
                "operations": sum(map(self._cost.operations, batches)),
            }
        )
        return StepReport(
            step=step + 1,
            loss=loss,
            grad_norm=norm,
            learning_rate_scale=scale,
            tokens_per_second=work["tokens"] / seconds,
            validation=self._validate() if self._is_due(step + 1) else None,
            metrics=metrics,
            tokens=int(work["tokens"]),
            mfu=self._cost.utilisation(work["operations"] / self.parallel.num_processes, seconds),
            skipped=is_skipped,
            evaluation=self.evaluate() if self.evaluate is not None and self._is_due(step + 1) else None,
        )

    def _accumulate(self, batches: Sequence[Batch]) -> tuple[float, dict[str, float]]:
        """Gradients of a step's loss, in micro-batches; returns that loss and what is reported beside it."""
        self.parallel.check_equal("micro-batches in a step", len(batches))
        totals = self.parallel.sum(self.objective.counts(batches))
        _check_counts(totals)
        loss, metrics = 0.0, dict[str, float]()
        for batch in batches:
            with self._autocast():
                part = self.objective.loss(self.policy, batch, totals)
            part.value.backward()
            loss += part.value.item()
            for name, value in part.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
        self.parallel.sum_gradients(self.policy.trained)
        return self.parallel.sum({"loss": loss})["loss"], self.parallel.sum(metrics)

    def _is_due(self, done: int) -> bool:
        return done % self.loop.evaluate_every == 0 or done == self.loop.steps

    def _validate(self) -> dict[str, float]:
        return {name: self.measure(batches) for name, batches in self.validation.items() if batches}

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch]) -> float:
        """The objective over all of some micro-batches, without learning from them."""
        totals = self.objective.counts(batches)
        _check_counts(totals)
        device = self.policy.model.device
        total = 0.0
        with self._autocast():
            for batch, counts in self.parallel.share(batches):
                value = self.objective.loss(self.policy, batch.to(device), totals).value.item()
                total += value if counts else 0.0
        return self.parallel.sum({"loss": total})["loss"]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.policy.model.device.type, torch.bfloat16, enabled=self._precision == torch.bfloat16)


def _check_counts(totals: Mapping[str, float]) -> None:
    for name, total in totals.items():
        if not total > 0:
            raise CodemillError(f"a step has nothing to learn from (its {name} counts {total:g}): check the loss masks")
