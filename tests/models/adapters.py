"""Adapters with random A and B, made and saved by `peft`."""

from pathlib import Path
from typing import Any

import peft
import torch

from codemill.models import CausalLM
from codemill.models.lora import LoraAdapter
from models.reference import make_reference

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]  # as `target_parameters`


def random_ids(model: CausalLM, batch_size: int, tokens: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch_size, tokens), generator=generator)


def make_adapter(
    directory: Path, family: str, settings: dict[str, Any], seed: int = 0, **changes: Any
) -> peft.PeftModel:
    """The reference with an adapter of random A and B, which is also saved to `directory`."""
    reference = make_reference(family, **changes)
    torch.manual_seed(seed + 100)
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "init_lora_weights": False, **settings})
    model = peft.get_peft_model(reference, config)
    model.save_pretrained(directory)
    return model.eval()


def load(directory: Path, model: CausalLM, dtype: torch.dtype = torch.float32) -> LoraAdapter:
    return LoraAdapter.load(directory, model.config, dtype)
