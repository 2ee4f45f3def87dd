"""Packs the weights of a checkpoint as they are read, one matrix at a time, and reads how those on disk are packed."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from codemill.config import PackedFormat, QuantizationConfig
from codemill.errors import CodemillError
from codemill.kernels.packed_matrix import BLOCK_ROWS, PackedMatrix, is_group_size
from codemill.kernels.quantized_linear import MINIMUM
from codemill.models.checkpoint import Checkpoint
from codemill.models.names import expert_views
from codemill.models.safetensors_file import StoredTensor


class Quantizer:
    """Quantises weights of a checkpoint; of experts, no more than one is in memory unquantised."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def fill(self, name: str, target: Tensor | PackedMatrix) -> None:
        """Read the weight `name` into memory of its shape; quantised, if that is packed.

        Raises CodemillError naming a weight that cannot be quantised.
        """
        if isinstance(target, Tensor):
            for part, view in self._checkpoint.views(name, target):
                self._checkpoint.copy(part, view)
            return
        for matrix, weight in self._parts(name, target):
            try:
                matrix.fill(weight.to(target.weight.device))
            except CodemillError as error:
                raise CodemillError(f"{self._checkpoint.path}: tensor {name}: {error}") from None

    def _parts(self, name: str, matrix: PackedMatrix) -> Iterator[tuple[PackedMatrix, Tensor]]:
        """Single matrices [N, K] of `matrix`, with the weights that go there."""
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
            symmetric = name + MINIMUM not in checkpoint.tensors
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
