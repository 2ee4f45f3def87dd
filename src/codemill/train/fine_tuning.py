"""What fine-tuning of every kind shares: the model it starts from, what is trained of it, and what it leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from codemill.chat.tokenizer import Tokenizer
from codemill.config import ModelConfig
from codemill.errors import UsageError
from codemill.footprint import available_memory, count_parameters, quantized_bytes
from codemill.models.loader import load_model
from codemill.models.placement import resolve_dtype, resolve_quantization
from codemill.spec import ModelSource, resolve
from codemill.train.balance import Balanced, RouterBalance
from codemill.train.config import LoopConfig
from codemill.train.export import save_whole
from codemill.train.loop import Evaluate
from codemill.train.lora_policy import load_lora_policy, planned_policy
from codemill.train.memory import StepShape, step_memory
from codemill.train.objective import Objective
from codemill.train.parallel_config import ParallelConfig
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
        self.directory = Path(config.output)

    @property
    def parallel_config(self) -> ParallelConfig:
        return self.config.parallel

    @property
    def result(self) -> Path:
        return self.directory / ("model" if self.config.lora is None else "adapter")

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
        parallel = self.config.parallel
        if self.config.evaluation is not None and (parallel.shard or parallel.tensor * parallel.expert > 1):
            raise UsageError("[evaluation] needs a model that is whole on each process: leave it out, or [parallel]")
        if parallel.shard:
            return  # every process takes a part of it
        # Without activations: what no smaller batch makes smaller.
        needed, available = sum(self._memory(0).values()), available_memory()
        if needed > available:
            advice = "train an adapter ([lora])" if self.config.lora is None else "give lora.quantization"
            raise UsageError(
                f"{self.source.name}: training takes at least {needed / 1e9:.1f} GB, this machine has "
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
        return objective if self.config.balance is None else Balanced(objective, RouterBalance(self.config.balance))

    def plan_of(self, data: DataPlan | None, loop: LoopConfig) -> RunPlan:
        """The plan of a run that reads this in each epoch; None where that is not known."""
        context, parameters = self.config.data.context, count_parameters(self.model_config)
        memory = self._memory(loop.rows_per_micro_batch * context)
        share = () if self._planned is None else trainable_share(self._planned)
        return RunPlan(loop.steps, loop.rows_per_step, context, parameters, self._trainable, memory, data, share)

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
        loop, config = self.config.loop, self.model_config
        step = StepShape(tokens, loop.precision == "bfloat16", loop.recompute)
        return step_memory(config, self._weight_bytes(), self._trainable, 8.0, step)

    def _weight_bytes(self) -> int:
        config, lora = self.model_config, self.config.lora
        if lora is None:
            return 4 * count_parameters(config)
        packed = resolve_quantization(lora.quantization or None, config.quantization)
        if packed is not None:
            return quantized_bytes(config, packed)
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
