"""The sections of training configurations; see `config_file.py` for how a file becomes one."""

import math
from dataclasses import dataclass, field, replace

from codemill.config import ModelConfig
from codemill.data.mixture import Mixture
from codemill.errors import UsageError
from codemill.train.parallel_config import ParallelConfig

PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine", "wsd")


@dataclass(frozen=True)
class ModelSection:
    """Shape of a new model; keys as in `config.json`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True

    def build(self, vocab_size: int) -> ModelConfig:
        """The Qwen3 configuration of this shape."""
        return ModelConfig.from_dict({"model_type": "qwen3", "vocab_size": vocab_size, **vars(self)}, "[model]")


@dataclass(frozen=True)
class DataSection:
    """What is read: the standard library `library_passes` times, and `tasks` generated tasks."""

    vocab_size: int = 4096
    context: int = 1024
    library_passes: int = 1
    tasks: int = 10_000
    held_out_fraction: float = 0.05
    mixture: Mixture = field(default_factory=Mixture)


@dataclass(frozen=True)
class OptimizerConfig:
    """Peak learning rates, the schedule around them, and regularisation.

    "muon" is for the matrices of the layers, with rate `matrix_lr` and `momentum`; all else learns by AdamW, with `lr`,
    `betas` and `eps`, as everything does with "adamw". `schedule`: see `schedule.py`; it ends at the share `minimum` of
    the peak, and `decay` is for "wsd" alone. `max_grad_norm`: 0 for no clipping.
    """

    name: str = "muon"
    lr: float = 2e-3
    matrix_lr: float = 2e-3
    schedule: str = "wsd"
    warmup_steps: int = 50
    decay: float = 0.3
    minimum: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for key, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise UsageError(f"optimizer.{key} = {getattr(self, key)!r} is none of {', '.join(known)}")
        if len(self.betas) != 2:
            raise UsageError(f"optimizer.betas = {list(self.betas)} must be two numbers")
        shares = {"decay": self.decay, "minimum": self.minimum}
        for key, value in shares.items():
            if not 0 <= value <= 1:
                raise UsageError(f"optimizer.{key} = {value} must be between 0 and 1")
        for key, value in (*(("betas", beta) for beta in self.betas), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise UsageError(f"optimizer.{key}: {value} must be at least 0 and below 1")
        if not self.eps:  # what has had no gradient yet would become 0 / 0
            raise UsageError("optimizer.eps = 0 must be above 0")


@dataclass(frozen=True)
class LoopConfig:
    """How long, in what pieces, and what is written down on the way.

    Either `steps` or `epochs` says how long. `precision` is that of matrix products and attention; weights, their sums
    and the optimiser stay in float32. `recompute`: keep only the inputs of each layer for the backward pass (gradient
    checkpointing), which takes a third more time and far less memory. `skip_spikes_over`: a step whose gradient norm is
    more than so many times the median changes nothing; 0 for never.
    """

    steps: int = 0
    epochs: float = 0.0
    rows_per_step: int = 8
    rows_per_micro_batch: int = 8
    precision: str = "float32"
    recompute: bool = False
    skip_spikes_over: float = 0.0
    tensorboard: bool = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("rows_per_step", "rows_per_micro_batch", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"loop.{name} = {getattr(self, name)} must be at least 1")
        if self.keep_checkpoints < 1:
            raise UsageError(f"loop.keep_checkpoints = {self.keep_checkpoints} must be at least 1")
        if (self.steps > 0) == (self.epochs > 0):
            raise UsageError("give either loop.steps or loop.epochs, above 0")
        for name, limit in (("steps", 1e12), ("epochs", 1e9), ("seed", 2**63)):  # generators take seeds of 63 bits
            if getattr(self, name) >= limit:
                raise UsageError(f"loop.{name} = {getattr(self, name)} must be below {limit:g}")
        if self.rows_per_step % self.rows_per_micro_batch:
            raise UsageError("loop.rows_per_step must be a multiple of loop.rows_per_micro_batch")
        if self.precision not in PRECISIONS:
            raise UsageError(f"loop.precision = {self.precision!r} must be float32 or bfloat16")

    def for_rows(self, num_rows: int) -> "LoopConfig":
        """The same with `steps` set, where `epochs` passes over so many rows were asked for."""
        if not self.epochs:
            return self
        return replace(self, steps=max(1, math.ceil(self.epochs * num_rows / self.rows_per_step)), epochs=0.0)


def check_output(output: str) -> None:
    """Raises UsageError where it is empty, which would be the current folder."""
    if not output.strip():
        raise UsageError("output is empty: name a folder for the run")


@dataclass(frozen=True)
class PretrainConfig:
    """`codemill train pretrain CONFIG.toml`."""

    output: str
    model: ModelSection
    loop: LoopConfig
    init_from: str = ""  # a model directory to start from, with its tokenizer; empty for random weights
    data: DataSection = field(default_factory=DataSection)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        check_output(self.output)
        if self.data.context > self.model.max_position_embeddings:
            raise UsageError("data.context must not be larger than model.max_position_embeddings")
        self.model.build(self.data.vocab_size)  # raises for a shape that cannot be
