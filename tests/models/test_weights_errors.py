"""Everything that can be wrong with a checkpoint is one line that names the file and the tensor."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codemill.errors import CodemillError, UsageError
from codemill.models import load_model, placement, save_pretrained
from models.reference import make_ours, make_reference

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.layers.0.self_attn.q_norm.weight"
EXPERT = "model.layers.1.mlp.experts.6.up_proj.weight"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A mixture-of-experts model in one file."""
    save_pretrained(make_ours(make_reference("qwen3_moe")), tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_pretrained(make_ours(make_reference("qwen3_moe")), tmp_path, max_shard_bytes=40_000)
    return tmp_path


def fails(directory: Path, *parts: str) -> str:
    """Loading raises one line that holds each of `parts`."""
    with pytest.raises(CodemillError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(directory / WEIGHTS)
    state = {name: tensor.clone() for name, tensor in state.items()}
    change(state)
    save_file(state, directory / WEIGHTS)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + blob[8 + length :])


def test_missing_tensor(single: Path) -> None:
    edit_tensors(single, lambda state: state.pop(EXPERT))
    fails(single, WEIGHTS, f"1 tensor ({EXPERT}) is missing")


def test_many_missing_tensors_are_counted(single: Path) -> None:
    edit_json(single / "config.json", num_hidden_layers=5, layer_types=["full_attention"] * 5)
    message = fails(single, "99 tensors (model.layers.2.self_attn.q_proj.weight, ", ", ...) are missing")
    assert message.count("model.layers.") == 3


def test_an_untied_model_needs_its_head(single: Path) -> None:
    edit_tensors(single, lambda state: state.pop("lm_head.weight"))
    fails(single, "1 tensor (lm_head.weight) is missing")


def test_unexpected_tensor(single: Path) -> None:
    edit_tensors(single, lambda state: state.update({"model.layers.0.adapter.weight": torch.ones(2)}))
    fails(single, WEIGHTS, "1 tensor (model.layers.0.adapter.weight) is not part of a qwen3_moe model")


@pytest.mark.parametrize("name", [NORM, EXPERT])
def test_wrong_shape_tells_both(single: Path, name: str) -> None:
    edit_tensors(single, lambda state: state.update({name: torch.ones(3, 5)}))
    expected = [16] if name == NORM else [24, 32]
    fails(single, WEIGHTS, name, "[3, 5]", f"config.json makes it {expected}")


def test_truncated_body_names_the_first_tensor_beyond_the_end(single: Path) -> None:
    path = single / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    fails(single, f"{path} is truncated: tensor ", "ends at byte")


@pytest.mark.parametrize("size", [0, 5, 8, 60])
def test_truncated_header(single: Path, size: int) -> None:
    path = single / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    fails(single, f"{path} is truncated or no safetensors file ({size} bytes)")


def test_stray_bytes(single: Path) -> None:
    path = single / WEIGHTS
    path.write_bytes(path.read_bytes() + b"tail")
    fails(single, f"{path} is corrupt", "do not add up")


def test_tensors_that_overlap(single: Path) -> None:
    other = "model.layers.1.self_attn.q_norm.weight"
    edit_header(single / WEIGHTS, lambda header: header[NORM].update(data_offsets=header[other]["data_offsets"]))
    fails(single, WEIGHTS, "is corrupt: tensor ", "begins at byte")


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b"{]", b"\xff\xfe{}", b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32"}}']
)
def test_corrupt_header(single: Path, header: bytes) -> None:
    path = single / WEIGHTS
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    fails(single, str(path), "corrupt")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"shape": [-16]}, "is corrupt"),
        ({"shape": ["x"]}, "is corrupt"),
        ({"shape": [15]}, "[15]"),
        ({"dtype": "F16"}, "has 64 bytes"),
        ({"dtype": "I4"}, "dtype I4, which is not supported"),
        ({"dtype": ["F32"]}, "is corrupt"),
        ({"shape": [True, 16]}, "is corrupt"),
        ({"data_offsets": [8, 0]}, "has -8 bytes"),
        ({"data_offsets": [0]}, "is corrupt"),
    ],
)
def test_corrupt_header_entry_names_the_tensor(single: Path, entry: dict[str, Any], expected: str) -> None:
    edit_header(single / WEIGHTS, lambda header: header[NORM].update(entry))
    fails(single, WEIGHTS, NORM, expected)


