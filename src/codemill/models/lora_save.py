"""Writes adapters as PEFT does. Shapes: E experts, r rank."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from codemill.errors import CodemillError
from codemill.models.lora_config import CONFIG_FILE
from codemill.models.lora_file import PREFIX, WEIGHT_FILE
from codemill.models.safetensors_file import write_file


@dataclass(frozen=True, eq=False)
class SavedUpdate:
    """What is added to the weight of `module`, or to its stacked `parameter` where that is given."""

    module: str
    a: Tensor  # [r, in] or [E, r, in]
    b: Tensor  # [out, r] or [E, out, r]
    alpha: float
    parameter: str = ""
    is_embedding: bool = False
    magnitude: Tensor | None = None  # of DoRA, [out]

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    @property
    def rank(self) -> int:
        return self.b.shape[-1]


@dataclass(frozen=True)
class SavedSettings:
    """What `adapter_config.json` says of all updates; see PEFT's settings for `target_modules` and the like."""

    base: str
    target_modules: Sequence[str]
    target_parameters: Sequence[str]
    rank: int
    alpha: float
    rslora: bool
    dropout: float
    per_expert: bool = False  # a name for each expert, as vLLM reads it, and not PEFT's for all of a layer


def save_adapter(directory: Path, updates: Sequence[SavedUpdate], settings: SavedSettings) -> None:
    """Write an adapter to `directory`, in place of one that is there. Raises CodemillError if that fails.

    Both files are written aside first; an interrupted save leaves the old adapter, the new one, or a directory that
    loads as none.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as name:
            staging = Path(name)
            write_file(staging / WEIGHT_FILE, dict(_tensors(updates, settings.per_expert)))
            text = json.dumps(_config(updates, settings), indent=2) + "\n"
            (staging / CONFIG_FILE).write_text(text, encoding="utf-8")
            (directory / CONFIG_FILE).unlink(missing_ok=True)
            for file in (WEIGHT_FILE, CONFIG_FILE):
                os.replace(staging / file, directory / file)
    except OSError as error:
        raise CodemillError(
            f"{directory}: the adapter cannot be saved ({error.strerror or error}): check permissions and space"
        ) from error


def _tensors(updates: Sequence[SavedUpdate], per_expert: bool) -> Iterator[tuple[str, Tensor]]:
    stacked = [update.module for update in updates if update.parameter]
    for update in updates:
        name = f"{PREFIX}{update.module}"
        if update.parameter and per_expert:
            yield from _expert_tensors(name, update)
        elif update.parameter:
            # PEFT wraps a module once for each of its parameters, in their order; the last is outermost.
            is_inner = update.parameter == "gate_up_proj" and stacked.count(update.module) == 2
            yield from _stacked_tensors(f"{name}.base_layer" if is_inner else name, update)
        elif update.is_embedding:
            yield from ((f"{name}.lora_embedding_A", update.a), (f"{name}.lora_embedding_B", update.b))
        else:
            yield from ((f"{name}.lora_A.weight", update.a), (f"{name}.lora_B.weight", update.b))
            if update.magnitude is not None:
                yield f"{name}.lora_magnitude_vector", update.magnitude


def _stacked_tensors(name: str, update: SavedUpdate) -> Iterator[tuple[str, Tensor]]:
    """a [E * r, in], expert after expert; b [out, r * E], where an expert has every E-th column."""
    yield f"{name}.lora_A.weight", update.a.flatten(0, 1)
    yield f"{name}.lora_B.weight", update.b.permute(1, 2, 0).flatten(1)


def _expert_tensors(name: str, update: SavedUpdate) -> Iterator[tuple[str, Tensor]]:
    """Gate and up each have the A of both, and their half of B."""
    projections = ("gate_proj", "up_proj") if update.parameter == "gate_up_proj" else ("down_proj",)
    for index, (a, b) in enumerate(zip(update.a, update.b, strict=True)):
        for projection, own in zip(projections, b.chunk(len(projections)), strict=True):
            expert = f"{name}.{index}.{projection}"
            yield from ((f"{expert}.lora_A.weight", a.clone()), (f"{expert}.lora_B.weight", own.contiguous()))


def _config(updates: Sequence[SavedUpdate], settings: SavedSettings) -> Mapping[str, Any]:
    modules, parameters = list(settings.target_modules), list(settings.target_parameters)
    if settings.per_expert:
        # Adapted weights that PEFT knows as parameters are modules elsewhere.
        experts = {"mlp.experts.gate_up_proj": ["gate_proj", "up_proj"], "mlp.experts.down_proj": ["down_proj"]}
        own = [experts.get(name) or [name.removesuffix(".weight").rpartition(".")[2]] for name in parameters]
        modules, parameters = list(dict.fromkeys([*modules, *(name for names in own for name in names)])), []
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.base or None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        # PEFT refuses to load parameters with dropout, which only training has.
        "lora_dropout": 0.0 if parameters else settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": any(update.magnitude is not None for update in updates),
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": modules,
        "target_parameters": parameters or None,
        "rank_pattern": {_pattern(each, settings): each.rank for each in updates if each.rank != settings.rank},
        "alpha_pattern": {_pattern(each, settings): each.alpha for each in updates if each.alpha != settings.alpha},
    }


def _pattern(update: SavedUpdate, settings: SavedSettings) -> str:
    """For PEFT, the name of a weight that is adapted as a parameter ends in .weight."""
    if update.parameter and settings.per_expert:
        projections = "(gate_proj|up_proj)" if update.parameter == "gate_up_proj" else "down_proj"
        return rf"{re.escape(update.module)}\.\d+\.{projections}"
    return re.escape(update.name) + ("" if update.parameter else r"(\.weight)?")
