"""Random GGUF files: the form that our export gives them, which llama.cpp opens."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from codemill.bench.engines.gguf_shapes import write_gguf
from codemill.errors import CodemillError
from codemill.gguf.container import GgufFile
from codemill.models import load_model, save_pretrained
from codemill.models.convert import convert
from models.reference import make_ours, make_reference

# Rows that are whole blocks; llama.cpp has one size for keys and values.
SIZES: dict[str, Any] = {"vocab_size": 211, "hidden_size": 64, "head_dim": 32, "intermediate_size": 96}
EXPERTS: dict[str, Any] = {**SIZES, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": SIZES,
    "qwen3_moe": EXPERTS,
    "qwen3_next": {
        **EXPERTS,
        "num_hidden_layers": 6,
        "shared_expert_intermediate_size": 64,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "BF16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_is_one_that_our_export_would_write(tmp_path: Path, family: str, kind: str) -> None:
    model = make_ours(make_reference(family, **FAMILIES[family]))
    save_pretrained(model, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "exported.gguf", kind.lower())
    write_gguf(tmp_path / "random.gguf", model.config.to_dict(), kind)
    exported, random = (GgufFile.open(tmp_path / f"{name}.gguf") for name in ("exported", "random"))
    assert {name: (each.type, each.shape) for name, each in random.tensors.items()} == {
        name: (each.type, each.shape) for name, each in exported.tensors.items()
    }
    keys = {key for key in exported.metadata if not key.startswith(("tokenizer.", "general.name"))}
    assert {key: random.metadata[key] for key in keys} == {key: exported.metadata[key] for key in keys}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "BF16", "F16", "F32"])
def test_its_weights_are_small_random_numbers(tmp_path: Path, kind: str) -> None:
    config = make_ours(make_reference("qwen3_next", **FAMILIES["qwen3_next"])).config
    write_gguf(tmp_path / "model.gguf", config.to_dict(), kind)
    model = load_model(tmp_path / "model.gguf", dtype="float32", quantization="none")
    queries = [model.get_parameter(f"model.layers.{layer}.mlp.experts.gate_up_proj") for layer in (0, 1)]
    for weight in queries:
        assert weight.mean().abs() < 0.004
        assert 0.01 < weight.std() < 0.04
        assert len(weight.flatten(0, 1).unique(dim=0)) == math.prod(weight.shape[:2])  # no two rows are alike
    assert not torch.equal(*queries)
    assert torch.isfinite(model(torch.arange(20)[None])).all()


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    config = make_ours(make_reference("qwen3", **{**SIZES, "hidden_size": 48})).config
    with pytest.raises(
        CodemillError, match=r"Q4_0 needs rows that are multiples of 32; token_embd\.weight has rows of 48"
    ):
        write_gguf(tmp_path / "model.gguf", config.to_dict(), "Q4_0")


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_runs_it(tmp_path: Path, family: str) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from codemill.bench.engines.llama_cpp import LlamaCpp

    write_gguf(tmp_path / "model.gguf", make_ours(make_reference(family, **FAMILIES[family])).config.to_dict(), "Q8_0")
    engine = LlamaCpp(tmp_path / "model.gguf", 1, "Q8_0")
    timing = engine.run([list(range(40)), list(range(40, 80))], 3, engine.settings[0])
    assert min(timing.first_seconds, timing.decode_seconds) > 0
