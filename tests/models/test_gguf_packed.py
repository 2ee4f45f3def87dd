"""Rows of quantised tensors rearranged into packed matrices: what the `gguf` package dequantises them to."""

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from codemill.config import PackedFormat
from codemill.errors import CodemillError
from codemill.gguf.types import SUPPORTED, TensorType
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models import gguf_packed
from codemill.models.gguf_numbers import read_numbers
from codemill.models.gguf_packed import RawRows, Repacking, kept_format
from models.gguf_files import random_blocks

QUANTISED = [Kind(kind.number) for kind in SUPPORTED.values() if not kind.is_float]
EXACT = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.IQ4_NL, Kind.Q3_K]
ROUNDED_SCALES = [Kind.Q4_K, Kind.Q5_K, Kind.IQ4_XS]
SIZES = [(16, 256), (21, 768), (1, 512), (300, 1280)]


def ours(kind: Kind) -> TensorType:
    return SUPPORTED[kind.value]


def pack(sources: list[tuple[Kind, Tensor]], num_columns: int, order: Tensor | None = None) -> PackedMatrix:
    """Rows of several types in one matrix."""
    wanted = kept_format(ours(kind) for kind, _ in sources)
    assert wanted is not None
    shape = sum(len(raw) for _, raw in sources), num_columns
    matrix = PackedMatrix.empty(shape, wanted.bits, wanted.group_size, wanted.symmetric)
    for piece in Repacking(matrix, [RawRows(raw, ours(kind)) for kind, raw in sources], order).pieces():
        piece.fill()
    return matrix


