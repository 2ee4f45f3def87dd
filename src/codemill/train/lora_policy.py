"""A frozen model with an adapter to train: LoRA, and QLoRA where the model is quantised."""

from pathlib import Path

import torch

from codemill.config import ModelConfig
from codemill.errors import UsageError
from codemill.models.loader import load_model
from codemill.models.skeleton import build
from codemill.train.adapter import TrainableLora
from codemill.train.lora_config import LoraSection
from codemill.train.policy import Policy


def load_lora_policy(spec: str | Path | None, section: LoraSection, precision: str, seed: int = 0) -> Policy:
    """The model that `spec` names, frozen, and the adapter that `section` asks for.

    precision: "float32" or "bfloat16", in which weights that are not quantised are held: a frozen weight gains nothing
    from more digits than the products have. Raises UsageError for targets that the model does not have, and as
    `load_model` does.
    """
    model = load_model(spec, precision, quantization=section.quantization or None)
    if model.experts_on_disk:
        raise UsageError(f"{spec}: the experts do not fit in memory, and cannot be trained from disk")
    return Policy(model, TrainableLora(model, section, seed))


def planned_policy(config: ModelConfig, section: LoraSection) -> Policy:
    """The same on the meta device, for its shapes. Raises UsageError for targets that the model does not have."""
    model = build(config, torch.float32)
    with torch.device("meta"):
        return Policy(model, TrainableLora(model, section))
