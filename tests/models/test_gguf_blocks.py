"""Number formats, compared with the `gguf` package."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from codemill.gguf.types import F16, SUPPORTED, TensorType
from codemill.models.gguf_blocks import decode, decode_into, encode
from models.gguf_files import random_blocks

QUANTISED = [Kind(kind.number) for kind in SUPPORTED.values() if not kind.is_float]


def ours(kind: Kind) -> TensorType:
    return SUPPORTED[kind.value]


@pytest.mark.parametrize("kind", list(SUPPORTED.values()), ids=lambda kind: kind.name)
def test_sizes(kind: TensorType) -> None:
    assert (kind.block_size, kind.block_bytes) == gguf.GGML_QUANT_SIZES[Kind(kind.number)]
    assert Kind(kind.number).name == kind.name


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_quantised_blocks_are_read_exactly(kind: Kind) -> None:
    raw = random_blocks(kind, 37, 512)
    found = decode(torch.from_numpy(raw).flatten(), ours(kind))
    assert np.array_equal(found.numpy().view(np.uint32), gguf.dequantize(raw, kind).ravel().view(np.uint32))


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_every_half_precision_number_is_read_exactly(kind: Kind) -> None:
    raw = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(1, -1)
    found = decode(torch.from_numpy(raw).flatten(), ours(kind)).numpy()
    np.testing.assert_array_equal(found, gguf.dequantize(raw.view(np.float16) if kind is Kind.F16 else raw, kind)[0])


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.BF16, Kind.F16, Kind.F32], ids=lambda kind: kind.name)
def test_encoding_is_that_of_the_package(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 96, generator=generator) * torch.logspace(-6, 3, 50)[:, None]
    values[3, :32] = 0
    values[4, :32] = 0.5  # ties everywhere, in what is largest and in rounding
    values[5, :32] = torch.tensor([1.0, -1.0]).repeat(16)
    values[6, :32] = torch.arange(-16, 16) / 2
    values[7, 32:64] = torch.arange(32) * 127 / 31 + 0.5
    expected = gguf.quantize(values.numpy(), kind).view(np.uint8).ravel()
    np.testing.assert_array_equal(encode(values, ours(kind)).numpy(), expected)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_decoding_piece_by_piece_into_any_view(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codemill.models.gguf_blocks._CHUNK_ELEMENTS", 1000)
    raw = torch.from_numpy(random_blocks(kind, 3 * 11, 256)).flatten()
    expected = decode(raw, ours(kind)).view(3, 11, 256)
    out = torch.zeros(3, 22, 256, dtype=torch.bfloat16)
    decode_into(raw, ours(kind), out[:, 11:])
    assert torch.equal(out[:, 11:], expected.bfloat16())
    assert not out[:, :11].any()


def test_encoding_takes_any_strides() -> None:
    values = torch.randn(8, 6).T
    assert torch.equal(decode(encode(values, F16), F16).view(6, 8), values.half().float())
