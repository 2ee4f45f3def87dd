"""Block-FP8 checkpoints are dequantised to what a plain fp32 oracle, and `transformers`, make of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from codemill.errors import CodemillError
from codemill.models import load_model, save_pretrained
from codemill.models.fp8 import FP8_DTYPE, dequantize, scale_shape
from models.reference import make_ours, make_reference

PROJECTION = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.0.self_attn.q_norm.weight"
NOT_CONVERTED = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "conv1d", "A_log", "dt_bias", "in_proj_ba", "_gate.")


def oracle(weight: Tensor, scale: Tensor, block_size: tuple[int, int]) -> Tensor:
    """fp32 [O, I], one element after the other in plain arithmetic."""
    rows, columns = block_size
    out = torch.empty(weight.shape)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            out[i, j] = weight[i, j].float() * scale[i // rows, j // columns].float()
    return out


def quantize(weight: Tensor, block_size: tuple[int, int], scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """E4M3 [O, I] and scales, by the largest magnitude of each block."""
    rows, columns = block_size
    grid = scale_shape(tuple(weight.shape), block_size)
    padded = torch.zeros(grid[0] * rows, grid[1] * columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(grid[0], rows, grid[1], columns)
    scale = (blocks.abs().amax(dim=(1, 3)) / 448).clamp_min(1e-6).to(scale_dtype)
    values = (blocks / scale.float()[:, None, :, None]).clamp(-448, 448).view(padded.shape)
    return values[: weight.shape[0], : weight.shape[1]].to(FP8_DTYPE).contiguous(), scale


def make_fp8(
    directory: Path, family: str, block_size: tuple[int, int], scale_dtype: torch.dtype, **changes: Any
) -> None:
    """A block-FP8 checkpoint of a tiny model, as the published ones are laid out."""
    ours = make_ours(make_reference(family, **changes))
    save_pretrained(ours, directory)
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if any(part in name for part in NOT_CONVERTED):
            state[name] = tensor.to(torch.bfloat16)
        else:
            state[name], state[name + "_scale_inv"] = quantize(tensor, block_size, scale_dtype)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(block_size),
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
    }
    path = directory / "config.json"
    raw = {**json.loads(path.read_text()), "dtype": "bfloat16", "quantization_config": quantization}
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "block_size"),
    [((256, 128), (128, 128)), ((130, 257), (128, 128)), ((5, 3), (128, 128)), ((7, 9), (2, 4)), ((1, 129), (64, 128))],
)
def test_dequantize_equals_the_oracle(
    shape: tuple[int, int], block_size: tuple[int, int], scale_dtype: torch.dtype
) -> None:
    weight, scale = quantize(torch.randn(shape), block_size, scale_dtype)
    assert scale.shape == (math.ceil(shape[0] / block_size[0]), math.ceil(shape[1] / block_size[1]))
    expected = oracle(weight, scale, block_size)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = torch.empty(shape, dtype=dtype)
        dequantize(weight, scale, block_size, out)
        assert torch.equal(out, expected.to(dtype))


def test_dequantize_in_chunks_and_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [quantize(torch.randn(300, 200), (128, 128), torch.float32) for _ in range(3)]
    expected = torch.empty(3, 300, 200)
    for (weight, scale), out in zip(pairs, expected, strict=True):
        dequantize(weight, scale, (128, 128), out)
    monkeypatch.setattr("codemill.models.fp8._CHUNK_ELEMENTS", 1)
    out = torch.empty_like(expected)
    weights, scales = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    dequantize(weights, scales, (128, 128), out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_loaded_weights_equal_the_oracle(tmp_path: Path, family: str) -> None:
    block_size = (24, 20)  # no size of the model is a multiple of both
    make_fp8(tmp_path, family, block_size, torch.float16)
    model = load_model(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model.config.fp8 is None
    state = load_file(tmp_path / "model.safetensors")
    save_pretrained(model, tmp_path / "saved")
    for name, tensor in load_file(tmp_path / "saved" / "model.safetensors").items():
        stored = state[name]
        if stored.dtype == FP8_DTYPE:
            stored = oracle(stored, state[name + "_scale_inv"], block_size)
        assert torch.equal(tensor, stored.to(torch.bfloat16)), name
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_equals_transformers_dequantizing_on_the_cpu(tmp_path: Path, family: str) -> None:
    # transformers wants whole blocks, and takes the block size from the shape of the scales.
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "moe_intermediate_size": 32}
    sizes = sizes if family == "qwen3_moe" else {key: sizes[key] for key in list(sizes)[:3]}
    make_fp8(tmp_path, family, (32, 32), torch.float32, **sizes)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    state = reference.state_dict()
    for name, parameter in load_model(tmp_path).named_parameters():
        assert torch.equal(parameter, state[name]), name


def edit(directory: Path, **tensors: Tensor | None) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    state |= {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file({k: v for k, v in state.items() if tensors.get(k, v) is not None}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({PROJECTION + "_scale_inv": None}, f"tensor {PROJECTION} is FP8, but {PROJECTION}_scale_inv is missing"),
        ({PROJECTION: torch.ones(64, 32)}, f"{PROJECTION}_scale_inv scales {PROJECTION}, which is not in FP8"),
        (
            {PROJECTION + "_scale_inv": torch.ones(2, 2)},
            r"\[2, 2\], but blocks of \[32, 32\] need floats of .* \[2, 1\]",
        ),
        ({PROJECTION + "_scale_inv": torch.ones(2, 1, dtype=torch.float64)}, "float64"),
        (
            {NORM: torch.ones(16).to(FP8_DTYPE), NORM + "_scale_inv": torch.ones(1)},
            rf"tensor {NORM} is FP8 \[16\]: only matrices can be",
        ),
        ({"model.layers.9.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}, "scale of a weight that is missing"),
    ],
)
def test_bad_scales_are_named(tmp_path: Path, tensors: dict[str, Tensor | None], expected: str) -> None:
    make_fp8(tmp_path, "qwen3", (32, 32), torch.float32)
    edit(tmp_path, **tensors)
    with pytest.raises(CodemillError, match=rf"model\.safetensors: .*{expected}"):
        load_model(tmp_path)


def test_fp8_without_a_quantization_config(tmp_path: Path) -> None:
    make_fp8(tmp_path, "qwen3", (32, 32), torch.float32)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "quantization_config"}))
    with pytest.raises(CodemillError, match=r"is FP8, but config\.json has no quantization_config"):
        load_model(tmp_path)
