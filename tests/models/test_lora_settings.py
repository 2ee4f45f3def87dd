"""Adapters of other people's PEFT settings: each computes what `peft` computes, or is refused; none is half applied."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from codemill.errors import CodemillError
from codemill.models.lora import LoraAdapter
from codemill.models.lora_config import LoraConfig
from models.adapters import EXPERTS, load, make_adapter, random_ids
from models.precision import FP64_TOLERANCE, exact_logits, in_fp64
from models.reference import make_ours, make_reference

Q = {"target_modules": ["q_proj"]}
ALL = {"target_modules": "all-linear"}

# (family, changes of the model, settings of peft's LoraConfig)
APPLIED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "exclude_modules": ("qwen3", {}, {**ALL, "exclude_modules": r".*layers\.0\..*|.*down_proj"}),
    "exclude_modules, a list": ("qwen3_moe", {}, {**ALL, "exclude_modules": ["o_proj"]}),
    "layers_pattern": ("qwen3", {}, {**Q, "layers_to_transform": 1, "layers_pattern": "layers"}),
    "fan_in_fan_out": ("qwen3", {}, {**ALL, "fan_in_fan_out": True}),  # PEFT takes it back: no layer is so
    "bias all, and none there": ("qwen3", {}, {**Q, "bias": "all"}),
    "bias all, which PEFT takes no DeltaNet's for": ("qwen3_next", {}, {**Q, "bias": "all"}),
    "bias lora_only, and none there": ("qwen3_moe", {}, {**Q, "bias": "lora_only"}),
    "bias beside those of the model": ("qwen3", {"attention_bias": True}, Q),
    "tied": ("qwen3", {"tie_word_embeddings": True}, ALL),
    "tied, both": ("qwen3", {"tie_word_embeddings": True}, {"target_modules": ["lm_head", "embed_tokens"]}),
    "router": ("qwen3_moe", {}, {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}),
    "a linear layer's parameter": ("qwen3", {}, {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "everything as parameters": (
        "qwen3_next",
        {},
        {
            "target_modules": ["out_proj"],
            "target_parameters": [*EXPERTS, "mlp.gate.weight", "shared_expert.up_proj.weight"],
            "rank_pattern": {r"layers\.[01]\.mlp\.experts\.down_proj": 5, "gate_up_proj": 2},
            "alpha_pattern": {r"mlp\.gate\.weight": 1.5},
            "use_rslora": True,
        },
    ),
    "patterns, the first counts": (
        "qwen3",
        {},
        {**ALL, "rank_pattern": {"proj": 4, r"model\.layers\.1\.mlp\.up_proj": 2, r"layers\.0\..*q_proj": 5}},
    ),
    "patterns with anchors": ("qwen3", {}, {**ALL, "rank_pattern": {r"^model\.layers\.0\.mlp\..*": 6}}),
    "patterns, rslora": (
        "qwen3",
        {},
        {**Q, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q": 3, ".*q_proj": 5}, "use_rslora": True},
    ),
    "gaussian": ("qwen3", {}, {**Q, "init_lora_weights": "gaussian"}),
    "orthogonal": ("qwen3", {}, {**Q, "init_lora_weights": "orthogonal", "r": 4}),
    "dropout": ("qwen3", {}, {**Q, "lora_dropout": 0.5}),
    "PEFT's default targets": ("qwen3", {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", APPLIED)
def test_equals_peft(case: str, tmp_path: Path) -> None:
    family, changes, settings = APPLIED[case]
    ours = make_ours(make_reference(family, **changes))
    reference = make_adapter(tmp_path, family, settings, **changes)
    randomize_b(reference)
    reference.save_pretrained(tmp_path)
    input_ids = random_ids(ours, 2, 17)
    expected = exact_logits(reference, input_ids)
    adapter = load(tmp_path, ours, torch.float64)
    with in_fp64(ours) as double:
        assert (double(input_ids) - expected).abs().max() > 0.03, "an adapter this weak would hide mistakes"
        assert (double(input_ids, adapters=[adapter] * 2) - expected).abs().max() < FP64_TOLERANCE


def randomize_b(reference: peft.PeftModel) -> None:
    """Some initialisations make it zero, or nearly."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "lora_B" in name:
                parameter.normal_()


