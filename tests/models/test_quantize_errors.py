"""Directories of quantised weights: what is wrong with them is said in one line that names it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codemill.errors import CodemillError
from codemill.models import load_model
from codemill.models.quantize_directory import quantize_model
from codemill.models.safetensors_file import read_header, write_file
from models.reference import make_reference

WEIGHTS = "model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj.weight"
CODEMILL = {"quant_method": "codemill", "bits": 4, "group_size": 32, "symmetric": True, "head_bits": None}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    make_reference("qwen3_moe").save_pretrained(directory)
    return directory


@pytest.fixture
def quantised(original: Path, tmp_path: Path) -> Path:
    quantize_model(original, tmp_path / "small", "int4")
    return tmp_path / "small"


def fails(directory: Path, *expected: str) -> None:
    with pytest.raises(CodemillError) as failure:
        load_model(directory)
    message = str(failure.value)
    assert "\n" not in message
    assert str(directory) in message
    for text in expected:
        assert text in message


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"] = {**raw["quantization_config"], **changes} if changes else None
    path.write_text(json.dumps(raw))


def change_tensors(directory: Path, **changes: Tensor | None) -> None:
    tensors = {name: stored.read().clone() for name, stored in read_header(directory / WEIGHTS).items()}
    tensors |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    write_file(directory / WEIGHTS, {name: x for name, x in tensors.items() if changes.get(name, x) is not None})


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors"])
def test_foreign_quantisation_is_refused(quantised: Path, method: str) -> None:
    change_config(quantised, quant_method=method)
    fails(quantised, "config.json", repr(method), "not supported")


@pytest.mark.parametrize(
    "changes", [{"bits": 5}, {"bits": "4"}, {"bits": [4]}, {"group_size": 0}, {"symmetric": 3}, {"head_bits": 2}]
)
def test_a_quantization_config_that_is_none(quantised: Path, changes: dict[str, Any]) -> None:
    change_config(quantised, **changes)
    fails(quantised, "config.json", next(iter(changes)))


def test_a_quantization_config_of_a_newer_version(quantised: Path) -> None:
    change_config(quantised, rotation="hadamard")
    fails(quantised, "config.json", "'rotation'", "newer Codemill")


def test_packed_tensors_without_a_quantization_config(quantised: Path) -> None:
    change_config(quantised)
    fails(quantised, WEIGHTS)


def test_a_quantization_config_without_packed_tensors(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "copy")
    raw = json.loads((tmp_path / "copy/config.json").read_text())
    (tmp_path / "copy/config.json").write_text(json.dumps({**raw, "quantization_config": CODEMILL}))
    fails(tmp_path / "copy", WEIGHTS, "no tensor is packed")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (QUERY, torch.zeros(4, 1, 256, dtype=torch.uint8)[..., :200].clone()),
        (QUERY, torch.zeros(3, 1, 256, dtype=torch.uint8)),
        (QUERY, torch.zeros(7, dtype=torch.uint8)),
        (QUERY, torch.zeros(64, 32)),
        (f"{QUERY}_scale", None),
        (f"{QUERY}_scale", torch.zeros(4, 1, 16)),
        (f"{QUERY}_scale", torch.zeros(4, 2, 16, dtype=torch.float16)),
        (f"{QUERY}_minimum", torch.zeros(4, 2, 16, dtype=torch.float16)),
        (f"{QUERY}_scale_inv", torch.zeros(1, 1)),
        ("model.norm.weight", torch.zeros(32, dtype=torch.uint8)),
        ("model.layers.1.mlp.experts.down_proj", None),
    ],
)
def test_tensors_that_do_not_fit_are_named(quantised: Path, name: str, tensor: Tensor | None) -> None:
    change_tensors(quantised, **{name: tensor})
    fails(quantised, WEIGHTS, name)


def test_a_truncated_file(quantised: Path) -> None:
    path = quantised / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    fails(quantised, WEIGHTS, "truncated")


def test_another_models_config(quantised: Path) -> None:
    path = quantised / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 64, "head_dim": 32}))
    fails(quantised, WEIGHTS, "q_proj")
