"""A checkpoint: the tensors of a Hugging Face model directory, in one safetensors file or in shards with an index."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from codemill.config import Fp8Config, ModelConfig, read_json_object
from codemill.errors import CodemillError
from codemill.kernels.quantized_linear import MINIMUM, SCALE
from codemill.models.fp8 import FP8_DTYPE, SCALE_DTYPES, dequantize, scale_shape
from codemill.models.names import SCALE_SUFFIX, disk_views
from codemill.models.safetensors_file import StoredTensor, map_bytes, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHOWN = 3  # names in a message about many tensors


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their names on disk. `path` is the file that lists them; `fp8` says how they were quantised."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    fp8: Fp8Config | None = None

    @classmethod
    def open(cls, directory: Path, fp8: Fp8Config | None = None) -> "Checkpoint":
        """Read the headers in `directory`. Raises CodemillError naming what is missing, truncated or corrupt."""
        single, index = directory / SINGLE_FILE, directory / INDEX_FILE
        if single.is_file():
            return cls(single, read_header(single), fp8)
        if index.is_file():
            return cls(index, _read_shards(index), fp8)
        raise CodemillError(f"{directory} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}")

    def select(self, wanted: Callable[[str], bool]) -> "Checkpoint":
        """The same checkpoint with only the tensors whose names are `wanted`."""
        return replace(self, tensors={name: stored for name, stored in self.tensors.items() if wanted(name)})

    def check(self, model: torch.nn.Module, config: ModelConfig) -> None:
        """Compare with what `model` needs, by name and shape, before anything is read. Raises CodemillError."""
        expected = {
            name: view for key, parameter in model.named_parameters() for name, view in self.views(key, parameter)
        }
        self._check_names(expected, config)
        for name, view in expected.items():
            stored = self.tensors[name]
            if stored.shape != view.shape:
                raise CodemillError(
                    f"{stored.path}: tensor {name} has shape {list(stored.shape)}, "
                    f"but config.json makes it {list(view.shape)}"
                )
            self._check_quantization(stored)
            _check_packed(name, stored, view)

    def views(self, name: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See `disk_views`; experts that a library stored fused are taken as they are."""
        return iter([(name, parameter)]) if name in self.tensors else disk_views(name, parameter)

    def read(self, name: str) -> Tensor:
        """A tensor in the dtype that it is stored in, on a mapping of its own; FP8 weights are dequantised to fp32."""
        stored = self.tensors[name]
        if stored.dtype != FP8_DTYPE:
            return stored.read()
        out = torch.empty(stored.shape, dtype=torch.float32)
        self.copy(name, out)
        return out

    def copy(self, name: str, out: Tensor) -> None:
        """Read a tensor into `out`, converted to its dtype and device; FP8 weights are dequantised."""
        stored = self.tensors[name]
        if stored.dtype == FP8_DTYPE and self.fp8 is not None:
            weight, scale = (tensor.read().to(out.device) for tensor in (stored, self.tensors[name + SCALE_SUFFIX]))
            dequantize(weight, scale, self.fp8.block_size, out)
        else:
            out.copy_(stored.read())

    def _check_names(self, expected: Mapping[str, Tensor], config: ModelConfig) -> None:
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            raise CodemillError(f"{self.path}: {_listed(missing)} missing; is config.json that of this checkpoint?")
        for name in self.tensors:
            weight = name.removesuffix(SCALE_SUFFIX)
            if weight != name and weight not in self.tensors:
                raise CodemillError(f"{self.path}: {name} is the scale of a weight that is missing")
        unexpected = [name for name in self.tensors if name.removesuffix(SCALE_SUFFIX) not in expected]
        if unexpected:
            raise CodemillError(
                f"{self.path}: {_listed(unexpected)} not part of a {config.model_type} model of this configuration"
            )

    def _check_quantization(self, stored: StoredTensor) -> None:
        scale = self.tensors.get(stored.name + SCALE_SUFFIX)
        if stored.dtype != FP8_DTYPE:
            if scale is not None:
                raise CodemillError(f"{scale.path}: {scale.name} scales {stored.name}, which is not in FP8")
            return
        if self.fp8 is None:
            raise CodemillError(
                f"{stored.path}: tensor {stored.name} is FP8, but config.json has no quantization_config"
            )
        if scale is None:
            raise CodemillError(
                f"{stored.path}: tensor {stored.name} is FP8, but {stored.name}{SCALE_SUFFIX} is missing"
            )
        if len(stored.shape) < 2:
            raise CodemillError(
                f"{stored.path}: tensor {stored.name} is FP8 {list(stored.shape)}: only matrices can be"
            )
        shape = scale_shape(stored.shape, self.fp8.block_size)
        if scale.shape != shape or scale.dtype not in SCALE_DTYPES:
            raise CodemillError(
                f"{scale.path}: tensor {scale.name} is {scale.dtype} {list(scale.shape)}, "
                f"but blocks of {list(self.fp8.block_size)} need floats of shape {list(shape)}"
            )


def _check_packed(name: str, stored: StoredTensor, view: Tensor) -> None:
    """What is packed on disk and what the network expects to be so are the same, and nothing else is uint8."""
    is_packed = view.dtype == torch.uint8 or name.endswith((SCALE, MINIMUM))
    if is_packed and stored.dtype != view.dtype:
        raise CodemillError(f"{stored.path}: tensor {name} is {stored.dtype}, but packed weights have {view.dtype}")
    if not is_packed and stored.dtype == torch.uint8:
        raise CodemillError(f"{stored.path}: tensor {name} is uint8, but config.json does not say that it is packed")


class MappedFiles:
    """Whole files, mapped once each, for tensors that are used as they lie on disk."""

    def __init__(self) -> None:
        self._files: dict[Path, Tensor] = {}

    def view(self, stored: StoredTensor) -> Tensor:
        """The tensor without a copy; its pages are read when they are first used."""
        if stored.path not in self._files:
            self._files[stored.path] = map_bytes(stored.path)
        return stored.view(self._files[stored.path])


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CodemillError(f"{index}: no weight_map that gives the file of each tensor")
    shards = {file: _read_shard(index, file) for file in dict.fromkeys(weight_map.values())}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise CodemillError(f"{index}: tensor {name} is said to be in {file}, but that file does not have it")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _read_shard(index: Path, file: str) -> dict[str, StoredTensor]:
    path = index.parent / file
    if Path(file).name != file or not path.is_file():
        raise CodemillError(f"{index}: points to {file}, which does not exist beside it; is the download complete?")
    return read_header(path)


def _listed(names: list[str]) -> str:
    """'1 tensor (a) is' or '7 tensors (a, b, c, ...) are'."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({shown}) {'is' if len(names) == 1 else 'are'}"
