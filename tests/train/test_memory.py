"""The estimate of a step's memory, against what autograd keeps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from codemill.config import ModelConfig
from codemill.data.packing import Document, pack
from codemill.models import CausalLM
from codemill.models.initialize import initialize
from codemill.train.batch import Batch
from codemill.train.memory import StepShape, step_memory
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
    "max_position_embeddings": 512,
}
MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}
HYBRID = {
    "model_type": "qwen3_next",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
ROWS, TOKENS = 2, 256


def kept_bytes(config: ModelConfig, precision: torch.dtype, recompute: bool) -> int:
    """What a forward pass leaves for the backward pass, besides the parameters."""
    model = CausalLM(replace(config, dtype="float32"))
    initialize(model, 0)
    model.recompute = recompute
    rng = np.random.default_rng(0)
    rows = pack([Document.of(rng.integers(0, 64, TOKENS // 2)) for _ in range(2 * ROWS)], TOKENS, 0)
    batch, objective = Batch.of(rows.take(range(ROWS))), CrossEntropy()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        objective.loss(Policy(model), batch, objective.counts([batch]))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [{}, MOE, HYBRID], ids=["dense", "moe", "hybrid"])
def test_the_estimate_is_about_what_is_kept(family: dict[str, object], precision: torch.dtype) -> None:
    config = ModelConfig.from_dict({**SHAPE, **family}, "test")
    shape = StepShape(ROWS * TOKENS, precision == torch.bfloat16, recompute=False)
    estimate = step_memory(config, 0, 0, 8.0, shape)["activations"]
    assert estimate / kept_bytes(config, precision, recompute=False) == pytest.approx(1.0, abs=0.3)


def test_recomputing_keeps_a_part_of_it() -> None:
    config = ModelConfig.from_dict(SHAPE, "test")
    estimate = step_memory(config, 0, 0, 8.0, StepShape(ROWS * TOKENS, False, recompute=True))["activations"]
    kept = kept_bytes(config, torch.float32, recompute=True)
    whole = kept_bytes(config, torch.float32, recompute=False)
    assert kept < 0.25 * whole
    assert kept < estimate < 0.5 * whole  # one layer is kept as a whole in the backward pass


def test_weights_gradients_and_optimiser_are_counted_apart() -> None:
    config = ModelConfig.from_dict(SHAPE, "test")
    shape = StepShape(100, True, recompute=False)
    memory = step_memory(config, weight_bytes=4000, trainable=1000, optimizer_bytes=8.0, shape=shape)
    assert memory["weights"] == 6000  # with the copies that autocast makes
    assert (memory["gradients"], memory["optimizer"]) == (4000, 8000)
    frozen = step_memory(config, weight_bytes=60_000, trainable=1000, optimizer_bytes=8.0, shape=shape)
    assert frozen["weights"] == 60_000  # in bf16, or packed: autocast copies nothing
