"""Quantised directories that do not fit in memory: experts are read as they are needed, and nothing else changes."""

import json
import logging
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codemill.config import ModelConfig, QuantizationConfig
from codemill.errors import CodemillError
from codemill.footprint import measure, quantized_bytes, quantized_expert_bytes
from codemill.models import Cache, CausalLM, load_model, placement
from codemill.models import read_ahead as read_ahead_module
from codemill.models.quantize_directory import quantize_model
from codemill.models.read_ahead import read_ahead
from codemill.models.safetensors_file import read_header
from models.reference import make_reference

INPUT_IDS = torch.arange(60).view(2, 30) * 7 % 97
FAMILIES = ["qwen3_moe", "qwen3_next"]
FORMATS = ["int4", "int8", "int4:g64:asym"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantised directory for each family, whose sizes are multiples of nothing."""
    root = tmp_path_factory.mktemp("originals")
    for family in (*FAMILIES, "qwen3"):
        make_reference(family, moe_intermediate_size=20).save_pretrained(root / family)
    return root


def quantised(originals: Path, family: str, target: Path, quantization: str = "int4", **options: int) -> Path:
    quantize_model(originals / family, target, quantization, **options)
    return target


def sizes(directory: Path) -> tuple[int, int]:
    """Bytes that every token needs with the cache of a context, and those of the experts."""
    config = ModelConfig.load(directory)
    assert config.quantization is not None
    experts = quantized_expert_bytes(config, config.quantization)
    footprint = measure(config)
    cache = 4096 * footprint.kv_bytes_per_token + footprint.state_bytes
    return quantized_bytes(config, config.quantization, 4) - experts + cache, experts


def allow(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(placement, "available_memory", lambda: num_bytes)


@torch.no_grad()
def logits(model: CausalLM, cuts: list[int]) -> Tensor:
    """Of the tokens, when they come in pieces."""
    cache = Cache.allocate(model.config, len(INPUT_IDS), 40)
    return torch.cat([model(INPUT_IDS[:, a:b], cache) for a, b in pairwise(cuts)], dim=1)


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_from_disk_give_the_same_bits(
    originals: Path, tmp_path: Path, family: str, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = quantised(originals, family, tmp_path / "small", quantization)
    plain = load_model(directory)
    assert not plain.experts_on_disk
    allow(monkeypatch, sizes(directory)[0])
    paged = load_model(directory)
    assert paged.experts_on_disk
    for cuts in ([0, 30], [0, 7, 8, 9, 30]):
        assert torch.equal(logits(paged, cuts), logits(plain, cuts))


def test_one_line_says_that_experts_stay_on_disk(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = quantised(originals, "qwen3_moe", tmp_path / "small")
    load_model(directory)
    assert not caplog.records
    allow(monkeypatch, sizes(directory)[0])
    load_model(directory)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(directory) in record.getMessage()
    assert record.getMessage().endswith("experts are read from disk as needed")


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3"])
def test_what_every_token_needs_has_to_fit(
    originals: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = quantised(originals, family, tmp_path / "small")
    allow(monkeypatch, sizes(directory)[0] - 1)
    with pytest.raises(CodemillError, match=r"not enough memory: of 0\.0 GiB of weights every token needs .*"):
        load_model(directory)


def test_a_model_that_is_not_mapped_has_to_fit_as_a_whole(originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.load(originals / "qwen3_moe")
    allow(monkeypatch, quantized_bytes(config, QuantizationConfig(4), 4) - 1)
    with pytest.raises(CodemillError, match="not enough memory: its weights take"):
        load_model(originals / "qwen3_moe", quantization="int4")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_of_experts(originals: Path, tmp_path: Path, family: str) -> None:
    directory = quantised(originals, family, tmp_path / "small", "int4:asym")
    stored = read_header(directory / "model.safetensors").values()
    held = sum(each.end - each.begin for each in stored if ".experts." in each.name)
    assert sizes(directory)[1] == held


def test_a_truncated_shard_is_named(originals: Path, tmp_path: Path) -> None:
    directory = quantised(originals, "qwen3_moe", tmp_path / "small", max_shard_bytes=20_000)
    shard = sorted(directory.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CodemillError, match=rf"{shard} is truncated: tensor \S+ ends at byte"):
        load_model(directory)


def test_tensors_that_cannot_be_mapped_are_refused_where_a_copy_has_no_room(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = quantised(originals, "qwen3_moe", tmp_path / "small")
    path = directory / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length])).encode()
    header += b" " * (8 + -len(header) % 64)  # with the eight bytes before it a multiple of 16, not of 64
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    load_model(directory)
    allow(monkeypatch, sizes(directory)[0])
    with pytest.raises(CodemillError, match=r"model\.safetensors: tensor \S+ is not at a multiple of 64 bytes"):
        load_model(directory)


def test_a_mapped_model_is_read_ahead(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []
    monkeypatch.setattr("codemill.models.loader.read_ahead", lambda weights: asked.append({id(x) for x in weights}))
    directory = quantised(originals, "qwen3_moe", tmp_path / "small")
    model = load_model(directory)
    assert asked.pop() == {id(weight) for weight in model.parameters()}
    allow(monkeypatch, sizes(directory)[0])
    model = load_model(directory)
    assert asked.pop() == {id(weight) for name, weight in model.named_parameters() if ".experts." not in name}


def test_reading_ahead_takes_weights_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Library:
        def request_pages(self, begin: int, num_bytes: int) -> None:
            asked.append((begin, num_bytes))

    monkeypatch.setattr(read_ahead_module, "load_cpu_library", Library)
    weights = [torch.zeros(5), torch.zeros(3, 2, dtype=torch.uint8)]
    assert read_ahead(weights) is None
    thread = read_ahead(weights, least_bytes=26)
    assert thread is not None
    thread.join()
    assert asked == [(weights[0].data_ptr(), 20), (weights[1].data_ptr(), 6)]
