"""What PEFT's `adapter_config.json` says about an adapter."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from codemill.config import read_json_object
from codemill.errors import CodemillError

Number = TypeVar("Number", int, float)

CONFIG_FILE = "adapter_config.json"
# Settings with which the tensors mean something else than scale * B A added to a weight.
_UNSUPPORTED = (
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)
# Settings of PEFT that are read, or that change nothing in what its files mean.
_KNOWN = {
    *(
        "task_type",
        "peft_type",
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights", "bias"),
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", *_UNSUPPORTED),
}
# Initialisations that move a part of the model's weights into the adapter.
_CHANGED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraConfig:
    """Ranks and scales. The patterns are regular expressions for the end of a module's name; the first that fits wins.

    `base` is the model that it was trained on, as far as it says. target_parameters: ends of names of weights that PEFT
    adapts as parameters, whose names in patterns end in `.weight`.

    Source: `LoraConfig` and `get_pattern_key` of peft 0.21.
    """

    path: Path
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_dora: bool = False
    base: str = ""
    target_parameters: tuple[str, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> "LoraConfig":
        """Raises CodemillError naming the file, and the setting that cannot be applied."""
        path = directory / CONFIG_FILE
        raw = read_json_object(path, _hint(directory))
        _check_supported(path, raw)
        return cls(
            path=path,
            r=_positive_int(path, "r", raw.get("r")),
            lora_alpha=_number(path, "lora_alpha", raw.get("lora_alpha")),
            use_rslora=bool(raw.get("use_rslora")),
            base=str(raw.get("base_model_name_or_path") or ""),
            use_dora=bool(raw.get("use_dora")),
            target_parameters=_texts(path, "target_parameters", raw.get("target_parameters")),
            rank_pattern={
                key: _positive_int(path, "rank_pattern", rank) for key, rank in _patterns(path, raw, "rank_pattern")
            },
            alpha_pattern={
                key: _number(path, "alpha_pattern", alpha) for key, alpha in _patterns(path, raw, "alpha_pattern")
            },
        )

    def rank(self, name: str) -> int:
        """The rank of the update of module or parameter `name`."""
        return self._of(self.rank_pattern, name, self.r)

    def scale(self, name: str) -> float:
        """What its product B A is multiplied by: alpha / r, or with rslora alpha / sqrt(r) (arXiv:2312.03732)."""
        rank = self.rank(name)
        return self.alpha(name) / (math.sqrt(rank) if self.use_rslora else rank)

    def alpha(self, name: str) -> float:
        """The alpha of the update of module or parameter `name`."""
        return self._of(self.alpha_pattern, name, self.lora_alpha)

    def _of(self, patterns: Mapping[str, Number], name: str, default: Number) -> Number:
        weight = f"{name}.weight"
        is_parameter = any(weight == each or weight.endswith(f".{each}") for each in self.target_parameters)
        key = weight if is_parameter else name
        return next((value for pattern, value in patterns.items() if fits(pattern, key)), default)


def _check_supported(path: Path, raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise CodemillError(f"{path}: peft_type is {raw.get('peft_type')!r}: only LORA adapters can be applied")
    for key in _UNSUPPORTED:
        if raw.get(key):
            raise CodemillError(
                f"{path}: {key} is not supported: train without it, or merge the adapter into the model"
            )
    for key in raw.keys() - _KNOWN:
        if raw[key]:
            raise CodemillError(
                f"{path}: {key} is a setting that this version does not know: if the adapter means the same without "
                "it, take it out of the file"
            )
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_WEIGHTS):
        raise CodemillError(
            f"{path}: init_lora_weights {start!r} changed the model's own weights: convert the adapter to plain LoRA "
            "with PEFT's path_initial_model_for_weight_conversion"
        )


def _hint(directory: Path) -> str:
    """What to say where there is no such file: PEFT saves adapters that are not called `default` one level below."""
    below = sorted(path.parent for path in directory.glob(f"*/{CONFIG_FILE}")) if directory.is_dir() else []
    names = ", ".join(map(str, below))
    return f"did you mean {names}?" if below else "is this a directory that PEFT saved an adapter in?"


def _texts(path: Path, key: str, value: Any) -> tuple[str, ...]:
    texts = value or []
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise CodemillError(f"{path}: {key} is {value!r}: it has to be a list of names")
    return tuple(texts)


def _patterns(path: Path, raw: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        raise CodemillError(f"{path}: {key} is no object of patterns")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CodemillError(f"{path}: {key} has {pattern!r}, which is no regular expression ({error})") from None
    return list(patterns.items())


def fits(pattern: str, name: str) -> bool:
    """Whether a rank or alpha for `pattern` is for `name`."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _positive_int(path: Path, key: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise CodemillError(f"{path}: {key} is {value!r}: it has to be a positive integer")
    return value


def _number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CodemillError(f"{path}: {key} is {value!r}: it has to be a number")
    return value
