"""The weights of a model spec one tensor at a time, so that a model larger than memory can be converted.

Names are those of Hugging Face checkpoints, in which every expert is a tensor of its own.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.gguf.container import GgufFile
from codemill.models.checkpoint import Checkpoint
from codemill.models.gguf_checkpoint import GgufCheckpoint
from codemill.models.initialize import RandomWeights
from codemill.models.loader import open_checkpoint, read_config
from codemill.models.names import SCALE_SUFFIX, disk_views, is_ignored, is_mtp
from codemill.models.placement import resolve_dtype
from codemill.models.skeleton import build
from codemill.spec import ModelSource, resolve

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


class WeightStream(ABC):
    """`model` is on the meta device: it knows names and shapes."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.model = build(config, torch.float32)

    def names(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor, in the order of the network."""
        for name, parameter in self.model.named_parameters():
            for part, view in disk_views(name, parameter):
                yield part, tuple(view.shape)

    @abstractmethod
    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, in fp32."""


def open_stream(spec: str | Path | None) -> WeightStream:
    """The weights that `spec` names, checked but not read. Raises as `load_model` does, lack of memory apart."""
    source = resolve(spec)
    config = read_config(source)
    if config.quantization is not None:
        raise CodemillError(f"{source.name} is quantised as {config.quantization}: convert the original")
    if source.kind == "random":
        return _RandomStream(config)
    if source.gguf is not None:
        return _GgufStream(config, source.gguf)
    return _CheckpointStream(config, source)


class _CheckpointStream(WeightStream):
    def __init__(self, config: ModelConfig, source: ModelSource) -> None:
        super().__init__(config)
        everything = open_checkpoint(source, config)
        self.mtp = everything.select(is_mtp)
        self.checkpoint = everything.select(lambda name: not is_ignored(name, config))
        self.checkpoint.check(self.model, config)

    def names(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from super().names()
        for name, stored in self.mtp.tensors.items():
            if not name.endswith(SCALE_SUFFIX):
                yield name, stored.shape

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        checkpoint: Checkpoint = self.mtp if is_mtp(name) else self.checkpoint
        match = _EXPERT.fullmatch(name)
        if name not in checkpoint.tensors and match is not None:
            return self._read_fused(match[1], int(match[2]), match[3])
        out = torch.empty(shape)
        checkpoint.copy(name, out)
        return out

    def _read_fused(self, experts: str, index: int, kind: str) -> Tensor:
        """One expert of a checkpoint that holds them stacked."""
        if kind == "down":
            return self.checkpoint.tensors[f"{experts}.down_proj"].read()[index].float()
        gate, up = self.checkpoint.tensors[f"{experts}.gate_up_proj"].read()[index].chunk(2)
        return (gate if kind == "gate" else up).float()


class _GgufStream(WeightStream):
    def __init__(self, config: ModelConfig, file: GgufFile) -> None:
        super().__init__(config)
        self.checkpoint = GgufCheckpoint(file, config)
        self.checkpoint.check(self.model)
        self.parameters = dict(self.model.named_parameters())

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        match = _EXPERT.fullmatch(name)
        out = torch.empty(shape)
        if match is None:
            self.checkpoint.read_into(name, out)
        else:
            self._read_expert(match[1], int(match[2]), match[3], out)
        return out

    def _read_expert(self, experts: str, index: int, kind: str, out: Tensor) -> None:
        name = f"{experts}.{'down_proj' if kind == 'down' else 'gate_up_proj'}"
        parts = self.checkpoint.parts(name, self.parameters[name])
        if kind == "down" or len(parts) == 2:
            self.checkpoint.read_expert(parts[kind == "up"], index, out)
            return
        both = torch.empty(2 * out.shape[0], out.shape[1])
        self.checkpoint.read_expert(parts[0], index, both)
        out.copy_(both.chunk(2)[kind == "up"])


class _RandomStream(WeightStream):
    """Draws whole parameters, as `load_model` does, and keeps the last."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.fill = RandomWeights(self.model, seed=0).fill
        self.dtype = resolve_dtype(None, config)
        self.owners = {part: name for name, p in self.model.named_parameters() for part, _ in disk_views(name, p)}
        self.last: tuple[str, dict[str, Tensor]] = ("", {})

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        owner = self.owners[name]
        if self.last[0] != owner:
            parameter = torch.empty(self.model.get_parameter(owner).shape, dtype=self.dtype)
            self.fill(owner, parameter)
            self.last = (owner, dict(disk_views(owner, parameter)))
        return self.last[1][name].float()
