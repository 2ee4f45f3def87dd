"""Converts a model from any spec to a GGUF file or to a Hugging Face directory, never holding all of it in memory."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codemill.chat.tokenizer import Tokenizer
from codemill.chat.tokenizer_files import TokenizerFiles, read_tokenizer_files
from codemill.errors import CodemillError, UsageError
from codemill.gguf.config import write_generation_config, write_more_ends
from codemill.gguf.tokenizer import TokenizerParts, no_tokenizer, write_tokenizer
from codemill.models.gguf_export import WRITABLE, export_gguf
from codemill.models.merge import MergedStream
from codemill.models.placement import DTYPES, dtype_name, resolve_dtype
from codemill.models.save import COMPANION_FILES, copy_companions, staged, write_json, write_weights
from codemill.models.weight_stream import WeightStream, open_stream
from codemill.spec import ModelSource, resolve

_DIRECTORY_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_TYPE_OF = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Conversion:
    """What was written: where, as which type, how many tensors and bytes, and those of another type, by type."""

    path: Path
    type: str
    num_tensors: int
    num_bytes: int
    fallback: tuple[str, ...] = ()


def convert(
    spec: str | Path | None,
    destination: Path,
    kind: str | None = None,
    force: bool = False,
    adapter: Path | None = None,
) -> Conversion:
    """Write the model `spec` to `destination`: a GGUF file if that ends in .gguf, otherwise a directory.

    kind: f32, f16, bf16, and for GGUF q8_0 or q4_0; None for the source's own (bf16 where that is quantised). force:
    replace what is there. adapter: a directory with one that is merged into the weights. Tokenizer, chat template and
    generation defaults come along. Raises UsageError for a type or a destination that will not do, CodemillError for
    what is wrong with the source or the adapter, or cannot be written.
    """
    to_gguf = destination.suffix.lower() == ".gguf"
    _check(destination, kind, force, to_gguf)
    source = resolve(spec)
    stream = open_stream(spec)
    if adapter is not None:
        stream = MergedStream(stream, adapter)
    kind = kind or _TYPE_OF[resolve_dtype(None, stream.config)]
    if to_gguf:
        return _to_gguf(source, stream, destination, kind, spec)
    return _to_directory(source, stream, destination, kind, spec)


def _check(destination: Path, kind: str | None, force: bool, to_gguf: bool) -> None:
    choices = list(WRITABLE) if to_gguf else list(_DIRECTORY_TYPES)
    if kind is not None and kind not in choices:
        what = "a GGUF file" if to_gguf else "a directory"
        raise UsageError(f"type {kind!r}: {what} can have {', '.join(choices)}")
    if to_gguf and destination.is_dir():
        raise UsageError(f"{destination} is a directory: give another name")
    if not to_gguf and destination.is_file():
        raise UsageError(f"{destination} is a file: give a directory, or a name that ends in .gguf")
    occupied = destination.exists() if to_gguf else (destination / "config.json").exists()
    if occupied and not force:
        raise UsageError(f"{destination} holds a model already: give another name, or --force to replace it")


def _to_gguf(source: ModelSource, stream: WeightStream, path: Path, kind: str, spec: str | Path | None) -> Conversion:
    files, defaults = _tokenizer_files(source, spec), source.load_generation_config()[0]
    ends = list(dict.fromkeys((*_ids(stream.config.eos_token_id), *_ids(defaults.get("eos_token_id")))))
    if files is None:
        special = {"bos_token_id": stream.config.bos_token_id, "pad_token_id": stream.config.pad_token_id}
        metadata = no_tokenizer(special | {"eos_token_id": next(iter(ends), None)})
        ends = ends[1:]
    else:
        tokenizer = Tokenizer(files)  # which also adds the tokens that files beside the tokenizer.json name
        metadata = _tokenizer_metadata(tokenizer, files, stream.config.vocab_size)
        ends = [token_id for token_id in ends if token_id not in tokenizer.eos_token_ids]
    metadata |= write_more_ends(ends, source.name) | write_generation_config(defaults)
    tensors = export_gguf(stream, path, kind, _model_name(source), metadata)
    fallback = tuple(tensor.name for tensor in tensors if tensor.type.name == "F16" and kind != "f16")
    return Conversion(path, kind, len(tensors), path.stat().st_size, fallback)


def _model_name(source: ModelSource) -> str:
    return Path(source.name).stem if source.kind == "gguf" else source.name.rstrip("/").rpartition("/")[2]


def _tokenizer_files(source: ModelSource, spec: str | Path | None) -> TokenizerFiles | None:
    """None for a model that comes without a tokenizer."""
    if source.gguf is not None and source.gguf.metadata.get("tokenizer.ggml.model") == "none":
        return None
    if source.directory is not None and not (source.directory / "tokenizer.json").is_file():
        return None
    return read_tokenizer_files(spec)


def _ids(value: int | Sequence[int] | None) -> Sequence[int]:
    """`eos_token_id` is nothing, an id, or several."""
    return () if value is None else (value,) if isinstance(value, int) else value


def _tokenizer_metadata(tokenizer: Tokenizer, files: TokenizerFiles, num_rows: int) -> dict[str, Any]:
    raw = json.loads(tokenizer.to_json())
    special = {"eos_token": next(iter(tokenizer.eos_token_ids), None), "pad_token": tokenizer.pad_token_id}
    named = {name: tokenizer.id_to_token(token_id) for name, token_id in special.items() if token_id is not None}
    parts = TokenizerParts(raw, named | {"bos_token": files.config.get("bos_token")}, files.templates)
    return write_tokenizer(parts, num_rows, str(files.path))


def _to_directory(
    source: ModelSource, stream: WeightStream, target: Path, kind: str, spec: str | Path | None
) -> Conversion:
    dtype = DTYPES[_DIRECTORY_TYPES[kind]]
    tensors = list(_on_meta(stream, dtype))
    config = replace(stream.config, dtype=dtype_name(dtype), fp8=None)
    with staged(target) as staging:
        _write_companions(source, staging, spec)
        write_weights(staging, config, tensors, read=lambda name, meta: _read(stream, name, meta))
    return Conversion(target, kind, len(tensors), sum(tensor.nbytes for _, tensor in tensors))


def _on_meta(stream: WeightStream, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, shape in stream.names():
        yield name, torch.empty(shape, dtype=dtype, device="meta")


def _read(stream: WeightStream, name: str, meta: Tensor) -> Tensor:
    values = stream.read(name, tuple(meta.shape)).to(meta.dtype)
    if meta.dtype == torch.float16 and bool(values.isinf().any()):
        raise CodemillError(f"tensor {name} has values beyond the range of float16: choose bf16 or f32")
    return values


def _write_companions(source: ModelSource, staging: Path, spec: str | Path | None) -> None:
    if source.kind in ("directory", "embedded", "hub"):
        copy_companions(source.fetch(COMPANION_FILES), staging)
        return
    files = _tokenizer_files(source, spec)
    if files is not None:
        Tokenizer(files).save(staging)
    defaults = source.load_generation_config()[0]
    if defaults:
        write_json(staging / "generation_config.json", defaults)
