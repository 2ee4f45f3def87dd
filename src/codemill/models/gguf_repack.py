"""Puts the quantised tensors of a GGUF file into packed matrices: as they are where the format is theirs, else anew."""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from codemill.config import PackedFormat, QuantizationConfig
from codemill.errors import CodemillError
from codemill.gguf.types import TensorType
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.worker_threads import for_each
from codemill.models.gguf_checkpoint import GgufCheckpoint
from codemill.models.gguf_names import Part, join_qkvz
from codemill.models.gguf_packed import RawRows, RepackedBlocks, Repacking, kept_format
from codemill.models.quantize import GgufQuantizer
from codemill.models.quantized import matrices

_HEADS = ("lm_head.weight", "model.embed_tokens.weight")


class GgufRepacker(GgufQuantizer):
    """`kept` has the formats in which weights are as they are in the file, by name; the others are floats there."""

    def __init__(self, checkpoint: GgufCheckpoint, model: nn.Module) -> None:
        """model: as for `GgufQuantizer`."""
        super().__init__(checkpoint, model)
        found = {name: kept_format(self._kinds(name)) for name in matrices(model)}
        self.kept = {name: each for name, each in found.items() if each is not None}

    def fill(self, name: str, target: Tensor | PackedMatrix) -> None:
        """As `Quantizer.fill`; where `target` has the format `kept`, nothing is dequantised."""
        if isinstance(target, Tensor) or self.kept.get(name) != _format(target):
            super().fill(name, target)
            return
        pieces = [piece for each in self._repackings(name, target) for piece in each.pieces()]
        try:
            for_each(RepackedBlocks.fill, pieces)
        except CodemillError as error:
            parts = " or ".join(part.name for part in self._parts(name))
            raise CodemillError(f"{self._path}: tensor {parts}: {error}") from None

    def _repackings(self, name: str, target: PackedMatrix) -> Iterator[Repacking]:
        """One for each expert, or for the whole weight."""
        sources = [self.checkpoint.read_raw(part) for part in self._parts(name)]
        if len(target.shape) == 2:
            yield Repacking(target, sources, self._order(name, sources))
            return
        for expert in range(len(target)):
            yield Repacking(target[expert], [_part(source, expert, len(target)) for source in sources])

    def _order(self, name: str, sources: list[RawRows]) -> Tensor | None:
        """Of rows that come from several tensors; those of q, k, v and z are grouped by heads."""
        if len(sources) == 1:
            return None
        qkv, gate = torch.arange(sum(len(source.raw) for source in sources))[:, None].split(
            [len(x.raw) for x in sources]
        )
        order = torch.empty(len(qkv) + len(gate), 1, dtype=torch.int64)
        join_qkvz(qkv, gate, self.checkpoint.config, order)
        return order[:, 0]

    def _parts(self, name: str) -> list[Part]:
        return self.checkpoint.parts(name, self._metas[name])

    def _kinds(self, name: str) -> list[TensorType]:
        return [self.checkpoint.tensors[part.name].type for part in self._parts(name)]


def describe(formats: Mapping[str, PackedFormat], weights: Mapping[str, Tensor]) -> QuantizationConfig | None:
    """The format of most weights, as far as one line can say it; None if none is packed.

    It is called symmetric if any weight is: what has minima is told by them (see `stored_formats`).
    """
    if not formats:
        return None
    sizes: Counter[PackedFormat] = Counter()
    for name, each in formats.items():
        sizes[each] += 0 if name in _HEADS else weights[name].numel()
    main = sizes.most_common(1)[0][0]
    head = next((formats[name].bits for name in _HEADS if name in formats), main.bits)
    is_symmetric = any(each.symmetric for each in formats.values())
    return QuantizationConfig(main.bits, main.group_size, is_symmetric, None if head == main.bits else head)


def _format(matrix: PackedMatrix) -> PackedFormat:
    return PackedFormat(matrix.bits, matrix.group_size, matrix.symmetric)


def _part(source: RawRows, index: int, count: int) -> RawRows:
    """The rows of one expert."""
    return RawRows(source.raw.unflatten(0, (count, -1))[index], source.kind)