def test_git_lfs_pointer(single: Path) -> None:
    (single / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    fails(single, WEIGHTS, "Git LFS pointer", "git lfs pull")


def test_index_that_points_nowhere(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    fails(sharded, INDEX, f"points to {shard.name}, which does not exist")


def test_index_does_not_leave_the_directory(sharded: Path) -> None:
    (sharded.parent / "other.safetensors").write_bytes(b"")
    edit_json(sharded / INDEX, weight_map={NORM: "../other.safetensors"})
    fails(sharded, INDEX, "../other.safetensors")


def test_index_that_names_the_wrong_file(sharded: Path) -> None:
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    other = next(file for file in weight_map.values() if file != weight_map[NORM])
    edit_json(sharded / INDEX, weight_map={**weight_map, NORM: other})
    fails(sharded, INDEX, f"tensor {NORM} is said to be in {other}")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_invalid_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    fails(sharded, INDEX)


def test_truncated_shard(sharded: Path) -> None:
    shard = max(sharded.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    fails(sharded, f"{shard} is truncated: tensor ")


def test_directory_without_config(single: Path) -> None:
    (single / "config.json").unlink()
    fails(single, "config.json does not exist", "Hugging Face model directory")


def test_directory_without_weights(single: Path) -> None:
    (single / WEIGHTS).unlink()
    fails(single, f"{single} holds no weights", WEIGHTS, INDEX)


def test_unknown_architecture(single: Path) -> None:
    edit_json(single / "config.json", model_type="llama")
    fails(single, "config.json", "unknown architecture", "'llama'")


def test_unsupported_quantization(single: Path) -> None:
    edit_json(single / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    fails(single, "config.json", "'gptq'", "is not supported")


def test_weights_of_an_unsupported_dtype(single: Path) -> None:
    edit_tensors(single, lambda state: state.update({EXPERT: torch.ones(24, 32, dtype=torch.int8)}))
    fails(single, WEIGHTS, f"tensor {EXPERT} has dtype I8")


def test_not_enough_memory_is_said_before_anything_is_read(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "available_memory", lambda: 90_000)
    (single / WEIGHTS).write_bytes(b"")
    fails(single, "not enough memory", "GiB as float32", "available on cpu", "bf16")
    with pytest.raises(CodemillError, match=r"as bfloat16.*quantization int4 takes 0\.0 GiB"):
        load_model(single, dtype="bf16")
    monkeypatch.setattr(placement, "available_memory", lambda: 9_000)
    for quantization in (None, "int4"):
        with pytest.raises(CodemillError, match=r"as (bfloat16|int4).*choose a smaller model"):
            load_model(single, dtype="bf16", quantization=quantization)


def test_memory_counts_the_dtype_asked_for(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_parameters = sum(parameter.numel() for parameter in load_model(single).parameters())
    monkeypatch.setattr(placement, "available_memory", lambda: 3 * num_parameters)
    fails(single, "not enough memory")
    load_model(single, dtype="bf16")


def test_memory_of_a_preset() -> None:
    with pytest.raises(CodemillError, match=r"random:qwen3-coder-480b-a35b: not enough memory: .* 894\.4 GiB"):
        load_model("random:qwen3-coder-480b-a35b")


@pytest.mark.parametrize("dtype", ["int8", "", "fp64", torch.int64])
def test_unknown_dtype_lists_the_choices(single: Path, dtype: Any) -> None:
    with pytest.raises(UsageError, match=r"dtype .* not supported: choose auto, float32, bfloat16"):
        load_model(single, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "xpu", "meta", "cuda:x"])
def test_unknown_device(single: Path, device: str) -> None:
    with pytest.raises(UsageError, match=re.escape(device)):
        load_model(single, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_a_gpu(single: Path) -> None:
    with pytest.raises(UsageError, match="device cuda is not available: this torch sees no GPU"):
        load_model(single, device="cuda")
    assert load_model(single, device="auto").device.type == "cpu"
