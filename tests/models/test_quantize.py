"""Quantised networks against `transformers` with the dequantised weights, in memory and from disk."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codemill.chat import Tokenizer
from codemill.config import ModelConfig, QuantizationConfig
from codemill.errors import CodemillError, UsageError
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models import CausalLM, load_model, save_pretrained
from codemill.models.convert import convert
from codemill.models.loader import load_mtp
from codemill.models.quantize_directory import quantize_model
from codemill.models.quantized import matrices, named_weights, pack_modules, packed_weights
from codemill.models.safetensors_file import read_header, write_file
from codemill.models.skeleton import build, build_mtp, materialize
from codemill.models.update import update_weights
from models.adapters import EXPERTS, make_adapter
from models.adapters import load as load_adapter
from models.reference import make_reference
from models.test_fp8 import make_fp8

INPUT_IDS = torch.arange(60).view(2, 30) * 7 % 97
FORMATS = ["int8", "int4", "int4:g64:asym", "int4:head8"]
FAMILIES = ["qwen3", "qwen3_moe", "qwen3_next"]
WEIGHTS = "model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An unquantised directory for each family, whose sizes are multiples of nothing."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_reference(family, moe_intermediate_size=20).save_pretrained(root / family)
    make_reference("qwen3", tie_word_embeddings=True).save_pretrained(root / "tied")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def dequantises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products by dequantised weights, as where there is no library: activations are not quantised."""
    monkeypatch.setattr("codemill.kernels.quantized_linear.has_product_kernel", lambda *_: False)


def reference_logits(model: CausalLM, family: str, **changes: Any) -> Tensor:
    """The logits of `transformers` when each of its weights is what ours says."""
    reference = make_reference(family, **changes)
    weights = {
        name: weight.dequantize() if isinstance(weight, PackedMatrix) else weight
        for name, weight in named_weights(model).items()
    }
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if changes.get("tie_word_embeddings") else [])
    with torch.no_grad():
        return reference(INPUT_IDS).logits


@pytest.mark.usefixtures("dequantises")
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_with_the_dequantised_weights(
    directories: dict[str, Path], family: str, quantization: str
) -> None:
    model = load_model(directories[family], quantization=quantization)
    assert model.config.quantization == QuantizationConfig.parse(quantization)
    expected = reference_logits(model, family, moe_intermediate_size=20)
    torch.testing.assert_close(model(INPUT_IDS), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.usefixtures("dequantises")
def test_a_tied_embedding_is_packed_once(directories: dict[str, Path]) -> None:
    model = load_model(directories["tied"], quantization="int8")
    expected = reference_logits(model, "qwen3", tie_word_embeddings=True)
    torch.testing.assert_close(model(INPUT_IDS), expected, atol=2e-4, rtol=1e-3)
    assert isinstance(model.output_embedding, PackedMatrix)


def test_what_is_packed_and_what_is_not(directories: dict[str, Path]) -> None:
    weights = named_weights(load_model(directories["qwen3_next"], quantization="int4"))
    plain = {
        re.sub(r"^model\.layers\.\d+\.", "", name) for name, weight in weights.items() if isinstance(weight, Tensor)
    }
    assert plain == {
        "model.norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight", "mlp.gate.weight",
        "mlp.shared_expert_gate.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight",
        "linear_attn.in_proj_ba.weight", "linear_attn.conv1d.weight", "linear_attn.A_log", "linear_attn.dt_bias",
        "linear_attn.norm.weight",
    }  # fmt: skip


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("family", [*FAMILIES, "tied"])
def test_a_quantised_directory_is_what_loading_quantised_gives(
    directories: dict[str, Path], tmp_path: Path, family: str, quantization: str
) -> None:
    done = quantize_model(directories[family], tmp_path / "small", quantization, max_shard_bytes=9_000)
    assert len(list((tmp_path / "small").glob("model-*.safetensors"))) > 1
    expected, model = load_model(directories[family], quantization=quantization), load_model(tmp_path / "small")
    assert_same(model, expected)
    assert model.config == expected.config
    assert done.num_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert torch.equal(model(INPUT_IDS), expected(INPUT_IDS))


def assert_same(one: CausalLM, other: CausalLM) -> None:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def quantised(directories: dict[str, Path], tmp_path: Path) -> Path:
    quantize_model(directories["qwen3_moe"], tmp_path / "small", "int4")
    return tmp_path / "small"


def test_weights_are_mapped_where_they_lie(quantised: Path) -> None:
    """Nothing that is packed is copied; vectors of 64 bytes are read from multiples of 64."""
    maps = Path("/proc/self/maps")
    model = load_model(quantised)
    mappings = [line.split() for line in maps.read_text().splitlines() if line.endswith(WEIGHTS)]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in mappings]
    for matrix in packed_weights(model).values():
        assert matrix.weight.data_ptr() % 64 == 0
        assert all(
            any(begin <= tensor.data_ptr() < end for begin, end in ranges) for tensor in (matrix.weight, matrix.scale)
        )


