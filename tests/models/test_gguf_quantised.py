"""Models of quantised GGUF files: matrices stay quantised on a CPU, and give what the same weights give otherwise."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from codemill.config import PackedFormat, QuantizationConfig
from codemill.errors import CodemillError, UsageError
from codemill.kernels.cpu_library import load_cpu_library
from codemill.models import Cache, CausalLM, load_model, placement, save_pretrained
from codemill.models.convert import convert
from codemill.models.quantized import matrices, named_weights, packed_weights
from models.gguf_files import FAMILIES, rewrite_quantised, save_tiny

INPUT_IDS = torch.tensor([[5, 1, 80, 3, 3, 41, 7, 96, 12, 60]])
# Rows of 32 times an odd number, experts of one block, blocks of 16 rows that are not full.
SMALL = {"hidden_size": 96, "intermediate_size": 160, "moe_intermediate_size": 32}
SMALL_HYBRID = {**SMALL, "linear_value_head_dim": 40, "shared_expert_intermediate_size": 32}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256}
WIDE_HYBRID = {**WIDE, "linear_value_head_dim": 64, "shared_expert_intermediate_size": 256}


def small_file(directory: Path, family: str, kind: str) -> Path:
    save_tiny(directory / "model", family, **(SMALL_HYBRID if family == "qwen3_next" else SMALL))
    assert convert(directory / "model", directory / "small.gguf", kind).fallback == ()
    return directory / "small.gguf"


def wide_file(directory: Path, family: str, kind_of: Callable[[str], Kind | None], **changes: object) -> Path:
    """Rows of whole blocks of 256, most of them; those of `o_proj` are too short for K-quants."""
    save_tiny(directory / "model", family, **((WIDE_HYBRID if family == "qwen3_next" else WIDE) | changes))
    convert(directory / "model", directory / "f32.gguf", "f32")
    rewrite_quantised(directory / "f32.gguf", directory / "wide.gguf", kind_of)
    return directory / "wide.gguf"


def q4_k_m(name: str) -> Kind:
    """As llama-quantize mixes them."""
    if name.startswith("output") or "attn_v" in name or "ffn_down" in name:
        return Kind.Q6_K
    return Kind.Q5_K if "attn_qkv" in name else Kind.Q4_K


def dequantised(model: CausalLM) -> dict[str, Tensor]:
    """All weights in fp32."""
    weights = named_weights(model).items()
    return {name: (each.float() if isinstance(each, Tensor) else each.dequantize()) for name, each in weights}


@torch.no_grad()
def logits(model: CausalLM, fuses: bool = True) -> Tensor:
    """Of one token after the other."""
    model.fuses = fuses
    cache = Cache.allocate(model.config, 1, 40)
    out = torch.cat([model(INPUT_IDS[:, [at]], cache) for at in range(INPUT_IDS.shape[1])], dim=1)
    if fuses and load_cpu_library() is not None:
        assert model._fused_decoder is not None
    return out


@torch.no_grad()
def greedy(model: CausalLM, length: int = 24) -> list[int]:
    cache = Cache.allocate(model.config, 1, 40)
    last, found = INPUT_IDS, []
    for _ in range(length):
        last = model(last, cache)[:, -1:].argmax(dim=-1)
        found.append(int(last))
    return found


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_file(tmp_path: Path, family: str, kind: str) -> None:
    path = small_file(tmp_path, family, kind)
    model = load_model(path, "float32")
    plain = load_model(path, "float32", quantization="none")
    packed = packed_weights(model)
    assert packed.keys() == matrices(plain).keys()
    bits = 8 if kind == "q8_0" else 4
    assert {(each.bits, each.group_size, each.symmetric) for each in packed.values()} == {(bits, 32, True)}
    assert model.config.quantization == QuantizationConfig(bits)
    found, expected = dequantised(model), dict(plain.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_the_same_matrices_in_a_directory(tmp_path: Path, family: str, kind: str) -> None:
    model = load_model(small_file(tmp_path, family, kind))
    save_pretrained(model, tmp_path / "saved")
    saved = load_model(tmp_path / "saved", quantization="int8" if kind == "q8_0" else "int4")
    assert torch.equal(logits(model), logits(saved))
    assert greedy(model) == greedy(saved)


@pytest.mark.parametrize("family", FAMILIES)
def test_formats_may_differ_from_matrix_to_matrix(tmp_path: Path, family: str) -> None:
    path = wide_file(tmp_path, family, q4_k_m)
    model, plain = load_model(path, "float32"), load_model(path, "float32", quantization="none")
    packed = packed_weights(model)
    formats = {name: PackedFormat(each.bits, each.group_size, each.symmetric) for name, each in packed.items()}
    assert formats["model.embed_tokens.weight"] == PackedFormat(4, 32, False)
    assert formats["lm_head.weight"] == PackedFormat(8, 32, True)
    assert not any("o_proj" in name for name in formats)  # rows of 64: F32 in this file
    if family == "qwen3_next":
        assert formats["model.layers.0.linear_attn.in_proj_qkvz.weight"] == PackedFormat(8, 32, False)
        assert "model.layers.0.linear_attn.in_proj_ba.weight" not in formats
    found = dequantised(model)
    for name, weight in plain.named_parameters():
        if name in formats:
            error = (found[name] - weight).square().mean().sqrt() / weight.square().mean().sqrt()
            assert error < (6e-3 if formats[name].bits == 8 and formats[name].symmetric else 4e-4), name
        else:
            assert torch.equal(found[name], weight), name
    modules, fused, exact = logits(model, fuses=False), logits(model), logits(plain)
    size = exact.abs().max()
    assert (fused - modules).abs().max() < 0.02 * size
    assert (fused - exact).abs().max() < 0.1 * size  # activations are in 8 bits
    assert (fused.argmax(-1) == modules.argmax(-1)).float().mean() > 0.8
    save_pretrained(model, tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved")), fused)


def test_a_tied_embedding_is_packed_once(tmp_path: Path) -> None:
    path = wide_file(tmp_path, "qwen3", lambda _: Kind.Q6_K, tie_word_embeddings=True)
    model = load_model(path)
    assert "lm_head.weight" not in packed_weights(model)
    assert packed_weights(model)["model.embed_tokens.weight"].bits == 8
    logits(model)


def test_a_part_that_is_not_quantised_leaves_the_whole_plain(tmp_path: Path) -> None:
    """Of the experts of one layer, and of in_proj_qkvz."""
    kinds = {"ffn_up_exps": None, "attn_gate": None}
    path = wide_file(tmp_path, "qwen3_next", lambda name: kinds.get(name.split(".")[-2], Kind.Q4_K))
    model, plain = load_model(path, "float32"), load_model(path, "float32", quantization="none")
    names = packed_weights(model).keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" not in names
    assert "model.layers.0.linear_attn.in_proj_qkvz.weight" not in names
    assert "model.layers.0.mlp.experts.down_proj" in names
    assert torch.equal(model.model.layers[0].mlp.experts.gate_up_proj, plain.model.layers[0].mlp.experts.gate_up_proj)
    exact = logits(plain)
    assert (logits(model, fuses=False) - exact).abs().max() < 0.1 * exact.abs().max()


def test_inputs_shared_by_plain_and_packed_weights_do_without_the_fused_step(tmp_path: Path) -> None:
    path = wide_file(tmp_path, "qwen3", lambda name: None if "attn_k" in name else Kind.Q4_K)
    model, plain = load_model(path, "float32"), load_model(path, "float32", quantization="none")
    exact = logits(plain)
    assert (logits(model, fuses=False) - exact).abs().max() < 0.1 * exact.abs().max()
    assert len(greedy(model)) == 24


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_none_dequantise(tmp_path: Path, family: str) -> None:
    path = small_file(tmp_path, family, "q4_0")
    for model in (load_model(path, trainable=True), load_model(path, quantization="none")):
        assert not packed_weights(model)
        assert model.config.quantization is None
        assert all(parameter.is_floating_point() for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in load_model(path, trainable=True).parameters())
    with pytest.raises(UsageError, match="a quantised model cannot be trained"):
        load_model(path, quantization="int8", trainable=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_format_is_quantised_anew(tmp_path: Path, family: str) -> None:
    path = small_file(tmp_path, family, "q8_0")
    save_pretrained(load_model(path, "float32", quantization="none"), tmp_path / "plain")
    for quantization in ("int4", "int8:g64"):
        anew, expected = (load_model(x, "float32", quantization=quantization) for x in (path, tmp_path / "plain"))
        assert anew.config == expected.config
        for name, weight in dequantised(expected).items():
            assert torch.equal(dequantised(anew)[name], weight), name
    same, kept = load_model(path, quantization="int8"), load_model(path)
    for name, matrix in packed_weights(kept).items():
        assert torch.equal(packed_weights(same)[name].weight, matrix.weight)


def test_none_is_what_other_specs_are_anyway(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3")
    assert not packed_weights(load_model(tmp_path / "model", quantization="none"))
    save_pretrained(load_model(tmp_path / "model", quantization="int8"), tmp_path / "packed")
    with pytest.raises(UsageError, match="is quantised as int8, and can only be loaded so"):
        load_model(tmp_path / "packed", quantization="none")


@pytest.mark.parametrize("kind_of", [q4_k_m, lambda _: Kind.Q8_0], ids=["q4_k_m", "q8_0"])
def test_memory_is_counted_to_the_byte(
    tmp_path: Path, kind_of: Callable[[str], Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wide_file(tmp_path, "qwen3_moe", kind_of)
    size = sum(weight.nbytes for weight in named_weights(load_model(path)).values())
    monkeypatch.setattr(placement, "available_memory", lambda: size)
    load_model(path)
    monkeypatch.setattr(placement, "available_memory", lambda: size - 1)
    with pytest.raises(CodemillError, match=r"wide\.gguf: not enough memory: its weights take .* GiB as int"):
        load_model(path)


def test_a_scale_that_is_no_number_names_file_and_tensor(tmp_path: Path) -> None:
    path = small_file(tmp_path, "qwen3_moe", "q8_0")
    tensor = next(each for each in gguf.GGUFReader(path).tensors if each.name == "blk.1.ffn_up_exps.weight")
    data = bytearray(path.read_bytes())
    begin = int(tensor.data_offset) + 34 * 7
    data[begin : begin + 2] = b"\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(CodemillError, match=r"small\.gguf: tensor .*\bblk\.1\.ffn_up_exps\.weight: a scale is NaN"):
        load_model(path)


def test_what_is_cut_off_is_named(tmp_path: Path) -> None:
    path = small_file(tmp_path, "qwen3", "q4_0")
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(CodemillError, match=r"small\.gguf is truncated: tensor .* ends at byte \d+, the file at \d+"):
        load_model(path)


def test_layers_and_rows_that_do_not_fit_the_metadata(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3", **SMALL)
    convert(tmp_path / "model", tmp_path / "f32.gguf", "f32")
    rewrite_quantised(tmp_path / "f32.gguf", tmp_path / "q.gguf", lambda _: Kind.Q5_0)
    load_model(tmp_path / "q.gguf")
    data = (tmp_path / "q.gguf").read_bytes()
    for key, value, message in (
        (b"qwen3.block_count", 3, r"tensor blk\.2\.attn_norm\.weight is missing"),
        (b"qwen3.block_count", 1, r"tensors not part of a qwen3 model .*: blk\.1\."),
        (b"qwen3.feed_forward_length", 192, r"blk\.0\.ffn_\w+\.weight has shape"),
    ):
        at = data.index(key) + len(key) + 4
        (tmp_path / "bad.gguf").write_bytes(data[:at] + value.to_bytes(4, "little") + data[at + 4 :])
        with pytest.raises(CodemillError, match=message) as caught:
            load_model(tmp_path / "bad.gguf")
        assert str(tmp_path / "bad.gguf") in str(caught.value)
        assert "\n" not in str(caught.value)
