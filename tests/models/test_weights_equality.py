"""Weights in and out: we load what `transformers` saves, it loads what we save, and the logits are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from codemill.models import CausalLM, load_model, save_pretrained
from models.precision import assert_same_network
from models.reference import FAMILIES, make_ours, make_reference

CASES = [
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"tie_word_embeddings": False}),
    ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
    ("qwen3_moe", {"tie_word_embeddings": True}),
    ("qwen3_moe", {"num_experts": 5, "mlp_only_layers": [0], "num_hidden_layers": 3}),
    ("qwen3_next", {"tie_word_embeddings": False}),
    ("qwen3_next", {"tie_word_embeddings": True}),
]
SHARDS = {"single": 10**9, "sharded": 30_000}
INPUT_IDS = torch.arange(70)[None] % 97


def load_reference(directory: Path, **options: Any) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", experts_implementation="eager", **options
    ).eval()


def assert_same_weights(ours: CausalLM, reference: transformers.PreTrainedModel) -> None:
    """Bit for bit and dtype for dtype; in memory both stack the experts under the same names."""
    state = reference.state_dict()
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == state[name].dtype, name
        assert torch.equal(parameter, state[name]), name


@pytest.mark.parametrize("max_shard_bytes", SHARDS.values(), ids=SHARDS)
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_we_load_what_transformers_saves(
    tmp_path: Path, family: str, changes: dict[str, Any], max_shard_bytes: int
) -> None:
    reference = make_reference(family, **changes)
    reference.save_pretrained(tmp_path, max_shard_size=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes == SHARDS["sharded"])
    ours = load_model(tmp_path)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert_same_weights(ours, reference)
    assert_same_network(ours, reference, INPUT_IDS)


@pytest.mark.parametrize("max_shard_bytes", SHARDS.values(), ids=SHARDS)
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_transformers_loads_what_we_save(
    tmp_path: Path, family: str, changes: dict[str, Any], max_shard_bytes: int
) -> None:
    ours = make_ours(make_reference(family, **changes))
    save_pretrained(ours, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes == SHARDS["sharded"])
    reference = load_reference(tmp_path)
    assert_same_weights(ours, reference)
    assert_same_network(ours, reference, INPUT_IDS)
    assert torch.equal(load_model(tmp_path)(INPUT_IDS), ours(INPUT_IDS))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("stored", "wanted"), [("float32", "bf16"), ("bfloat16", "fp32"), ("float16", "auto")])
def test_conversion_is_that_of_transformers(tmp_path: Path, family: str, stored: str, wanted: str) -> None:
    make_reference(family).to(getattr(torch, stored)).save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=wanted)
    assert_same_weights(ours, load_reference(tmp_path, dtype=ours.dtype))
    assert ours.config.dtype == {"bf16": "bfloat16", "fp32": "float32", "auto": "float16"}[wanted]


def test_dtype_may_be_a_torch_dtype_and_defaults_to_that_of_the_weights(tmp_path: Path) -> None:
    reference = make_reference("qwen3")
    reference.save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.float16).dtype == torch.float16
    assert load_model(tmp_path, dtype="torch.float16").dtype == torch.float16
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float32",', ""))
    assert load_model(str(tmp_path), dtype="auto").dtype == torch.float32
    assert load_model(tmp_path, dtype="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
def test_experts_lie_on_disk_one_by_one(tmp_path: Path, family: str) -> None:
    ours = make_ours(make_reference(family))
    save_pretrained(ours, tmp_path)
    state, size = load_file(tmp_path / "model.safetensors"), 24
    experts = ours.model.layers[1].mlp.experts
    prefix = "model.layers.1.mlp.experts"
    assert torch.equal(state[f"{prefix}.3.gate_proj.weight"], experts.gate_up_proj[3, :size])
    assert torch.equal(state[f"{prefix}.3.up_proj.weight"], experts.gate_up_proj[3, size:])
    assert torch.equal(state[f"{prefix}.7.down_proj.weight"], experts.down_proj[7])
    assert f"{prefix}.gate_up_proj" not in state


def test_fused_experts_on_disk_are_accepted(tmp_path: Path) -> None:
    ours = make_ours(make_reference("qwen3_moe"))
    save_pretrained(ours, tmp_path)
    save_file({name: tensor.clone() for name, tensor in ours.state_dict().items()}, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path)(INPUT_IDS), ours(INPUT_IDS))


def test_the_head_of_a_tied_model_and_mtp_layers_on_disk_are_ignored(tmp_path: Path) -> None:
    ours = make_ours(make_reference("qwen3_next", tie_word_embeddings=True))
    save_pretrained(ours, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    extra = {"lm_head.weight": torch.zeros(3), "mtp.fc.weight": torch.zeros(2, 2)}
    save_file({**state, **extra}, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path)(INPUT_IDS), ours(INPUT_IDS))


def test_misaligned_tensors_are_read(tmp_path: Path) -> None:
    """The format allows a header of any length, so tensors need not start at a multiple of their item size."""
    ours = make_ours(make_reference("qwen3"))
    save_pretrained(ours, tmp_path)
    path = tmp_path / "model.safetensors"
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + blob[8 : 8 + length] + b" " + blob[8 + length :])
    assert torch.equal(load_model(tmp_path)(INPUT_IDS), ours(INPUT_IDS))


def test_training_a_mapped_model_leaves_the_file_alone(tmp_path: Path) -> None:
    save_pretrained(make_ours(make_reference("qwen3")), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_model(tmp_path, trainable=True)
    model(INPUT_IDS).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model(INPUT_IDS), load_model(tmp_path)(INPUT_IDS))
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_to_the_gpu_and_back(tmp_path: Path, family: str) -> None:
    ours = make_ours(make_reference(family))
    save_pretrained(ours, tmp_path / "cpu")
    on_gpu = load_model(tmp_path / "cpu", device="cuda")
    assert on_gpu.device.type == "cuda"
    save_pretrained(on_gpu, tmp_path / "gpu", max_shard_bytes=30_000)
    assert torch.equal(load_model(tmp_path / "gpu")(INPUT_IDS), ours(INPUT_IDS))
