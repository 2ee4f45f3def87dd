"""Hugging Face directories of models that several processes hold in parts, and of checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from codemill.config import ModelConfig
from codemill.models import CausalLM
from codemill.models.names import disk_views
from codemill.models.placement import dtype_name
from codemill.models.save import save_pretrained, staged, write_weights
from codemill.models.skeleton import build
from codemill.train.checkpoint import one_line_errors
from codemill.train.checkpoint_state import WEIGHTS
from codemill.train.parallel import Parallel


def save_whole(model: CausalLM, directory: Path, dtype: torch.dtype, parallel: Parallel) -> None:
    """`save_pretrained` by all processes of a model: the main one writes, with one parameter at a time put together."""
    state = model.state_dict()
    if not any(isinstance(each, DTensor) for each in state.values()):
        if parallel.is_main:
            save_pretrained(model, directory, dtype=dtype)
    elif parallel.is_main:
        shapes = {name: each.shape for name, each in state.items()}
        _write(directory, model.config, shapes, dtype, lambda name: _whole(state[name]))
    else:
        for each in state.values():
            _whole(each)
    parallel.wait()


def save_checkpoint(checkpoint: Path, config: ModelConfig, directory: Path, dtype: torch.dtype) -> None:
    """The weights of a run's checkpoint (`.../checkpoints/step-00000200`) as a Hugging Face directory.

    It does not matter how many processes wrote them. One parameter is in memory at a time. `config` is that of the
    model. Raises CodemillError if the checkpoint is damaged, or of another model or an adapter.
    """
    reader = dcp.FileSystemReader(checkpoint)

    def read(name: str) -> Tensor:
        found = {WEIGHTS + name: torch.empty(shapes[name])}
        with one_line_errors(f"{checkpoint}: {name} cannot be read", "is it a checkpoint of this model, and whole?"):
            dcp.load(found, storage_reader=reader, no_dist=True)
        return found[WEIGHTS + name]

    shapes = {name: each.shape for name, each in build(config, dtype).named_parameters()}
    _write(directory, config, shapes, dtype, read)


def _write(
    directory: Path,
    config: ModelConfig,
    shapes: dict[str, torch.Size],
    dtype: torch.dtype,
    read: Callable[[str], Tensor],
) -> None:
    """`read` gives each parameter once, in the order of `shapes`."""
    metas = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    owners = {on_disk: name for name, meta in metas.items() for on_disk, _ in disk_views(name, meta)}
    views = dict[str, Tensor]()

    def take(name: str, meta: Tensor) -> Tensor:
        if name not in views:
            views.clear()
            views.update(disk_views(owners[name], read(owners[name])))
        return views[name].to("cpu", meta.dtype)

    with staged(directory) as staging:
        on_disk = [each for name, meta in metas.items() for each in disk_views(name, meta)]
        write_weights(staging, replace(config, dtype=dtype_name(dtype)), on_disk, read=take)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
