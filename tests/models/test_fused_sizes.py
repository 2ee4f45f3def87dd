"""The fused decoder with sizes that are multiples of nothing, in every format, and with numbers at the edge."""

from pathlib import Path
from typing import Any

import pytest
import torch

from codemill.config import PackedFormat
from codemill.errors import CodemillError
from codemill.kernels import quantized_linear
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import packed_tensors
from codemill.models import CausalLM, load_model
from codemill.models.quantized import matrices, pack_modules, packed_weights
from codemill.models.safetensors_file import read_header, write_file
from codemill.models.skeleton import set_parameter
from models.fused_cases import CUTS, INPUT_IDS, ONE_BY_ONE, errors, make, reference_product, run
from models.precision import exact_logits, fp32_limit
from models.reference import FAMILIES, make_ours, make_reference

needs_library = pytest.mark.skipif(load_cpu_library() is None, reason="needs a C++ compiler at installation")

SIZES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"hidden_size": 40, "vocab_size": 101, "intermediate_size": 50, "num_attention_heads": 3,
               "num_key_value_heads": 1, "head_dim": 8}),
    ("qwen3", {"hidden_size": 33, "intermediate_size": 65, "num_attention_heads": 5, "num_key_value_heads": 5,
               "head_dim": 64}),
    ("qwen3", {"hidden_size": 100, "intermediate_size": 17, "num_attention_heads": 6, "head_dim": 80}),
    ("qwen3", {"hidden_size": 48, "intermediate_size": 31, "num_key_value_heads": 1, "head_dim": 128}),
    ("qwen3", {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256}),
    ("qwen3_moe", {"hidden_size": 36, "num_experts": 7, "num_experts_per_tok": 1, "moe_intermediate_size": 20}),
    ("qwen3_moe", {"num_experts": 5, "num_experts_per_tok": 5, "moe_intermediate_size": 33}),
    ("qwen3_moe", {"num_experts": 64, "num_experts_per_tok": 3, "moe_intermediate_size": 9, "norm_topk_prob": False}),
    ("qwen3_moe", {"num_experts": 4, "mlp_only_layers": [0], "intermediate_size": 70}),
    ("qwen3_next", {"hidden_size": 40, "head_dim": 64, "linear_key_head_dim": 24, "linear_value_head_dim": 40,
                    "linear_num_key_heads": 1, "linear_num_value_heads": 3, "num_experts": 9,
                    "num_experts_per_tok": 9, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20}),
    ("qwen3_next", {"hidden_size": 34, "linear_num_key_heads": 3, "linear_num_value_heads": 3,
                    "linear_conv_kernel_dim": 3, "linear_key_head_dim": 20, "linear_value_head_dim": 12}),
]  # fmt: skip


