"""Training configuration: a TOML file, `--set key=value` overrides, checked before anything loads."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_type_hints

from codemill.config import ModelConfig
from codemill.data.mixture import Mixture
from codemill.errors import CodemillError, UsageError

Config = TypeVar("Config")


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
    """Peak learning rates, the schedule around them, and regularisation."""

    lr: float = 2e-3
    matrix_lr: float = 2e-3
    warmup_steps: int = 50
    decay: float = 0.3
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class LoopConfig:
    """How long, in what pieces, and what is written down on the way.

    `precision` is that of matrix products and attention; weights, their sums and the optimiser stay in float32.
    """

    steps: int
    rows_per_step: int = 8
    rows_per_micro_batch: int = 8
    precision: str = "float32"
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("seed", "precision") and value < 1:
                raise UsageError(f"loop.{name} = {value} must be at least 1")
        if self.precision not in ("float32", "bfloat16"):
            raise UsageError(f"loop.precision = {self.precision!r} must be float32 or bfloat16")


@dataclass(frozen=True)
class PretrainConfig:
    """`codemill train pretrain CONFIG.toml`."""

    output: str
    model: ModelSection
    loop: LoopConfig
    init_from: str = ""  # a model directory to start from, with its tokenizer; empty for random weights
    data: DataSection = field(default_factory=DataSection)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.loop.rows_per_step % self.loop.rows_per_micro_batch:
            raise UsageError("loop.rows_per_step must be a multiple of loop.rows_per_micro_batch")
        if self.data.context > self.model.max_position_embeddings:
            raise UsageError("data.context must not be larger than model.max_position_embeddings")
        self.model.build(self.data.vocab_size)  # raises for a shape that cannot be


def load_config(kind: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` as a `kind`, with `section.key=value` overrides. Raises UsageError naming the file and the key."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    for override in overrides:
        _apply_override(raw, override)
    try:
        return _build(kind, raw, prefix="")
    except CodemillError as error:
        raise UsageError(f"{path}: {error}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise UsageError(f"--set {override}: write section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, name = key.strip().split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UsageError(f"--set {override}: {section} is no section")
    raw[name] = value


def _build(kind: type[Config], raw: Mapping[str, Any], prefix: str) -> Config:
    assert is_dataclass(kind)
    types = get_type_hints(kind)
    unknown = [key for key in raw if key not in types]
    if unknown:
        raise UsageError(f"unknown key {prefix}{unknown[0]}; known are {', '.join(types)}")
    values = {key: _convert(types[key], value, prefix + key) for key, value in raw.items()}
    required = {f.name for f in fields(kind) if f.default is f.default_factory}  # both are MISSING
    missing = sorted(required - set(values))
    if missing:
        raise UsageError(f"the key {prefix}{missing[0]} is missing")
    return kind(**values)


def _convert(expected: Any, value: Any, key: str) -> Any:
    if is_dataclass(expected) and isinstance(expected, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{key} must be a section")
        return _build(expected, value, prefix=key + ".")
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    names = expected if isinstance(expected, type | UnionType) else object
    if not isinstance(value, names) or (isinstance(value, bool) and expected is not bool):
        raise UsageError(f"{key} = {value!r} is no {getattr(expected, '__name__', expected)}")
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise UsageError(f"{key} = {value!r} must be a number that is not negative")
    return value
