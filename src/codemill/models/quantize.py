"""Packs the weights of a checkpoint as they are read, one matrix at a time, and reads how those on disk are packed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from codemill.config import PackedFormat, QuantizationConfig
from codemill.errors import CodemillError
from codemill.kernels.packed_matrix import BLOCK_ROWS, PackedMatrix, is_group_size
from codemill.kernels.quantized_linear import MINIMUM
from codemill.models.checkpoint import Checkpoint
from codemill.models.gguf_checkpoint import GgufCheckpoint
from codemill.models.names import expert_views
from codemill.models.safetensors_file import StoredTensor


class Quantizer(ABC):
    """Quantises weights as they are read; of experts, no more than one is in memory unquantised."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self, name: str, target: Tensor | PackedMatrix) -> None:
        """Read the weight `name` into memory of its shape; quantised, if that is packed.

        Raises CodemillError naming a weight that cannot be quantised.
        """
        if isinstance(target, Tensor):
            self._read(name, target)
            return
        for matrix, weight in self._matrices(name, target):
            try:
                matrix.fill(weight.to(target.weight.device))
            except CodemillError as error:
                raise CodemillError(f"{self._path}: tensor {name}: {error}") from None

    @abstractmethod
    def _read(self, name: str, out: Tensor) -> None:
        """Fill `out` with a weight that is not quantised."""

    @abstractmethod
    def _matrices(self, name: str, matrix: PackedMatrix) -> Iterator[tuple[PackedMatrix, Tensor]]:
        """Single matrices [N, K] of `matrix`, with the weights that go there."""


class CheckpointQuantizer(Quantizer):
    """From safetensors."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.path)
        self._checkpoint = checkpoint

    def _read(self, name: str, out: Tensor) -> None:
        for part, view in self._checkpoint.views(name, out):
            self._checkpoint.copy(part, view)

    def _matrices(self, name: str, matrix: PackedMatrix) -> Iterator[tuple[PackedMatrix, Tensor]]:
        if name in self._checkpoint.tensors:
            stored = self._checkpoint.read(name)
            if stored.ndim == 2:
                yield matrix, stored
            else:
                yield from ((matrix[index], part) for index, part in enumerate(stored))
            return
        expert = torch.empty(matrix.num_rows, matrix.num_columns)
        for index in range(matrix.shape[0]):
            for part, view in expert_views(name, index, expert):
                self._checkpoint.copy(part, view)
            yield matrix[index], expert


class GgufQuantizer(Quantizer):
    """From a GGUF file, whose own quantisation is undone first."""

    def __init__(self, checkpoint: GgufCheckpoint, model: nn.Module) -> None:
        """model: the network before it is packed, which says what a weight consists of in the file."""
        super().__init__(checkpoint.file.path)
        self.checkpoint = checkpoint
        self._metas = dict(model.named_parameters())

    def _read(self, name: str, out: Tensor) -> None:
        self.checkpoint.read_into(name, out)

    def _matrices(self, name: str, matrix: PackedMatrix) -> Iterator[tuple[PackedMatrix, Tensor]]:
        weight = torch.empty(matrix.num_rows, matrix.num_columns)
        if len(matrix.shape) == 2:
            self.checkpoint.read_into(name, weight)
            yield matrix, weight
            return
        parts = self.checkpoint.parts(name, self._metas[name])
        for index in range(len(matrix)):
            for part, rows in zip(parts, weight.chunk(len(parts)), strict=True):
                self.checkpoint.read_expert(part, index, rows)
            yield matrix[index], weight


def stored_formats(
    matrices: Mapping[str, Tensor], checkpoint: Checkpoint, quantization: QuantizationConfig
) -> dict[str, PackedFormat]:
    """How each packed weight in a quantised checkpoint is packed; what is on disk in floats is left out.

    matrices: the weights that may be packed, of the meta device. `quantization` says in what format one is missing.
    Raises CodemillError naming a tensor whose shape fits no format.
    """
    if not any(stored.dtype == torch.uint8 for stored in checkpoint.tensors.values()):
        raise CodemillError(f"{checkpoint.path}: no tensor is packed, although config.json says that the model is")
    formats = {}
    for name, meta in matrices.items():
        stored = checkpoint.tensors.get(name)
        if stored is not None and stored.dtype == torch.uint8:
            symmetric = quantization.symmetric and name + MINIMUM not in checkpoint.tensors  # else they are missing
            formats[name] = _stored_format(stored, tuple(meta.shape), symmetric)
        elif not any(part in checkpoint.tensors for part, _ in checkpoint.views(name, meta)):
            formats[name] = quantization.format_of(name)
    return formats


def _stored_format(stored: StoredTensor, shape: tuple[int, ...], symmetric: bool) -> PackedFormat:
    """The format whose memory for a weight of `shape` [..., N, K] has the shape of the tensor."""
    for bits in (8, 4):
        group_size = (stored.shape or (0,))[-1] * 8 // (BLOCK_ROWS * bits)
        if is_group_size(group_size):
            meta = PackedMatrix.empty(shape, bits, group_size, symmetric, device="meta")
            if tuple(meta.weight.shape) == stored.shape:
                return PackedFormat(bits, group_size, symmetric)
    raise CodemillError(
        f"{stored.path}: tensor {stored.name} has shape {list(stored.shape)}, in which no weight of "
        f"shape {list(shape)} can be packed; is config.json that of this checkpoint?"
    )