# (family, changes of the model, settings of peft's LoraConfig, what the error says)
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "modules_to_save": ("qwen3", {}, {**Q, "modules_to_save": ["lm_head"]}, "modules_to_save"),
    "modules_to_save, a norm": ("qwen3", {}, {**Q, "modules_to_save": ["norm"]}, "modules_to_save"),
    "lora_bias": ("qwen3", {}, {**Q, "lora_bias": True}, "lora_bias"),
    "bias all": ("qwen3", {"attention_bias": True}, {**Q, "bias": "all"}, "k_proj.bias"),
    "bias lora_only": ("qwen3", {"attention_bias": True}, {**Q, "bias": "lora_only"}, "q_proj.base_layer.bias"),
    "dora of the embedding": ("qwen3", {}, {"target_modules": ["embed_tokens"], "use_dora": True}, "DoRA of"),
    "ensure_weight_tying": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        "ensure_weight_tying",
    ),
    "trainable_token_indices": ("qwen3", {}, {**Q, "trainable_token_indices": [3, 4]}, "trainable_token_indices"),
    "layer_replication": ("qwen3", {}, {**Q, "layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "aLoRA": ("qwen3", {}, {**Q, "alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "pissa": ("qwen3", {}, {**Q, "init_lora_weights": "pissa"}, "init_lora_weights"),
    "olora": ("qwen3", {}, {**Q, "init_lora_weights": "olora"}, "init_lora_weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_applied_is_refused(case: str, tmp_path: Path) -> None:
    family, changes, settings, message = REFUSED[case]
    make_adapter(tmp_path, family, settings, **changes)
    assert_refused(tmp_path, make_ours(make_reference(family, **changes)).config, message)


def assert_refused(directory: Path, config: Any, message: str) -> None:
    with pytest.raises(CodemillError) as caught:
        LoraAdapter.load(directory, config, torch.float32)
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_name_lies_in_a_directory_of_its_own(tmp_path: Path) -> None:
    reference = peft.get_peft_model(make_reference("qwen3"), peft.LoraConfig(r=2, **Q), adapter_name="mine")
    reference.save_pretrained(tmp_path)
    config = make_ours(make_reference("qwen3")).config
    assert LoraAdapter.load(tmp_path / "mine", config, torch.float32).name == "mine"
    assert_refused(tmp_path, config, "mine")


def test_tensors_in_the_old_format_are_refused(tmp_path: Path) -> None:
    """`adapter_model.bin`, which runs code when it is read."""
    reference = peft.get_peft_model(make_reference("qwen3"), peft.LoraConfig(r=2, **Q))
    reference.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert_refused(tmp_path, make_ours(make_reference("qwen3")).config, "as safetensors")


def write_config(directory: Path, **settings: Any) -> Path:
    directory.mkdir(exist_ok=True)
    text = json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 7, **settings})
    (directory / "adapter_config.json").write_text(text)
    return directory


def test_every_setting_of_peft_is_known(tmp_path: Path) -> None:
    """What a later one adds is refused until somebody has looked at what it does."""
    defaults = peft.LoraConfig(r=3, target_modules=["q_proj"]).to_dict()
    LoraConfig.load(write_config(tmp_path, **{**defaults, "target_modules": ["q_proj"]}))
    names = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert len(names) > 30
    for name in names:
        try:
            LoraConfig.load(write_config(tmp_path, **{name: "something"}))
        except CodemillError as error:
            assert "does not know" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("value", [True, {"rank": 2}, [1], "yes"], ids=str)
def test_an_unknown_setting_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="use_better_lora"):
        LoraConfig.load(write_config(tmp_path, use_better_lora=value))
    for off in (None, False, 0, [], {}, ""):
        LoraConfig.load(write_config(tmp_path, use_better_lora=off))
