"""What a quantised copy of a model consists of, and how to get each part of it when its turn comes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from codemill.config import ModelConfig, QuantizationConfig
from codemill.errors import CodemillError
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import packed_tensors
from codemill.models.calibration import CalibratedWeights
from codemill.models.checkpoint import Checkpoint
from codemill.models.initialize import RandomWeights
from codemill.models.loader import open_checkpoint, read_config
from codemill.models.names import SCALE_SUFFIX, is_ignored, is_mtp
from codemill.models.placement import resolve_dtype
from codemill.models.quantize import CheckpointQuantizer
from codemill.models.quantized import empty_like, named_weights, pack_modules
from codemill.models.skeleton import build, build_mtp
from codemill.spec import ModelSource

EMBEDDING = "model.embed_tokens.weight"
Fill = Callable[[str, Tensor | PackedMatrix], None]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PlannedWeight:
    """What is written together: tensors by name, of the meta device, and a function that reads them."""

    metas: dict[str, Tensor]
    read: Callable[[], dict[str, Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(meta.nbytes for meta in self.metas.values())


@dataclass(frozen=True)
class WeightPlan:
    """A quantised model that is yet to be written; `source_bytes` are 0 for random weights."""

    source: ModelSource
    config: ModelConfig
    weights: list[PlannedWeight]
    source_bytes: int

    @property
    def num_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)


def plan_weights(
    source: ModelSource,
    quantization: QuantizationConfig,
    seed: int,
    calibrate: Callable[[], CalibratedWeights] | None = None,
) -> WeightPlan:
    """Check the checkpoint against its configuration, and plan all its weights in the order of the network.

    calibrate: gives what the packed weights are, embeddings aside, where they are not the nearest to the checkpoint's.

    Raises CodemillError for what is wrong with the checkpoint, or if it is quantised already.
    """
    if source.kind == "gguf":
        raise CodemillError(f"{source.name} is a GGUF file: make a directory of it first, with codemill convert")
    config = read_config(source)
    if config.quantization is not None:
        raise CodemillError(f"{source.name} is quantised as {config.quantization} already: start from the original")
    dtype = resolve_dtype(None, config)
    model = build(replace(config, quantization=quantization), dtype)
    if source.kind == "random":
        pack_modules(model, quantization.format_of)
        random = RandomWeights(model, seed)
        weights = [_planned(name, weight, random.fill) for name, weight in named_weights(model).items()]
        return WeightPlan(source, model.config, weights, 0)
    checkpoint = open_checkpoint(source, config).select(lambda name: is_mtp(name) or not is_ignored(name, config))
    network = checkpoint.select(lambda name: not is_mtp(name))
    network.check(model, config)
    fill: Fill = CheckpointQuantizer(network).fill
    if calibrate is not None:
        fill = _with_calibrated(fill, calibrate())
    pack_modules(model, quantization.format_of)
    weights = [_planned(name, weight, fill) for name, weight in named_weights(model).items()]
    weights += _planned_mtp(checkpoint.select(is_mtp), config, dtype)
    return WeightPlan(source, model.config, weights, sum(each.end - each.begin for each in checkpoint.tensors.values()))


def _with_calibrated(fill: Fill, calibrated: CalibratedWeights) -> Fill:
    def from_either(name: str, weight: Tensor | PackedMatrix) -> None:
        if isinstance(weight, Tensor) or name == EMBEDDING:
            fill(name, weight)
            return
        source = packed_tensors(name, calibrated.take(name))
        for key, tensor in packed_tensors(name, weight).items():
            tensor.copy_(source[key])

    return from_either


def _planned(name: str, meta: Tensor | PackedMatrix, fill: Fill) -> PlannedWeight:
    def read() -> dict[str, Tensor]:
        weight = empty_like(meta, _CPU)
        fill(name, weight)
        return _tensors(name, weight)

    return PlannedWeight(_tensors(name, meta), read)


def _tensors(name: str, weight: Tensor | PackedMatrix) -> dict[str, Tensor]:
    return packed_tensors(name, weight) if isinstance(weight, PackedMatrix) else {name: weight}


def _planned_mtp(checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype) -> Iterator[PlannedWeight]:
    """The MTP head as it is on disk; FP8 is dequantised, for the copy has no FP8."""
    if not checkpoint.tensors or not config.is_hybrid:
        return
    checkpoint.check(nn.ModuleDict({"mtp": build_mtp(config, dtype)}), config)
    for name, stored in checkpoint.tensors.items():
        if not name.endswith(SCALE_SUFFIX):
            meta = torch.empty(stored.shape, dtype=dtype, device="meta")
            yield _planned(name, meta, partial(_copy, checkpoint))


def _copy(checkpoint: Checkpoint, name: str, weight: Tensor | PackedMatrix) -> None:
    assert isinstance(weight, Tensor)
    checkpoint.copy(name, weight)
