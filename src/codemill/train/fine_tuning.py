"""What fine-tuning of every kind shares: the model it starts from, what is trained of it, and what it leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from codemill.chat.tokenizer import Tokenizer
from codemill.config import ModelConfig
from codemill.data.packing import PADDING_DOCUMENT, PackedRows
from codemill.footprint import count_parameters
from codemill.models.loader import load_model
from codemill.models.placement import resolve_dtype
from codemill.models.save import save_pretrained
from codemill.spec import ModelSource, resolve
from codemill.train.config import LoopConfig
from codemill.train.loop import Evaluate
from codemill.train.memory import StepShape, step_memory
from codemill.train.policy import Policy
from codemill.train.run import DataPlan, RunPlan, TrainingRun
from codemill.train.settings_file import claim
from codemill.train.sft_config import EvaluationSection, FineTuneConfig

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
    def result(self) -> Path:
        return self.directory / "model"

    @cached_property
    def source(self) -> ModelSource:
        return resolve(self.config.model or None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.config.model or None)

    @cached_property
    def model_config(self) -> ModelConfig:
        return self.source.load_config()

    def claim(self) -> None:
        """Make the directory this run's. Raises UsageError if it is another's."""
        settings: dict[str, Any] = asdict(self.config)
        settings.pop("evaluation", None)
        settings["loop"] = {key: value for key, value in settings["loop"].items() if key not in _FREE}
        claim(self.directory, settings)

    def evaluation(self, policy: Policy) -> Evaluate | None:
        """What the trainer calls now and then, if benchmarks are asked for."""
        section, benchmark = self.config.evaluation, self._benchmark
        if section is None or benchmark is None:
            return None
        return partial(benchmark, section, policy, self.tokenizer)

    def plan_of(self, rows: PackedRows, num_documents: int, loop: LoopConfig) -> RunPlan:
        """The plan of a run that reads these rows in each epoch."""
        parameters = count_parameters(self.model_config)
        tokens = loop.rows_per_micro_batch * rows.input_ids.shape[1]
        step = StepShape(tokens, loop.precision == "bfloat16", loop.recompute)
        memory = step_memory(self.model_config, 4 * parameters, parameters, 8.0, step)
        data = DataPlan(
            num_documents,
            len(rows),
            int((rows.document_ids != PADDING_DOCUMENT).sum()),
            int((rows.loss_weights != 0).sum()),
        )
        size = loop.rows_per_step
        return RunPlan(loop.steps, size, rows.input_ids.shape[1], parameters, parameters, memory, data)

    def load_policy(self) -> Policy:
        """The model to train, in fp32."""
        config, spec = self.config, self.config.model or None
        return Policy(load_model(spec, "float32", trainable=True, seed=config.loop.seed))

    def save(self, policy: Policy) -> None:
        """Weights in the dtype of the checkpoint that it began with; an adapter as PEFT saves it."""
        save_pretrained(policy.model, self.result, dtype=resolve_dtype(None, self.model_config))
        self._save_companions()

    def _save_companions(self) -> None:
        self.tokenizer.save(self.result)
        defaults, _ = self.source.load_generation_config()
        if defaults:
            (self.result / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