def test_saving_a_quantised_model_keeps_it_quantised(quantised: Path, tmp_path: Path) -> None:
    model = load_model(quantised)
    save_pretrained(model, tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert_same(again, model)
    assert again.config == model.config


@pytest.mark.usefixtures("dequantises")
def test_matrices_of_one_model_may_have_different_bits(directories: dict[str, Path], tmp_path: Path) -> None:
    """As those of a converted GGUF file have. Bits are read from each matrix; one may be left in floats."""
    original = load_model(directories["qwen3_moe"])
    choices = [QuantizationConfig.parse(text).format_of("") for text in FORMATS[:3]]
    formats = {name: choices[index % 3] for index, name in enumerate(matrices(original))}
    del formats[QUERY]
    model = build(ModelConfig.from_dict({**original.config.to_dict(), "quantization_config": CODEMILL}), torch.float32)
    pack_modules(model, formats.get)
    originals = dict(original.named_parameters())
    for name, weight in named_weights(model).items():
        path, _, leaf = name.rpartition(".")
        if isinstance(weight, PackedMatrix):
            packed = PackedMatrix.quantize(originals[name], weight.bits, weight.group_size, weight.symmetric)
            for suffix, tensor in (("", packed.weight), ("_scale", packed.scale), ("_minimum", packed.minimum)):
                if tensor is not None:
                    setattr(model.get_submodule(path), leaf + suffix, torch.nn.Parameter(tensor, requires_grad=False))
        else:
            setattr(model.get_submodule(path), leaf, originals[name])
    save_pretrained(model, tmp_path)
    again = load_model(tmp_path)
    assert_same(again, model)
    torch.testing.assert_close(
        again(INPUT_IDS), reference_logits(model, "qwen3_moe", moe_intermediate_size=20), atol=2e-4, rtol=1e-3
    )


CODEMILL = {"quant_method": "codemill", "bits": 4, "group_size": 32, "symmetric": True, "head_bits": None}


def test_a_quantised_directory_is_not_quantised_again(quantised: Path, tmp_path: Path) -> None:
    assert load_model(quantised, quantization="int4").config.quantization == QuantizationConfig(4)
    with pytest.raises(UsageError, match="quantised as int4 already: leave quantization int8 out"):
        load_model(quantised, quantization="int8")
    with pytest.raises(CodemillError, match="quantised as int4 already"):
        quantize_model(quantised, tmp_path / "other", "int8")


def test_what_is_not_supported_says_so(quantised: Path, directories: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="cannot be trained"):
        load_model(quantised, trainable=True)
    with pytest.raises(UsageError, match="cannot be trained"):
        load_model(directories["qwen3"], quantization="int4", trainable=True)
    for text in ("int3", "4", "int4:g7", "awq", ""):
        with pytest.raises(UsageError, match="choose int4, int8"):
            load_model(directories["qwen3"], quantization=text)
    model = load_model(quantised)
    with pytest.raises(UsageError, match="a quantised network takes weights of its own format only"):
        update_weights(model, {QUERY: torch.zeros(64, 32)})


def test_packed_weights_can_be_updated(directories: dict[str, Path]) -> None:
    model, other = (load_model(directories["qwen3"], quantization="int4") for _ in range(2))
    changed = {name: parameter.clone().zero_() for name, parameter in other.named_parameters()}
    update_weights(model, changed)
    assert not any(parameter.any() for parameter in model.parameters())


@pytest.mark.usefixtures("dequantises")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_other_weights_take_the_dtype_asked_for(quantised: Path, dtype: str) -> None:
    model = load_model(quantised, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    logits, exact = model(INPUT_IDS), load_model(quantised)(INPUT_IDS)
    assert logits.dtype == model.dtype
    assert (logits - exact).norm() < 0.1 * exact.norm()


def test_batch_invariance(quantised: Path) -> None:
    model = load_model(quantised)
    model.set_batch_invariant()
    together = model(INPUT_IDS)
    assert all(torch.equal(model(INPUT_IDS[row : row + 1])[0], together[row]) for row in range(2))


def test_random_packed_weights_have_the_spread_of_unpacked_ones() -> None:
    for quantization in ("int4", "int8", "int4:g64:asym"):
        model = load_model("random:qwen3-0.6b", quantization=quantization)
        for name in (QUERY, "model.embed_tokens.weight"):
            values = packed_weights(model)[name].dequantize()
            assert values.std().item() == pytest.approx(model.config.initializer_range, rel=0.01)
            assert abs(values.mean().item()) < 1e-4
        assert model.model.layers[0].input_layernorm.weight.eq(1).all()


def test_random_weights_on_disk_are_those_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from codemill import spec
    from codemill.presets import Preset

    reference = {**make_reference("qwen3_next").config.to_dict(), "dtype": "float32"}
    preset = Preset("tiny", "Tiny", "org/tiny", ModelConfig.from_dict(reference))
    monkeypatch.setattr(spec, "find_preset", lambda _: preset)
    quantize_model("random:tiny", tmp_path / "small", "int4:asym", seed=3)
    assert_same(load_model(tmp_path / "small"), load_model("random:tiny", quantization="int4:asym", seed=3))
    text = "def add(a, b):"
    assert Tokenizer.load(tmp_path / "small").encode(text) == Tokenizer.load("random:tiny").encode(text)


def test_weights_that_cannot_be_quantised_are_named(directories: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(directories["qwen3"], tmp_path / "broken")
    tensors = {name: stored.read().clone() for name, stored in read_header(tmp_path / "broken" / WEIGHTS).items()}
    tensors[QUERY][3, 5] = float("nan")
    write_file(tmp_path / "broken" / WEIGHTS, tensors)
    for quantise in (
        lambda: load_model(tmp_path / "broken", quantization="int4"),
        lambda: quantize_model(tmp_path / "broken", tmp_path / "small", "int4"),
    ):
        with pytest.raises(CodemillError, match=rf"{QUERY}: a weight is NaN or infinite"):
            quantise()
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_an_interrupted_run_leaves_nothing_that_loads(
    directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small"
    (tmp_path / ".small.quantizing-old").mkdir()
    monkeypatch.setattr("codemill.models.quantize_directory.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize_model(directories["qwen3"], target)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    quantize_model(directories["qwen3"], target)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    with pytest.raises(UsageError, match="exists already"):
        quantize_model(directories["qwen3"], target)


def test_no_space(directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("codemill.models.quantize_directory.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CodemillError, match="not enough space"):
        quantize_model(directories["qwen3"], tmp_path / "small")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("dequantises")
def test_adapters_on_quantised_weights(directories: dict[str, Path], tmp_path: Path) -> None:
    """Their updates are added to what the packed matrices yield, of experts too, as to what the plain ones yield."""
    settings = {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "target_parameters": EXPERTS}
    make_adapter(tmp_path, "qwen3_moe", settings, moe_intermediate_size=20)
    model = load_model(directories["qwen3_moe"], quantization="int8")
    dequantised = load_model(directories["qwen3_moe"])
    update_weights(dequantised, {name: matrix.dequantize() for name, matrix in packed_weights(model).items()})
    adapter = load_adapter(tmp_path, model)
    with torch.no_grad():
        plain, adapted = model(INPUT_IDS), model(INPUT_IDS, adapters=[adapter, adapter])
        expected = dequantised(INPUT_IDS, adapters=[adapter, adapter])
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(adapted, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_fp8_checkpoints_are_quantised_from_what_they_mean(tmp_path: Path, family: str) -> None:
    make_fp8(tmp_path / "fp8", family, (24, 20), torch.float16)
    save_pretrained(load_model(tmp_path / "fp8", dtype="float32"), tmp_path / "fp32")
    expected = load_model(tmp_path / "fp32", quantization="int4")
    assert_same(load_model(tmp_path / "fp8", dtype="float32", quantization="int4"), expected)
    quantize_model(tmp_path / "fp8", tmp_path / "small", "int4")
    assert_same(load_model(tmp_path / "small", dtype="float32"), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_files_are_quantised_from_what_they_mean(
    directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    path = tmp_path / "model.gguf"
    convert(directories[family], path, "f32")
    for quantization in ("int8", "int4:g64:asym"):
        expected = load_model(directories[family], quantization=quantization)
        state = load_model(path, quantization=quantization).state_dict()
        for name, parameter in expected.named_parameters():  # norms and decays are stored in another form there
            torch.testing.assert_close(state[name], parameter, atol=1e-6, rtol=1e-6, msg=name)
    with pytest.raises(CodemillError, match="make a directory of it first"):
        quantize_model(path, tmp_path / "small")


def test_a_quantised_directory_does_not_become_a_gguf_file(quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="quantised as int4: convert the original"):
        convert(quantised, tmp_path / "model.gguf", "f32")


def test_the_mtp_head_comes_along_unquantised(directories: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(directories["qwen3_next"])
    head = build_mtp(model.config, model.dtype)
    materialize(head, model.device)
    for index, parameter in enumerate(head.parameters()):
        parameter.fill_(index)
    save_pretrained(model, tmp_path / "whole", mtp=head)
    quantize_model(tmp_path / "whole", tmp_path / "small", "int4")
    again = load_mtp(tmp_path / "small", load_model(tmp_path / "small"))
    assert again is not None
    ours, expected = again.state_dict(), head.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
