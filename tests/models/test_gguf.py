"""Models in GGUF files: what goes out comes back, and foreign or corrupt files are refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from codemill.errors import CodemillError
from codemill.gguf.config import read_config
from codemill.gguf.container import GgufFile
from codemill.models import load_model, save_pretrained
from codemill.models.convert import convert
from codemill.models.gguf_checkpoint import log_of_decay
from codemill.models.gguf_names import join_qkvz, split_qkvz
from models.gguf_files import FAMILIES, rewrite_quantised, save_tiny, write_gguf
from models.reference import make_ours, make_reference

INPUT_IDS = torch.tensor([[5, 1, 80, 3, 3, 41, 7]])
ROUND_TRIPS = [("f32", torch.float32), ("bf16", torch.bfloat16)]


@pytest.mark.parametrize(("kind", "dtype"), ROUND_TRIPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(tmp_path: Path, family: str, kind: str, dtype: torch.dtype) -> None:
    model = save_tiny(tmp_path / "model", family, dtype)
    assert convert(tmp_path / "model", tmp_path / "model.gguf").type == kind
    convert(tmp_path / "model.gguf", tmp_path / "back")
    loaded, back = load_model(tmp_path / "model.gguf"), load_model(tmp_path / "back")
    assert loaded.config == back.config == model.config
    assert torch.equal(loaded(INPUT_IDS), model(INPUT_IDS))
    assert torch.equal(back(INPUT_IDS), model(INPUT_IDS))
    for name, parameter in model.named_parameters():
        # The file has 1 + w, in 32 bits, and exp(A_log): with these the network computes, so nothing is lost.
        change = (lambda x: 1 + x.float()) if family == "qwen3_next" and "norm" in name else (lambda x: x)
        change = (lambda x: x.float().exp()) if name.endswith("A_log") else change
        assert torch.equal(change(back.get_parameter(name)), change(parameter)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_biased_and_scaled_models(tmp_path: Path, family: str) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    changes = {"tie_word_embeddings": True, "attention_bias": family == "qwen3", "rope_theta": 12345678.0}
    model = save_tiny(tmp_path / "model", family, rope_scaling=scaling, **changes)
    convert(tmp_path / "model", tmp_path / "model.gguf")
    loaded = load_model(tmp_path / "model.gguf")
    assert loaded.config == model.config
    assert loaded.config.rope.yarn is not None
    assert torch.equal(loaded(INPUT_IDS), model(INPUT_IDS))


def test_names_and_types_are_those_of_llama_cpp(tmp_path: Path) -> None:
    architectures = {"qwen3": gguf.MODEL_ARCH.QWEN3, "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
                     "qwen3_next": gguf.MODEL_ARCH.QWEN3NEXT}  # fmt: skip
    for family in FAMILIES:
        model = save_tiny(tmp_path / family, family)
        path = tmp_path / f"{family}.gguf"
        convert(tmp_path / family, path, "q8_0")
        reader = gguf.GGUFReader(path)
        known = {
            gguf.TENSOR_NAMES[tensor].format(bid=layer)
            for tensor in gguf.MODEL_TENSORS[architectures[family]]
            for layer in range(model.config.num_hidden_layers)
        }
        for tensor in reader.tensors:
            stem = tensor.name.removesuffix(".weight").removesuffix(".bias")
            assert stem in known
            small = "norm" in stem or "ffn_gate_inp" in stem or "conv1d" in stem or len(tensor.shape) == 1
            assert small == (tensor.tensor_type.name == "F32")


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_models_are_dequantised_on_request(tmp_path: Path, family: str, kind: str) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32,
             "intermediate_size": 64, "linear_value_head_dim": 16}  # fmt: skip
    sizes |= {"shared_expert_intermediate_size": 32} if family == "qwen3_next" else {}
    save_tiny(tmp_path / "model", family, **sizes)
    assert convert(tmp_path / "model", tmp_path / "model.gguf", kind).fallback == ()
    loaded = load_model(tmp_path / "model.gguf", dtype="float32", quantization="none")
    assert load_model(tmp_path / "model.gguf", quantization="none").dtype == torch.bfloat16
    exact = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}

    def package(name: str) -> torch.Tensor:
        return torch.from_numpy(gguf.dequantize(exact[name].data, exact[name].tensor_type).copy())

    assert exact["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    assert exact["token_embd.weight"].tensor_type.name.lower() == kind
    assert torch.equal(loaded.model.embed_tokens.weight, package("token_embd.weight"))
    assert torch.equal(loaded.lm_head.weight, package("output.weight"))
    layer = loaded.model.layers[-1]
    last = f"blk.{loaded.config.num_hidden_layers - 1}"
    assert torch.equal(layer.self_attn.o_proj.weight, package(f"{last}.attn_output.weight"))
    if family == "qwen3":
        assert torch.equal(layer.mlp.down_proj.weight, package(f"{last}.ffn_down.weight"))
    else:
        gate_up = torch.cat((package(f"{last}.ffn_gate_exps.weight"), package(f"{last}.ffn_up_exps.weight")), dim=1)
        assert torch.equal(layer.mlp.experts.gate_up_proj, gate_up)
        assert torch.equal(layer.mlp.experts.down_proj, package(f"{last}.ffn_down_exps.weight"))


def test_quantised_files_convert_from_their_exact_values(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3_moe", hidden_size=64, moe_intermediate_size=32)
    convert(tmp_path / "model", tmp_path / "small.gguf", "q4_0")
    convert(tmp_path / "small.gguf", tmp_path / "large.gguf", "f32")
    convert(tmp_path / "small.gguf", tmp_path / "same.gguf", "q4_0")
    exact = load_model(tmp_path / "small.gguf", "float32", quantization="none")(INPUT_IDS)
    assert torch.equal(load_model(tmp_path / "large.gguf")(INPUT_IDS), exact)
    assert torch.equal(load_model(tmp_path / "same.gguf", "float32", quantization="none")(INPUT_IDS), exact)


def test_rows_that_are_no_whole_blocks_become_f16(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3")  # ffn of 48
    fallback = convert(tmp_path / "model", tmp_path / "model.gguf", "q8_0").fallback
    assert fallback == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("number_of_files", [1, 3])
def test_k_quants_written_by_others(tmp_path: Path, number_of_files: int) -> None:
    """A dense model as llama-quantize makes them: Q4_K and Q6_K mixed; also split into several files."""
    reference = make_reference("qwen3", hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32)
    save_pretrained(make_ours(reference), tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "f32.gguf", "f32")
    num_tensors = len(gguf.GGUFReader(tmp_path / "f32.gguf").tensors)
    limit = -(-num_tensors // number_of_files) if number_of_files > 1 else 0
    kinds = {False: gguf.GGMLQuantizationType.Q4_K, True: gguf.GGMLQuantizationType.Q6_K}
    expected = rewrite_quantised(
        tmp_path / "f32.gguf", tmp_path / "k.gguf", lambda name: kinds["_k" in name or "down" in name], limit
    )
    path = sorted(tmp_path.glob("k*.gguf"))[0]
    model = load_model(path, dtype="float32", quantization="none")
    assert torch.equal(model.lm_head.weight, expected["output.weight"])
    assert torch.equal(model.model.layers[1].self_attn.k_proj.weight, expected["blk.1.attn_k.weight"])
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, expected["blk.0.ffn_down.weight"])
    if number_of_files > 1:
        parts = sorted(tmp_path.glob("k*.gguf"))
        assert len(parts) == number_of_files
        with pytest.raises(CodemillError, match="is part 2 of 3: give the first part"):
            load_model(parts[1])
        parts[2].unlink()
        with pytest.raises(CodemillError, match=r"part 3 of 3, k-00003-of-00003\.gguf, does not lie beside it"):
            load_model(path)


def rewrite(path: Path, target: Path, tensors: dict[str, np.ndarray | None], **metadata: object) -> None:
    """A copy with other tensors (None: without it) and metadata."""
    reader = gguf.GGUFReader(path)
    skipped = ("GGUF.", "general.architecture", *metadata)
    kept = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(skipped)}
    architecture = str(metadata.pop("architecture", reader.fields["general.architecture"].contents()))
    arrays = {tensor.name: tensor.data for tensor in reader.tensors} | tensors
    given = {name: array for name, array in arrays.items() if array is not None}
    write_gguf(target, kept | metadata, given, architecture)


def test_older_forms_of_the_hybrid(tmp_path: Path) -> None:
    """in_proj_qkvz in one tensor, gate and up of the experts in one, and a shared gate with a dimension of 1."""
    model = save_tiny(tmp_path / "model", "qwen3_next")
    convert(tmp_path / "model", tmp_path / "new.gguf")
    changes: dict[str, np.ndarray | None] = {}
    for index, layer in enumerate(model.model.layers):
        prefix = f"blk.{index}."
        changes |= {f"{prefix}ffn_{kind}_exps.weight": None for kind in ("gate", "up")}
        changes[f"{prefix}ffn_gate_up_exps.weight"] = layer.mlp.experts.gate_up_proj.numpy()
        changes[f"{prefix}ffn_gate_inp_shexp.weight"] = layer.mlp.shared_expert_gate.weight.numpy()
        if model.config.layer_types[index] == "linear_attention":
            changes |= {f"{prefix}attn_qkv.weight": None, f"{prefix}attn_gate.weight": None}
            changes[f"{prefix}ssm_in.weight"] = layer.linear_attn.in_proj_qkvz.weight.numpy()
    rewrite(tmp_path / "new.gguf", tmp_path / "old.gguf", changes)
    assert torch.equal(load_model(tmp_path / "old.gguf")(INPUT_IDS), model(INPUT_IDS))
    convert(tmp_path / "old.gguf", tmp_path / "back")
    assert torch.equal(load_model(tmp_path / "back")(INPUT_IDS), model(INPUT_IDS))


def test_qkvz_rows(tmp_path: Path) -> None:
    """Rows by key head become rows by kind: written out for 2 key heads of 16 and 4 value heads of 24."""
    config = make_ours(make_reference("qwen3_next")).config
    rows = torch.arange(2 * (16 + 16 + 48 + 48)).float()[:, None].repeat(1, 3)
    qkv, gate = split_qkvz(rows, config)
    first, second = list(range(128)), list(range(128, 256))
    expected = [*first[:16], *second[:16], *first[16:32], *second[16:32], *first[32:80], *second[32:80]]
    assert qkv[:, 0].tolist() == expected
    assert gate[:, 1].tolist() == [*first[80:], *second[80:]]
    out = torch.empty_like(rows)
    join_qkvz(qkv, gate, config, out)
    assert torch.equal(out, rows)


def test_the_decay_survives_to_the_last_bit() -> None:
    for scale in (0.1, 1.0, 3.0, 10.0):
        decay = -(torch.randn(20_000, generator=torch.Generator().manual_seed(1)) * scale).exp()
        assert torch.equal(-log_of_decay(decay).exp(), decay)


def test_what_the_file_lacks_is_named(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3")
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    convert(tmp_path / "model", good)
    norm = {tensor.name: tensor.data for tensor in gguf.GGUFReader(good).tensors}["blk.0.attn_norm.weight"]
    cases = [
        ({"blk.0.attn_q.weight": None}, {}, "tensor blk.0.attn_q.weight is missing"),
        ({"blk.0.attn_norm.weight": norm[:-1]}, {}, r"blk.0.attn_norm.weight has shape \[31\], but .* \[32\]"),
        ({"blk.0.attn_sinks.weight": norm}, {}, "tensors not part of a qwen3 model .*: blk.0.attn_sinks.weight"),
        ({"token_embd.weight": None}, {}, "tensor token_embd.weight is missing"),
        ({}, {"architecture": "llama"}, r"architecture 'llama' is not supported \(only qwen3, qwen3moe, qwen3next\)"),
        ({}, {"qwen3.block_count": 8000}, "blk.7999.attn_norm.weight is missing"),
        ({}, {"qwen3.embedding_length": 33}, "token_embd.weight has shape"),
        ({}, {"qwen3.embedding_length": "x"}, "qwen3.embedding_length = 'x' must be a int"),
        ({}, {"qwen3.attention.head_count": 0}, "qwen3.attention.head_count = 0 cannot be right"),
        ({}, {"qwen3.attention.value_length": 8}, "differ, which is not supported"),
        ({}, {"qwen3.rope.scaling.type": "linear", "qwen3.rope.scaling.factor": 2.0}, "only 'yarn'"),
    ]
    for tensors, metadata, message in cases:
        rewrite(good, bad, dict(tensors), **metadata)
        with pytest.raises(CodemillError, match=message) as caught:
            load_model(bad)
        assert str(bad) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_gguf_cannot_say_is_refused(tmp_path: Path) -> None:
    cases = [
        ("qwen3_moe", {"norm_topk_prob": False}, "not renormalised"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "with and without experts"),
        ("qwen3_next", {"layer_types": ["full_attention", *["linear_attention"] * 3]}, "irregular layers"),
    ]
    for index, (family, changes, message) in enumerate(cases):
        if "layer_types" in changes:
            changes = {"layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"]}
        save_tiny(tmp_path / str(index), family, **changes)
        with pytest.raises(CodemillError, match=f"GGUF has no form for .*{message}"):
            convert(tmp_path / str(index), tmp_path / "model.gguf")
        assert not (tmp_path / "model.gguf").exists()


def test_a_layer_list_wins_over_the_interval(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3_next")
    convert(tmp_path / "model", tmp_path / "model.gguf")
    file = GgufFile.open(tmp_path / "model.gguf")
    assert read_config(file).layer_types[-1] == "full_attention"
    listed = dict(file.metadata) | {"qwen3next.attention.recurrent_layers": [False, True, True, False]}
    changed = read_config(GgufFile(file.path, listed, file.tensors, file.paths))
    assert [kind == "linear_attention" for kind in changed.layer_types] == [False, True, True, False]


def test_floats_lie_where_the_file_has_them(tmp_path: Path) -> None:
    """Without a copy, and training such a model leaves the file alone."""
    save_tiny(tmp_path / "model", "qwen3", torch.bfloat16)
    convert(tmp_path / "model", tmp_path / "model.gguf")
    before = (tmp_path / "model.gguf").read_bytes()
    model = load_model(tmp_path / "model.gguf")
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "model.gguf") in maps
    model.lm_head.weight.zero_()
    assert (tmp_path / "model.gguf").read_bytes() == before


def test_values_beyond_f16_are_refused(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "qwen3")
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    save_pretrained(model, tmp_path / "model")
    for target in (tmp_path / "model.gguf", tmp_path / "half"):
        with pytest.raises(CodemillError, match="beyond the range of"):
            convert(tmp_path / "model", target, "f16")
    assert not (tmp_path / "model.gguf").exists()
    assert not (tmp_path / "half" / "config.json").exists()