def raw_rows(kind: Kind, num_rows: int, num_columns: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(random_blocks(kind, num_rows, num_columns, seed))


def exact_weights(kind: Kind, raw: Tensor) -> Tensor:
    return torch.from_numpy(gguf.dequantize(raw.numpy(), kind))


@pytest.fixture(autouse=True, params=["library", "pytorch"])
def _both_forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of a few blocks."""
    monkeypatch.setattr(gguf_packed, "_ELEMENTS", 50_000)
    monkeypatch.setattr(gguf_packed, "_LIBRARY_ELEMENTS", 50_000)
    if request.param == "pytorch":
        monkeypatch.setattr(gguf_packed, "load_cpu_library", lambda: None)
    elif load_cpu_library() is None:
        pytest.skip("needs a C++ compiler at installation")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_most_types_keep_every_weight(kind: Kind, size: tuple[int, int]) -> None:
    raw = raw_rows(kind, *size)
    assert torch.equal(pack([(kind, raw)], size[1]).dequantize(), exact_weights(kind, raw))


@pytest.mark.parametrize("kind", [kind for kind in EXACT if ours(kind).block_size == 32], ids=lambda kind: kind.name)
def test_columns_that_are_no_multiple_of_64(kind: Kind) -> None:
    raw = raw_rows(kind, 19, 96)
    assert torch.equal(pack([(kind, raw)], 96).dequantize(), exact_weights(kind, raw))


def test_every_product_of_q3_k() -> None:
    """All scales with all numbers: 128 needs a scale of the other sign."""
    raw = raw_rows(Kind.Q3_K, 64, 256)
    raw[:16, 96:108] = 0  # scales of -32
    raw[:8, :96] = 0  # numbers of -4
    raw[4:8, :96] = 255
    exact = exact_weights(Kind.Q3_K, raw)
    factor = raw[:, 108:].contiguous().view(torch.float16).float()
    assert (exact / factor).max() == 128
    assert (exact / factor).min() <= -124
    assert torch.equal(pack([(Kind.Q3_K, raw)], 256).dequantize(), exact)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ROUNDED_SCALES, ids=lambda kind: kind.name)
def test_scales_that_are_products_are_rounded(kind: Kind, size: tuple[int, int]) -> None:
    raw = raw_rows(kind, *size)
    numbers = read_numbers(raw.view(-1, ours(kind).block_bytes), ours(kind))
    sizes = numbers.number.float().abs() * numbers.scale.abs()[:, :, None]
    limit = sizes * 2**-11 + numbers.number.float().abs() * 2.0**-25
    if numbers.minimum is not None:
        limit += (numbers.minimum.abs() * 2**-11)[:, :, None]
    error = (pack([(kind, raw)], size[1]).dequantize() - exact_weights(kind, raw)).abs()
    assert (error.view_as(limit) <= limit * (1 + 1e-5) + 1e-9).all()
    assert error.max() > 0  # fp16 cannot hold the products


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_q6_k_keeps_the_half_of_a_group_with_the_larger_scale(size: tuple[int, int]) -> None:
    raw = raw_rows(Kind.Q6_K, *size)
    numbers = read_numbers(raw.view(-1, 210), ours(Kind.Q6_K))
    tiny = 128 * 2.0**-24  # steps have no smaller parts in fp16
    halves = numbers.scale.abs().view(-1, 2)
    largest = halves.amax(dim=1, keepdim=True)
    exact = exact_weights(Kind.Q6_K, raw).view(-1, 2, 16)
    error = (pack([(Kind.Q6_K, raw)], size[1]).dequantize().view(-1, 2, 16) - exact).abs()
    assert (error <= largest[:, :, None] * (0.25 * 1.07) + tiny).all()  # a whole step where +128 is cut to 127
    assert (error <= largest[:, :, None] * (0.125 * 1.001) + tiny).float().mean() > 0.999
    is_larger = halves == largest
    same_way = (numbers.scale.view(-1, 2).prod(dim=1, keepdim=True) > 0) & is_larger
    assert (error[same_way] <= exact.abs()[same_way] * 2**-10 + tiny).all()
    assert error.max() > 0


def test_a_group_of_q2_k_has_256_steps() -> None:
    raw = raw_rows(Kind.Q2_K, 35, 512)
    exact = exact_weights(Kind.Q2_K, raw).view(-1, 32)
    step = (exact.amax(dim=1, keepdim=True) - exact.amin(dim=1, keepdim=True)) / 255
    error = (pack([(Kind.Q2_K, raw)], 512).dequantize().view(-1, 32) - exact).abs()
    rounded_minimum = exact.abs().amax(dim=1, keepdim=True) * 2**-11
    assert (error <= step * 0.51 + rounded_minimum * 2 + 1e-6).all()


def test_the_rms_error_of_q6_k() -> None:
    """The figure of docs/convert.md, on normal weights that are quantised as llama.cpp does."""
    weights = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    groups = weights.view(-1, 16)
    extreme = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
    scale = (extreme / -32).view(-1, 16)
    factor = (scale.gather(1, scale.abs().argmax(dim=1, keepdim=True)) / -128).half()
    scales = (scale / factor.float()).round().clamp(-128, 127)
    sizes = (factor.float() * scales).view(-1, 1)
    numbers = (groups / sizes).round().clamp(-32, 31).to(torch.int8).view(-1, 2, 4, 32) + 32
    low, high = numbers.view(torch.uint8) & 15, numbers.view(torch.uint8) >> 4
    raw = torch.cat(
        (
            (low[:, :, :2] | low[:, :, 2:] << 4).flatten(1),
            (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).flatten(1),
            scales.to(torch.int8).view(torch.uint8),
            factor.view(torch.uint8),
        ),
        dim=1,
    ).view(64, -1)
    exact = exact_weights(Kind.Q6_K, raw)
    own = (exact - weights).square().mean().sqrt() / weights.square().mean().sqrt()
    assert own < 0.02  # so these are blocks of Q6_K
    error = (
        pack([(Kind.Q6_K, raw)], 1024).dequantize() - exact
    ).square().mean().sqrt() / weights.square().mean().sqrt()
    assert 0.003 < error < 0.005


@pytest.mark.parametrize("size_of_scales", [1e-7, 1e-5, 0.01, 30.0])
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_both_forms_give_the_same_bytes(kind: Kind, size_of_scales: float, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.from_numpy(random_blocks(kind, 150, 1536, 5, size_of_scales))
    found = pack([(kind, raw)], 1536)
    monkeypatch.setattr(gguf_packed, "load_cpu_library", lambda: None)
    expected = pack([(kind, raw)], 1536)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.scale.view(torch.int16), expected.scale.view(torch.int16))
    if found.minimum is not None and expected.minimum is not None:
        assert torch.equal(found.minimum.view(torch.int16), expected.minimum.view(torch.int16))


@pytest.mark.parametrize("other", QUANTISED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q5_K, Kind.Q4_0, Kind.Q6_K], ids=lambda kind: kind.name)
def test_rows_of_two_types_in_one_matrix(kind: Kind, other: Kind) -> None:
    one, two = raw_rows(kind, 37, 512), raw_rows(other, 22, 512, seed=1)
    order = torch.randperm(59, generator=torch.Generator().manual_seed(2))
    matrix = pack([(kind, one), (other, two)], 512, order)
    alone = torch.cat((pack([(kind, one)], 512).dequantize(), pack([(other, two)], 512).dequantize()))
    # The offset of symmetric numbers becomes a minimum, which changes how the product is rounded in fp32.
    torch.testing.assert_close(matrix.dequantize(), alone[order], rtol=1e-6, atol=1e-6 * float(alone.abs().max()))
    assert torch.equal(pack([(kind, one), (other, two)], 512).dequantize()[order], matrix.dequantize())


def test_formats() -> None:
    assert kept_format([ours(Kind.Q4_0)]) == PackedFormat(4, 32, True)
    assert kept_format([ours(Kind.Q4_K)]) == PackedFormat(4, 32, False)
    assert kept_format([ours(Kind.Q4_0), ours(Kind.Q4_K)]) == PackedFormat(4, 32, False)
    assert kept_format([ours(Kind.Q4_K), ours(Kind.Q6_K)]) == PackedFormat(8, 32, False)
    assert kept_format([ours(Kind.Q8_0), SUPPORTED[Kind.F16.value]]) is None


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_scales_are_refused(kind: Kind, value: float) -> None:
    raw = raw_rows(kind, 20, 256)
    at = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(kind.name, 0)
    raw[17, at : at + 2] = torch.tensor([value], dtype=torch.float16).view(torch.uint8)
    with pytest.raises(CodemillError, match="a scale is NaN, infinite or too large"):
        pack([(kind, raw)], 256)