def assert_as_defined(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused decoder computes what the modules do with products as they are defined.

    Where they round to another side, an activation becomes another 8-bit integer, and from there on tokens may differ
    by some per cent, and so may those that attend to them. A mistake happens to all.
    """
    found = run(model)
    assert model._fused_decoder is not None
    monkeypatch.setattr(quantized_linear, "cpu_product", reference_product)
    expected = run(model, fuses=False)
    monkeypatch.undo()
    assert errors(found, expected).quantile(0.25) < 2e-6
    assert errors(found, expected).max() < 0.5


@needs_library
@pytest.mark.parametrize(("family", "changes"), SIZES)
def test_plain_weights(family: str, changes: dict[str, Any]) -> None:
    reference = make_reference(family, **changes)
    model, exact = make_ours(reference), exact_logits(reference, INPUT_IDS)
    limit = fp32_limit(reference, INPUT_IDS, exact) / 4
    for cuts in (CUTS, ONE_BY_ONE):
        assert (run(model, cuts) - exact).abs().max() < limit
    assert model._fused_decoder is not None


@needs_library
@pytest.mark.parametrize("quantization", ["int8", "int4:g64:asym:head8"])
@pytest.mark.parametrize(("family", "changes"), SIZES)
def test_packed_weights(
    family: str, changes: dict[str, Any], quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(family, quantization, tmp_path, **changes)
    assert_as_defined(model, monkeypatch)
    expected = run(model, [0, 30])
    assert torch.equal(run(model), expected)
    assert torch.equal(run(model, ONE_BY_ONE), expected)


def test_heads_that_the_library_does_not_take(tmp_path: Path) -> None:
    for quantization in (None, "int4"):
        model = make("qwen3", quantization, tmp_path, head_dim=20)
        assert torch.equal(run(model), run(model, fuses=False))
        assert model._fused_decoder is None


# By the last part of a weight's module, formats that are mixed in one layer where they may be.
MIXED: dict[str, dict[str, PackedFormat | None]] = {
    "int8 head": {"embed_tokens": PackedFormat(8), "lm_head": PackedFormat(8)},
    "plain head": {"embed_tokens": None, "lm_head": None},
    "groups": {"o_proj": PackedFormat(8, 64), "out_proj": PackedFormat(4, 64), "down_proj": PackedFormat(4, 64)},
    "asymmetric": {"o_proj": PackedFormat(4, 32, False), "v_proj": PackedFormat(8, 32, False),
                   "up_proj": PackedFormat(8, 32, False), "gate_up_proj": PackedFormat(8, 32, False)},
    "plain": {"o_proj": None, "out_proj": None, "down_proj": None},
}  # fmt: skip


def mixed(family: str, formats: dict[str, PackedFormat | None], dtype: torch.dtype) -> CausalLM:
    """Four bits but for some matrices; those that are not packed are in bf16."""
    model = make_ours(make_reference(family, hidden_size=96)).to(dtype)
    originals = matrices(model)

    def format_of(name: str) -> PackedFormat | None:
        parts = name.removesuffix(".weight").split(".")
        return formats.get(parts[-1], PackedFormat(4))

    pack_modules(model, format_of)
    for name, meta in packed_weights(model).items():
        packed = PackedMatrix.quantize(originals[name].detach(), meta.bits, meta.group_size, meta.symmetric)
        for key, tensor in packed_tensors(name, packed).items():
            set_parameter(model, key, tensor)
    return model


@needs_library
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_formats(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed(family, MIXED[name], torch.float32)
    kinds = {(each.bits, each.group_size, each.symmetric) for each in packed_weights(model).values()}
    assert len(kinds) > 1 or "plain" in name
    assert_as_defined(model, monkeypatch)


@needs_library
@pytest.mark.parametrize("formats", [{"k_proj": PackedFormat(4, 64)}, {"v_proj": None}, {"q_proj": None}])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_one_input_in_different_groups_are_left_to_the_modules(
    family: str, formats: dict[str, PackedFormat | None]
) -> None:
    model = mixed(family, formats, torch.float32)
    assert torch.equal(run(model), run(model, fuses=False))
    assert model._fused_decoder is None
    assert errors(run(mixed(family, {}, torch.float32)), run(model)).median() < 1


@needs_library
@pytest.mark.parametrize("quantization", [None, "int4", "int8:asym"])
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_that_are_not_finite_stay_in_their_sequence(
    family: str, quantization: str | None, tmp_path: Path
) -> None:
    """As do huge ones, zeros and denormals; nothing crashes, whatever the router makes of them."""
    model = make(family, quantization, tmp_path)
    model.set_batch_invariant()
    ids = INPUT_IDS.clone()
    ids[0, 10], ids[1] = 3, ids[1].clamp(4)
    expected = run(model, ids=ids)
    norm = model.model.layers[0].input_layernorm.weight
    if quantization is None:
        for value in (torch.nan, torch.inf, 1e38, 1e-42, 0.0):
            model.model.embed_tokens.weight.data[3] = value
            found = run(model, ids=ids)
            assert torch.equal(found[1], expected[1])
            assert torch.equal(found[0, :10], expected[0, :10])
            assert bool(found[0, 10].isfinite().all()) == (abs(value) < 1e39)
    for value in (torch.nan, torch.inf, 3e38, 1e-42, 0.0):
        norm.data.fill_(value)
        found = run(model, ids=ids)
        assert found.shape == expected.shape
        if value in (1e-42, 0.0):
            assert found.isfinite().all()
        elif value != 3e38:
            assert found[:, -1].isnan().all()


@needs_library
@pytest.mark.parametrize("quantization", ["int4", "int8", "int8:asym"])
def test_rows_of_zeros_and_an_outlier(quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make_reference("qwen3")
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "norm" not in name:
                weight[::3] = 0
        reference.model.embed_tokens.weight[:, 5] = 1e4
        reference.model.layers[0].mlp.down_proj.weight[7] *= 1e3
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path, quantization=quantization)
    assert run(model).isfinite().all()
    assert_as_defined(model, monkeypatch)


@pytest.mark.parametrize(("value", "expected"), [(1e9, "too large to quantise"), (torch.inf, "infinite")])
def test_weights_whose_scales_overflow_are_refused(value: float, expected: str, tmp_path: Path) -> None:
    make_reference("qwen3").save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = {key: stored.read().clone() for key, stored in read_header(path).items()}
    tensors[name][5, 5] = value
    write_file(path, tensors)
    for quantization in ("int4", "int8:asym"):
        with pytest.raises(CodemillError, match=f"{name}.*{expected}"):
            load_model(tmp_path, quantization=quantization)


@needs_library
@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("quantization", [None, "int4"])
def test_one_token_and_none(quantization: str | None, kv_dtype: torch.dtype | None, tmp_path: Path) -> None:
    model = make("qwen3_next", quantization, tmp_path)
    expected = run(model, [0, 30], kv_dtype=kv_dtype)
    found = run(model, [0, 1], kv_dtype=kv_dtype)
    assert errors(found, expected[:, :1]).max() < 1e-2  # the gated norm magnifies
    with torch.no_grad():
        assert model.logits(torch.empty(0, 32)).shape == (0, 97)
