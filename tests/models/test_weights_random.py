"""Random weights: the distribution of the reference, the same for a seed, and no fp32 copy."""

from dataclasses import replace

import pytest
import torch

from codemill import presets
from codemill.config import ModelConfig
from codemill.errors import UsageError
from codemill.models import CausalLM, load_model
from models.reference import FAMILIES, make_reference


@pytest.fixture(autouse=True)
def _tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets `tiny-qwen3`, `tiny-qwen3_moe` and `tiny-qwen3_next`."""
    sizes = {"hidden_size": 128, "vocab_size": 500}
    configs = {
        f"tiny-{family}": ModelConfig.from_dict(make_reference(family, **sizes).config.to_dict()) for family in FAMILIES
    }
    tiny = {
        name: presets.Preset(name, name, "org/none", replace(config, dtype="bfloat16", initializer_range=0.05))
        for name, config in configs.items()
    }
    monkeypatch.setattr(presets, "PRESETS", tiny)


def same(one: CausalLM, two: CausalLM) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_distribution(family: str) -> None:
    model = load_model(f"random:tiny-{family}", dtype="fp32")
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            assert parameter.exp().min() >= 0.01
            assert parameter.exp().max() <= 16
        elif "dt_bias" in name or "linear_attn.norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        elif "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if family == "qwen3_next" else 1.0))
        else:
            tolerance = 5 * 0.05 / parameter.numel() ** 0.5
            assert abs(parameter.mean()) < tolerance, name
            assert abs(parameter.std() - 0.05) < tolerance, name
    logits = model(torch.arange(70)[None])
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_the_same_weights_whatever_the_threads_and_dtype(family: str) -> None:
    spec = f"random:tiny-{family}"
    model = load_model(spec, seed=3)
    assert model.dtype == torch.bfloat16
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert same(model, load_model(spec, seed=3))
    finally:
        torch.set_num_threads(threads)
    assert same(model, load_model(spec, seed=3, dtype="fp32").to(torch.bfloat16))
    assert not same(model, load_model(spec, seed=4))


def test_no_two_parameters_are_alike_and_no_rows_repeat() -> None:
    model = load_model("random:tiny-qwen3", dtype="fp32")
    first, second = (layer.mlp.up_proj.weight for layer in model.model.layers)
    assert not torch.equal(first, second)
    embedding = model.model.embed_tokens.weight
    assert torch.unique(embedding, dim=0).shape == embedding.shape


def test_training_is_on_request() -> None:
    assert not any(parameter.requires_grad for parameter in load_model("random:tiny-qwen3").parameters())
    assert all(parameter.requires_grad for parameter in load_model("random:tiny-qwen3", trainable=True).parameters())


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match="unknown preset 'tiny'"):
        load_model("random:tiny")
