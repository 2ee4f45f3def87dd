"""A GGUF file as a checkpoint: each parameter read from the tensors that hold it, dequantised where need be."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.gguf.container import GgufFile, GgufTensor
from codemill.models.checkpoint import MappedFiles
from codemill.models.gguf_blocks import FLOAT_DTYPES, decode_into
from codemill.models.gguf_names import Part, is_folded_norm, join_qkvz, parts_of
from codemill.models.gguf_packed import RawRows
from codemill.models.safetensors_file import StoredTensor, map_bytes
from codemill.models.skeleton import empty

_IGNORED = ("rope_freqs.weight",)
_SHOWN = 3


@dataclass(frozen=True)
class GgufCheckpoint:
    """The tensors of a file, for a network of the configuration `config`."""

    file: GgufFile
    config: ModelConfig

    @property
    def tensors(self) -> Mapping[str, GgufTensor]:
        return self.file.tensors

    def check(self, model: nn.Module) -> None:
        """Compare with what `model` needs, by name and shape, before anything is read. Raises CodemillError."""
        expected = [part for name, parameter in model.named_parameters() for part in self.parts(name, parameter)]
        for part in expected:
            self._check_part(part)
        unexpected = sorted(self.tensors.keys() - {part.name for part in expected} - self._ignored())
        if unexpected:
            shown = ", ".join(unexpected[:_SHOWN]) + (", ..." if len(unexpected) > _SHOWN else "")
            raise CodemillError(
                f"{self.file.path}: tensors not part of a {self.config.model_type} model of this configuration: {shown}"
            )

    def parts(self, name: str, parameter: Tensor) -> list[Part]:
        """The tensors that hold the parameter `name`."""
        return parts_of(name, parameter, self.config, self.tensors)

    def _check_part(self, part: Part) -> None:
        stored = self.tensors.get(part.name)
        if stored is None:
            raise CodemillError(f"{self.file.path}: tensor {part.name} is missing")
        if _without_ones(stored.shape) != _without_ones(part.shape):
            raise CodemillError(
                f"{stored.path}: tensor {part.name} has shape {list(stored.shape)}, "
                f"but the metadata make it {list(part.shape)}"
            )

    def _ignored(self) -> set[str]:
        """Tensors that have no part in the network: layers for multi-token prediction come after those that count."""
        architecture, first = self.file.metadata.get("general.architecture"), self.config.num_hidden_layers
        num_extra = self.file.metadata.get(f"{architecture}.nextn_predict_layers", 0)
        last = min(first + num_extra, _last_layer(self.tensors) + 1)
        beyond = tuple(f"blk.{layer}." for layer in range(first, last))
        return {name for name in self.tensors if name in _IGNORED or (beyond and name.startswith(beyond))}

    def read(self, name: str, meta: Tensor, mapped: MappedFiles, device: torch.device) -> Tensor:
        """The parameter `name`, of the dtype and shape of `meta`; on the CPU as it lies on disk if it is so there."""
        parts = self.parts(name, meta)
        stored = self.tensors[parts[0].name]
        is_same = FLOAT_DTYPES.get(stored.type) == meta.dtype and len(parts) == 1 and not self._is_changed(name)
        if is_same and device.type == "cpu":
            return mapped.view(_as_stored(stored)).view(meta.shape)
        parameter = empty(meta, device)
        self.read_into(name, parameter)
        return parameter

    def _is_changed(self, name: str) -> bool:
        return is_folded_norm(name, self.config) or name.endswith(".A_log")

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill `out` with the parameter `name`."""
        parts = self.parts(name, out)
        if self._is_changed(name):
            values = self._values(parts[0])
            out.copy_((values - 1 if is_folded_norm(name, self.config) else log_of_decay(values)).view(out.shape))
        elif len(parts) == 1:
            self._decode(parts[0], out)
        elif name.endswith(".gate_up_proj"):
            for part, half in zip(parts, out.chunk(2, dim=1), strict=True):
                self._decode(part, half)
        else:
            qkv, gate = map(self._values, parts)
            join_qkvz(qkv, gate, self.config, out)

    def read_expert(self, part: Part, expert: int, out: Tensor) -> None:
        """Fill `out` with one expert of a tensor that holds those of a layer."""
        raw = self._raw(part)
        size = len(raw) // part.shape[0]
        decode_into(raw[expert * size : (expert + 1) * size], self.tensors[part.name].type, out)

    def read_raw(self, part: Part) -> RawRows:
        """The rows of a tensor as they are in the file; those of all experts one after the other."""
        stored = self.tensors[part.name]
        raw = map_bytes(stored.path, stored.begin, stored.end)
        return RawRows(raw.view(-1, stored.type.num_bytes(part.shape[-1])), stored.type)

    def _values(self, part: Part) -> Tensor:
        out = torch.empty(part.shape)
        self._decode(part, out)
        return out

    def _decode(self, part: Part, out: Tensor) -> None:
        raw = self._raw(part)
        decode_into(raw if out.device.type == "cpu" else raw.to(out.device), self.tensors[part.name].type, out)

    def _raw(self, part: Part) -> Tensor:
        stored = self.tensors[part.name]
        raw = map_bytes(stored.path, stored.begin, stored.end)
        return raw.clone() if raw.data_ptr() % 4 else raw  # a small alignment leaves floats anywhere


def log_of_decay(decay: Tensor) -> Tensor:
    """A_log for decay = -exp(A_log), fp32: one whose exponential is the decay again, to the last bit, if there is one.

    Rounding the logarithm alone would miss it now and then.
    """
    size = -decay
    nearest = size.double().log().float()
    found = nearest.clone()
    for direction in (-torch.inf, torch.inf):
        candidate = nearest
        for _ in range(3):
            candidate = torch.nextafter(candidate, torch.full_like(candidate, direction))
            found = torch.where((found.exp() != size) & (candidate.exp() == size), candidate, found)
    return found


def _as_stored(tensor: GgufTensor) -> StoredTensor:
    dtype = FLOAT_DTYPES[tensor.type]
    return StoredTensor(tensor.path, tensor.name, dtype, tensor.shape, tensor.begin, tensor.end)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions of one element come and go between versions of llama.cpp."""
    return tuple(size for size in shape if size != 1)


def _last_layer(names: Mapping[str, GgufTensor]) -> int:
    numbers = (name.split(".")[1] for name in names if name.startswith("blk."))
    return max((int(number) for number in numbers if number.isdigit() and len(number) < 5), default=-1)
