"""What is read from an adapter's files, and how what cannot be applied is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codemill.errors import CodemillError
from codemill.models.lora import LoraAdapter
from models.adapters import EXPERTS, load, make_adapter
from models.reference import make_ours, make_reference


def test_what_an_adapter_says_of_itself(tmp_path):
    ours = make_ours(make_reference("qwen3"))
    for directory, seed in (("tidy", 0), ("verbose", 1)):
        make_adapter(tmp_path / directory, "qwen3", {"target_modules": ["q_proj"]}, seed=seed)
    tidy, again, verbose = (load(tmp_path / name, ours) for name in ("tidy", "tidy", "verbose"))
    assert (tidy.name, verbose.name) == ("tidy", "verbose")
    assert LoraAdapter.load(tmp_path / "tidy", ours.config, torch.float32, name="mine").name == "mine"
    assert tidy.fingerprint == again.fingerprint != verbose.fingerprint
    assert tidy.nbytes == 2 * 3 * (32 + 64) * 4  # two layers, rank 3, q_proj [64, 32]
    config = json.loads((tmp_path / "tidy" / "adapter_config.json").read_text())
    (tmp_path / "tidy" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))
    assert load(tmp_path / "tidy", ours).fingerprint != tidy.fingerprint


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = directory / "adapter_model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BROKEN_TENSORS = {
    "unknown module": (lambda t: {**t, Q_PROJ.replace("layers.0", "layers.9"): t[Q_PROJ]}, "no lora_B"),
    "unknown layer": (lambda t: {k.replace("layers.0", "layers.9"): v for k, v in t.items()}, "layers.9"),
    "no pair": (lambda t: {k: v for k, v in t.items() if k != Q_PROJ}, "has no lora_A"),
    "whole weight": (lambda t: {**t, "base_model.model.model.norm.weight": torch.ones(32)}, "model.norm.weight"),
    "wrong rank": (lambda t: {**t, Q_PROJ: torch.zeros(4, 32)}, "shape [4, 32]"),
    "wrong width": (lambda t: {**t, Q_PROJ: torch.zeros(3, 33)}, "shape [3, 33]"),
    "experts of another size": (
        lambda t: {k: v[..., :5].contiguous() if "experts.lora_A" in k else v for k, v in t.items()},
        "mlp.experts.lora_A",
    ),
    "an expert too many": (
        lambda t: {
            **t,
            "model.layers.0.mlp.experts.8.up_proj.lora_A.weight": torch.zeros(3, 32),
            "model.layers.0.mlp.experts.8.up_proj.lora_B.weight": torch.zeros(24, 3),
        },
        "expert 8",
    ),
    "a magnitude": (lambda t: {**t, Q_PROJ.replace("lora_A.weight", "lora_magnitude_vector"): t[Q_PROJ]}, "magnitude"),
    "another vocabulary": (
        lambda t: {**t, "base_model.model.lm_head.base_layer.weight": torch.zeros(99, 32)},
        "lm_head.base_layer.weight",
    ),
    "nothing": (lambda t: {}, "no LoRA tensors"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    make_adapter(directory, "qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS})
    return directory


@pytest.fixture
def broken(saved, tmp_path) -> Path:
    """A copy of an adapter, to be spoilt."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def assert_refused(directory: Path, file: str, message: str) -> None:
    ours = make_ours(make_reference("qwen3_moe"))
    with pytest.raises(CodemillError) as caught:
        load(directory, ours)
    assert str(directory / file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_a_tensor_without_a_place_is_named(case, broken):
    change, message = BROKEN_TENSORS[case]
    rewrite(broken, change)
    assert_refused(broken, "adapter_model.safetensors", message)


@pytest.mark.parametrize(
    "setting",
    [
        {"peft_type": "LOHA"},
        {"fan_in_fan_out": True},
        {"target_parameters": "experts"},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"init_lora_weights": "pissa_niter_4"},
        {"alora_invocation_tokens": [1]},
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": None},
        {"rank_pattern": {"(": 3}},
        {"rank_pattern": {"q_proj": -1}},
        {"alpha_pattern": ["q_proj"]},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_applied_is_named(setting, broken):
    path = broken / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    assert_refused(broken, "adapter_config.json", next(iter(setting)))


def test_missing_files_are_named(broken):
    (broken / "adapter_model.safetensors").unlink()
    assert_refused(broken, "adapter_model.safetensors", "does not exist")
    (broken / "adapter_config.json").unlink()
    assert_refused(broken, "adapter_config.json", "does not exist")


def test_an_adapter_for_another_model_is_refused(saved):
    dense = make_ours(make_reference("qwen3"))
    with pytest.raises(CodemillError, match=r"mlp\.experts.*another model"):
        load(saved, dense)
