"""Damaged and foreign model directories: every command says in one line which file is wrong, and why."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codemill.models.quantize_directory import quantize_model
from codemill.models.safetensors_file import read_header, write_file
from commands.conftest import Run

WEIGHTS, CONFIG = "model.safetensors", "config.json"
QUERY = "model.layers.0.self_attn.q_proj.weight"
COMMANDS = [
    ("generate", "x", "--max-tokens", "2", "--model"),
    ("eval", "perplexity", "--data", __file__, "--limit", "1", "--model"),
]


@pytest.fixture(scope="module")
def original(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "int4"
    quantize_model(model_directory, folder, "int4:asym")
    for path in model_directory.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        raw = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps({**raw, **changes}))

    return change


def change_tensor(name: str, changed: torch.Tensor | None = None) -> Callable[[Path], None]:
    """Without a tensor: leave it out."""

    def change(directory: Path) -> None:
        tensors = {key: stored.read().clone() for key, stored in read_header(directory / WEIGHTS).items()}
        del tensors[name]
        write_file(directory / WEIGHTS, tensors if changed is None else {**tensors, name: changed})

    return change


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:size])


def foreign(method: str, **more: Any) -> Callable[[Path], None]:
    return change_config(quantization_config={"quant_method": method, **more})


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no weight": (change_tensor(QUERY), WEIGHTS, QUERY),
    "no scale": (change_tensor(f"{QUERY}_scale"), WEIGHTS, f"{QUERY}_scale"),
    "no minimum": (change_tensor(f"{QUERY}_minimum"), WEIGHTS, QUERY),
    "shape": (change_tensor(QUERY, torch.zeros(4, 3, 256, dtype=torch.uint8)), WEIGHTS, QUERY),
    "dtype": (change_tensor(QUERY, torch.zeros(4, 1, 256)), WEIGHTS, QUERY),
    "scale's dtype": (change_tensor(f"{QUERY}_scale", torch.zeros(4, 1, 16)), WEIGHTS, f"{QUERY}_scale"),
    "scale's shape": (change_tensor(f"{QUERY}_scale", torch.zeros(4, 16).half()), WEIGHTS, f"{QUERY}_scale"),
    "a tensor too many": (change_tensor("model.norm.weight", torch.zeros(31)), WEIGHTS, "model.norm.weight"),
    "half a file": (cut(WEIGHTS, 20_000), WEIGHTS, "truncated"),
    "half a header": (cut(WEIGHTS, 100), WEIGHTS, ""),
    "no header": (cut(WEIGHTS, 3), WEIGHTS, ""),
    "an empty file": (cut(WEIGHTS, 0), WEIGHTS, ""),
    "half a config": (cut(CONFIG, 50), CONFIG, "JSON"),
    "no file": (lambda directory: (directory / WEIGHTS).unlink(), "", "safetensors"),
    "gptq": (foreign("gptq", bits=4, group_size=128, desc_act=False, sym=True), CONFIG, "'gptq'"),
    "awq": (foreign("awq", bits=4, group_size=128, zero_point=True, version="gemm"), CONFIG, "'awq'"),
    "bitsandbytes": (foreign("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"), CONFIG, "'bitsandbytes'"),
    "hqq": (foreign("hqq", quant_config={"weight_quant_params": {"nbits": 4}}), CONFIG, "'hqq'"),
    "mxfp4": (foreign("mxfp4", modules_to_not_convert=["lm_head"]), CONFIG, "'mxfp4'"),
    "compressed-tensors": (foreign("compressed-tensors", config_groups={}), CONFIG, "'compressed-tensors'"),
    "no method": (change_config(quantization_config={"bits": 4, "group_size": 32}), CONFIG, "quant"),
    "a list": (change_config(quantization_config=[4]), CONFIG, "quantization_config"),
    "a word": (change_config(quantization_config="int4"), CONFIG, "quantization_config"),
    "bits": (foreign("codemill", bits=3, group_size=32, symmetric=False, head_bits=None), CONFIG, "bits"),
    "group size": (foreign("codemill", bits=4, group_size=7, symmetric=False, head_bits=None), CONFIG, "group_size"),
    "nothing said": (foreign("codemill"), CONFIG, "quantization_config"),
    "another model": (change_config(head_dim=32), WEIGHTS, "proj"),
    "not quantised": (change_config(quantization_config=None), WEIGHTS, ""),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=["generate", "perplexity"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(codemill: Run, directory: Path, damage: str, command: tuple) -> None:
    change, file, text = DAMAGE[damage]
    change(directory)
    done = codemill(*command, directory)
    assert done.status != 0
    assert str(directory) in done.error
    assert file in done.error
    assert text in done.error


def test_what_is_whole_loads(codemill: Run, directory: Path) -> None:
    for command in COMMANDS:
        assert codemill(*command, directory).status == 0


def test_flipped_bytes_never_end_in_a_traceback(codemill: Run, directory: Path) -> None:
    """Of headers and configs: whatever loads all the same, or is refused, in one line."""
    rng = random.Random(0)
    whole = {name: (directory / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    for _ in range(60):
        name = rng.choice([WEIGHTS, CONFIG])
        data = bytearray(whole[name])
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(min(len(data), 4000))] = rng.randrange(256)
        (directory / name).write_bytes(data)
        done = codemill(*COMMANDS[0], directory)
        assert done.status == 0 or done.error
        (directory / name).write_bytes(whole[name])
