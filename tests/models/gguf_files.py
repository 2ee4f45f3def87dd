"""GGUF files for tests, written by the `gguf` package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from codemill.models import CausalLM, load_model, save_pretrained
from models.reference import make_ours, make_reference

FAMILIES = ("qwen3", "qwen3_moe", "qwen3_next")
# Where in a block of each type its numbers in fp16 are.
_HALVES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "IQ4_NL": (0,), "IQ4_XS": (0,),
           "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # fmt: skip


def random_blocks(
    kind: gguf.GGMLQuantizationType, num_rows: int, num_columns: int, seed: int = 0, size_of_scales: float = 0.01
) -> np.ndarray:
    """Random bytes that are blocks of `kind` with finite scales, uint8 [num_rows, bytes of a row]."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (num_rows * num_columns // block, size), dtype=np.uint8)
    for offset in _HALVES[kind.name]:
        scale = generator.normal(0, size_of_scales, len(raw)).astype(np.float16)
        raw[:, offset : offset + 2] = scale[:, None].view(np.uint8)
    return raw.reshape(num_rows, -1)


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], architecture: str = "qwen3"
) -> None:
    """Metadata values: str, bool, int (as uint32), float, list; tensors of floats."""
    writer = gguf.GGUFWriter(path, architecture)
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           list: writer.add_array}  # fmt: skip
    for key, value in metadata.items():
        add[type(value)](key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_matrix(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random blocks whose weights [..., N, K] have a standard deviation of about K ** -0.5."""
    *leading, num_columns = shape
    num_rows = int(np.prod(leading))
    deviation = gguf.dequantize(random_blocks(kind, num_rows, num_columns, seed), kind).std()
    raw = random_blocks(kind, num_rows, num_columns, seed, 0.01 * num_columns**-0.5 / deviation)
    return raw.reshape(*leading, -1)


def rewrite_quantised(
    source: Path, target: Path, kind_of: Callable[[str], gguf.GGMLQuantizationType | None], split_max_tensors: int = 0
) -> dict[str, torch.Tensor]:
    """A copy of an F32 file in which matrices are random blocks of the type `kind_of` the name, if that is not None.

    Returns these tensors as the `gguf` package dequantises them.
    """
    plain = gguf.GGUFReader(source)
    architecture = str(plain.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture, split_max_tensors=split_max_tensors)
    for key, field in plain.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    quantised = {}
    for index, tensor in enumerate(plain.tensors):
        kind = kind_of(tensor.name)
        if kind is None or tensor.data.ndim < 2 or tensor.data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        raw = random_matrix(kind, tuple(tensor.data.shape), seed=index)
        writer.add_tensor(tensor.name, raw, raw_dtype=kind)
        quantised[tensor.name] = torch.from_numpy(gguf.dequantize(raw, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return quantised


def save_tiny(directory: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> CausalLM:
    """A tiny random model, saved without a tokenizer."""
    save_pretrained(make_ours(make_reference(family, seed=3, **changes)).to(dtype), directory)
    return load_model(directory)
