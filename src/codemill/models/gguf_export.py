"""Writes a GGUF file that llama.cpp reads, tensor by tensor.

Norms, routers and other small tensors stay F32, as llama.cpp expects. Rows that are no whole blocks of a quantised type
are stored as F16, as its converter does. Shapes: E experts.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.errors import CodemillError, UsageError
from codemill.gguf.config import write_config
from codemill.gguf.types import BF16, F16, F32, Q4_0, Q8_0, TensorType
from codemill.gguf.writer import PlannedTensor, padding, write_header
from codemill.models.gguf_blocks import encode
from codemill.models.gguf_names import (
    GATE_UP,
    QKVZ,
    Part,
    is_always_float,
    is_folded_norm,
    parts_of,
    split_qkvz,
)
from codemill.models.names import disk_views
from codemill.models.progress import progress
from codemill.models.weight_stream import WeightStream

WRITABLE = {kind.name.lower(): kind for kind in (F32, F16, BF16, Q8_0, Q4_0)}


@dataclass(frozen=True)
class _Output:
    """A tensor to be written, and how to get its values: pieces, fp32, that follow each other along the first dim."""

    tensor: PlannedTensor
    pieces: Callable[[], Iterator[Tensor]]


def export_gguf(
    stream: WeightStream, path: Path, kind: str, name: str, metadata: dict[str, Any]
) -> list[PlannedTensor]:
    """Write the weights of `stream` to the file `path`, matrices as `kind` (a key of WRITABLE).

    name: the model's, for general.name. metadata: those of tokenizer and generation. The file appears when it is
    complete; an interrupted export leaves nothing. Returns the tensors. Raises UsageError for an unknown kind,
    CodemillError for what GGUF cannot express, for weights that F16 cannot hold, and if the file cannot be written.
    """
    if kind not in WRITABLE:
        raise UsageError(f"type {kind!r} is unknown: choose {', '.join(WRITABLE)}")
    described = write_config(stream.config, name, WRITABLE[kind]) | metadata
    outputs = list(_plan(stream, WRITABLE[kind]))
    tensors = [output.tensor for output in outputs]
    try:
        with _appearing(path) as file:
            write_header(file, described, tensors)
            _write_data(file, outputs)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CodemillError(f"{path}: the file cannot be written ({reason}): check permissions and space") from error
    return tensors


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name when the block ends well, and goes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_data(file: BinaryIO, outputs: Sequence[_Output]) -> None:
    with progress("writing", sum(output.tensor.num_bytes for output in outputs)) as advance:
        for output in outputs:
            for piece in output.pieces():
                encoded = _encode(piece, output.tensor)
                file.write(encoded.numpy().data)
                advance(encoded.nbytes)
            file.write(bytes(padding(output.tensor.num_bytes)))


def _encode(piece: Tensor, tensor: PlannedTensor) -> Tensor:
    if tensor.type is F16 and bool((piece.abs().nan_to_num() > torch.finfo(torch.float16).max).any()):
        raise CodemillError(f"tensor {tensor.name} has values beyond the range of F16: choose bf16 or f32")
    return encode(piece, tensor.type)


def _plan(stream: WeightStream, kind: TensorType) -> Iterator[_Output]:
    for name, parameter in stream.model.named_parameters():
        parts = parts_of(name, parameter, stream.config)
        views = {part: tuple(view.shape) for part, view in disk_views(name, parameter)}
        for index, part in enumerate(parts):
            yield _Output(_planned(part, kind), _pieces(stream, name, views, index))


def _planned(part: Part, kind: TensorType) -> PlannedTensor:
    if is_always_float(part):
        kind = F32
    elif part.shape[-1] % kind.block_size:
        kind = F16
    return PlannedTensor(part.name, kind, part.shape)


def _pieces(
    stream: WeightStream, name: str, views: dict[str, tuple[int, ...]], index: int
) -> Callable[[], Iterator[Tensor]]:
    """How to read tensor number `index` of those that hold the parameter `name`."""
    if name.endswith(GATE_UP):  # alternately gate and up
        chosen = list(views.items())[index::2]
        return lambda: (stream.read(*view) for view in chosen)
    if name.endswith(QKVZ):
        return lambda: iter([split_qkvz(stream.read(name, views[name]), stream.config)[index]])
    change = _change(name, stream.config)
    return lambda: (change(stream.read(*view)) for view in views.items())


def _change(name: str, config: ModelConfig) -> Callable[[Tensor], Tensor]:
    if is_folded_norm(name, config):
        return lambda values: values + 1
    if name.endswith(".A_log"):
        return lambda values: -values.exp()
    return lambda values: values
