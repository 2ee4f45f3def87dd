"""What fine-tuning of every kind shares: the model it starts from, what is trained of it, and what it leaves."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from codemill.chat.tokenizer import Tokenizer
from codemill.config import ModelConfig, QuantizationConfig
from codemill.data.overlong import OverlongCounts
from codemill.data.progress import bytes_progress
from codemill.data.segments import find_inputs
from codemill.errors import UsageError
from codemill.footprint import count_parameters, quantized_bytes
from codemill.models.loader import load_model
from codemill.models.placement import resolve_dtype, resolve_quantization
from codemill.spec import ModelSource, resolve
from codemill.train.balance import Balanced, RouterBalance
from codemill.train.config import LoopConfig
from codemill.train.export import save_whole
from codemill.train.loop import Evaluate
from codemill.train.lora_policy import load_lora_policy, planned_policy
from codemill.train.objective import Objective
from codemill.train.parallel_config import ParallelConfig
from codemill.train.parallel_memory import free_memory
from codemill.train.policy import Policy
from codemill.train.run import DataPlan, RunPlan, TrainingRun
from codemill.train.settings_file import claim
from codemill.train.sft_config import EvaluationSection, FineTuneConfig
from codemill.train.trainable_share import trainable_share

# Settings that decide how a run is watched, not what it computes; a run may continue with others.
_FREE = ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "recompute", "steps")


Benchmark = Callable[[EvaluationSection, Policy, Tokenizer], Mapping[str, float]]
"""Scores of a policy as it stands."""


class FineTuning(TrainingRun):
    """A run on a model that exists, in `config.output`: at its end model/, or adapter/ if only that was trained."""

    def __init__(self, config: FineTuneConfig, benchmark: Benchmark | None = None) -> None:
        """benchmark: what measures the policy where the configuration asks for it."""
        self.config, self._benchmark = config, benchmark
        self._left_out: dict[str, OverlongCounts] = {}
        self.directory = Path(config.output)

    @property
    def parallel_config(self) -> ParallelConfig:
        return self.config.parallel

    @property
    def result(self) -> Path:
        return self.directory / ("model" if self.config.lora is None else "adapter")

    @property
    def left_out(self) -> Mapping[str, OverlongCounts]:
        return {name: counts for name, counts in self._left_out.items() if counts.lines()}

    def note(self, name: str, counts: OverlongCounts) -> None:
        """Remember what was left out of data that was read."""
        self._left_out[name] = counts

    @contextmanager
    def reading(self, paths: Sequence[str]) -> Iterator[Callable[[int], None]]:
        """Within this, a bar on a terminal of how much of these files was tokenised."""
        size = sum(file.path.stat().st_size for file in find_inputs(paths))
        with bytes_progress(size, "tokenising") as advance:
            yield advance

    @cached_property
    def source(self) -> ModelSource:
        return resolve(self.config.model or None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.config.model or None)

    @cached_property
    def model_config(self) -> ModelConfig:
        return self.source.load_config()

    def check(self) -> None:
        """Raises UsageError for what cannot be, before data or weights are loaded."""
        context, longest = self.config.data.context, self.model_config.max_position_embeddings
        if context > longest:
            raise UsageError(f"data.context = {context:,}, but {self.source.name} has {longest:,} positions: lower it")
        if self.config.balance is not None and self.model_config.moe is None:
            raise UsageError(f"[balance] is for models with experts, which {self.source.name} is not: leave it out")
        lora = self.config.lora
        self.check_parallel(self.model_config, self.config.loop, lora is not None, self._quantization is not None)
        parallel = self.config.parallel
        if self.config.evaluation is not None and not parallel.leaves_whole:
            raise UsageError("[evaluation] needs a model that is whole on each process: leave it out, or [parallel]")
        # Without activations: what no smaller batch makes smaller.
        needed, (available, where) = sum(self._memory(0).values()), free_memory()
        if needed > available:
            advice = "train an adapter ([lora])" if self.config.lora is None else "give lora.quantization"
            raise UsageError(
                f"{self.source.name}: training takes at least {needed / 1e9:.1f} GB, {where} has "
                f"{available / 1e9:.1f} GB free: {advice} or a smaller model"
            )

    def claim(self) -> None:
        """Make the directory this run's. Raises UsageError if it is another's."""
        settings: dict[str, Any] = asdict(self.config)
        for key in ("evaluation", "parallel"):
            settings.pop(key, None)
        settings["loop"] = {key: value for key, value in settings["loop"].items() if key not in _FREE}
        claim(self.directory, settings)

    def evaluation(self, policy: Policy) -> Evaluate | None:
        """What the trainer calls now and then, if benchmarks are asked for."""
        section, benchmark = self.config.evaluation, self._benchmark
        if section is None or benchmark is None:
            return None
        return partial(benchmark, section, policy, self.tokenizer)

    def balanced(self, objective: Objective) -> Objective:
        """The objective, with `[balance]` beside the balance of the experts."""
        balance = self.config.balance
        return objective if balance is None else Balanced(objective, RouterBalance(balance, self.parallel))

    def plan_of(self, data: DataPlan | None, loop: LoopConfig) -> RunPlan:
        """The plan of a run that reads this in each epoch; None where that is not known."""
        context, parameters = self.config.data.context, count_parameters(self.model_config)
        memory = self._memory(loop.rows_per_micro_batch * context)
        share = () if self._planned is None else trainable_share(self._planned)
        return RunPlan(
            *(loop.steps, loop.rows_per_step, context, parameters, self._trainable, memory, data, share),
            processes=self.config.parallel.num_processes,
            left_out=self.left_out,
        )

    @cached_property
    def _trainable(self) -> int:
        """Parameters that are trained."""
        if self._planned is None:
            return count_parameters(self.model_config)
        return sum(parameter.numel() for parameter in self._planned.trained.parameters())

    @cached_property
    def _planned(self) -> Policy | None:
        """With an adapter, what will be trained, without weights."""
        return None if self.config.lora is None else planned_policy(self.model_config, self.config.lora)

    def _memory(self, tokens: int) -> dict[str, int]:
        return self.memory_of(self.model_config, self._weight_bytes(), self._trainable, tokens, self.config.loop)

    @property
    def _quantization(self) -> QuantizationConfig | None:
        """Of a frozen model."""
        lora = self.config.lora
        return None if lora is None else resolve_quantization(lora.quantization or None, self.model_config.quantization)

    def _weight_bytes(self) -> int:
        config = self.model_config
        if self.config.lora is None:
            return 4 * count_parameters(config)
        if self._quantization is not None:
            return quantized_bytes(config, self._quantization)
        return (2 if self.config.loop.precision == "bfloat16" else 4) * count_parameters(config)

    def load_policy(self) -> Policy:
        """The model to train, in fp32; with `[lora]` a frozen one, with an adapter."""
        config, spec, seed = self.config, self.config.model or None, self.config.loop.seed
        if config.lora is None:
            return self.placed(Policy(load_model(spec, "float32", trainable=True, seed=seed)))
        return self.placed(load_lora_policy(spec, config.lora, config.loop.precision, seed))

    def save(self, policy: Policy) -> None:
        """Weights in the dtype of the checkpoint that it began with; an adapter as PEFT saves it."""
        if policy.adapter is None:
            save_whole(policy.model, self.result, resolve_dtype(None, self.model_config), self.parallel)
            if self.parallel.is_main:
                self._save_companions()
        elif self.parallel.is_main:
            policy.adapter.save(self.result, self.config.model)

    def _save_companions(self) -> None:
        self.tokenizer.save(self.result)
        defaults, _ = self.source.load_generation_config()
        if defaults:
            (self.result / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
