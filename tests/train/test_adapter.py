"""Adapters that are trained compute what `peft` computes, gradients too, and are saved as it saves them."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from codemill.models import CausalLM
from codemill.models.lora import LoraAdapter
from codemill.train.adapter import TrainableLora
from codemill.train.lora_config import LoraSection
from models.adapters import random_ids
from models.precision import in_fp64
from models.reference import make_ours, make_reference

CASES: dict[str, tuple[str, LoraSection]] = {
    "dense": ("qwen3", LoraSection(rank=3, alpha=7)),
    "rslora": ("qwen3", LoraSection(rank=3, alpha=7, rslora=True)),
    "patterns": (
        "qwen3",
        LoraSection(rank=3, alpha=7, rank_pattern={"q_proj": 5, r"layers\.1\.self_attn\.v_proj": 2}, alpha_pattern={"o_proj": 3}),
    ),
    "head-and-embedding": ("qwen3", LoraSection(rank=3, alpha=7, targets=("lm_head", "embed_tokens", "q_proj"))),
    "moe": ("qwen3_moe", LoraSection(rank=3, alpha=7)),
    "moe-experts": ("qwen3_moe", LoraSection(rank=3, alpha=7, targets=("experts",), rank_pattern={"down_proj": 2})),
    "hybrid": ("qwen3_next", LoraSection(rank=3, alpha=7)),
    "hybrid-gates": (
        "qwen3_next",
        LoraSection(rank=3, alpha=7, targets=("shared_expert_gate", "in_proj_ba", "experts", "router"), rank_pattern={"gate": 2}),
    ),
}  # fmt: skip


def make(family: str, section: LoraSection, **changes: Any) -> tuple[CausalLM, TrainableLora]:
    """A model and an adapter with random A and B."""
    model = make_ours(make_reference(family, **changes))
    adapter = TrainableLora(model, section)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in adapter.each:
            for parameter in (each.a, each.b):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model, adapter


@pytest.mark.parametrize("case", CASES)
def test_saved_adapters_are_those_of_peft(case: str, tmp_path: Path) -> None:
    """`peft` loads one into the reference: the same logits, and of a loss the same gradients."""
    family, section = CASES[case]
    model, adapter = make(family, section)
    adapter.save(tmp_path, "some/model")
    reference = peft.PeftModel.from_pretrained(make_reference(family), tmp_path, is_trainable=True).eval()
    input_ids = random_ids(model, 2, 33)

    ours = model(input_ids, adapters=[adapter.lora] * 2)
    theirs = reference(input_ids).logits
    assert (ours - model(input_ids)).abs().max() > 0.1, "an adapter this weak would hide mistakes"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    ours.log_softmax(-1)[..., 3].mean().backward()
    theirs.log_softmax(-1)[..., 3].mean().backward()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    expected = {name.replace(".default", ""): each.grad for name, each in reference.named_parameters()
                if each.requires_grad}  # fmt: skip
    found = gradients(adapter, tmp_path / "gradients")
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        limit = 1e-4 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=limit, rtol=1e-4, msg=name)


def gradients(adapter: TrainableLora, directory: Path) -> dict[str, torch.Tensor]:
    """By the names that the file gives the parameters."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(parameter.grad)
    adapter.save(directory, "")
    return load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_serving_computes_what_training_does(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, adapter = make(family, LoraSection(rank=3, alpha=7, rslora=True))
    model.to(dtype)
    adapter = _like(adapter, model)
    adapter.save(tmp_path, "")
    loaded = LoraAdapter.load(tmp_path, model.config, dtype)
    input_ids = random_ids(model, 1, 21)
    assert torch.equal(model(input_ids, adapters=[adapter.lora]), model(input_ids, adapters=[loaded]))


def _like(adapter: TrainableLora, model: CausalLM) -> TrainableLora:
    """The same weights for a model that has changed its dtype."""
    other = TrainableLora(model, LoraSection(rank=3, alpha=7, rslora=True))
    other.load_state_dict(adapter.state_dict())
    return other


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_gradients_are_those_of_finite_differences(family: str) -> None:
    model, adapter = make(family, LoraSection(rank=2, targets=("all-linear", "lm_head", "embed_tokens")))
    adapter.double()
    adapter._dtype = torch.float64
    input_ids = random_ids(model, 1, 9)
    names, parameters = zip(*adapter.named_parameters(), strict=True)
    generator = torch.Generator().manual_seed(2)

    with in_fp64(model) as double:

        def loss() -> torch.Tensor:
            return double(input_ids, adapters=[adapter.lora]).logsumexp(-1).square().mean()

        with torch.enable_grad():
            loss().backward()
        for name, parameter in zip(names, parameters, strict=True):
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            losses = [loss().item() for step in (1e-6, -2e-6) if parameter.add_(direction, alpha=step) is not None]
            parameter.add_(direction, alpha=1e-6)
            found = (parameter.grad * direction).sum().item()
            assert found == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-7), name
