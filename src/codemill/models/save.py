"""Saves a model as a Hugging Face directory that any library loads."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.models.checkpoint import INDEX_FILE, SINGLE_FILE
from codemill.models.decoder import CausalLM
from codemill.models.mtp import MtpHead
from codemill.models.names import disk_views
from codemill.models.placement import dtype_name
from codemill.models.progress import progress
from codemill.models.safetensors_file import write_file

MAX_SHARD_BYTES = 5_000_000_000
COMPANION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
)
_STAGING_PREFIX = ".saving-"


@dataclass
class _Shard:
    """Tensors that go into one file, as views of the parameters."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    num_bytes: int = 0


def save_pretrained(
    model: CausalLM,
    directory: str | Path,
    tokenizer_files_from: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    mtp: MtpHead | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `config.json` and safetensors (shards and an index above `max_shard_bytes`) to `directory`.

    `tokenizer_files_from` is a model directory whose tokenizer, chat template and generation defaults to take along;
    `mtp` is the model's MTP head, if it has one. `dtype`: of the weights on disk, None for the model's. A model that is
    there already is replaced; other files stay. Everything is written aside first, and `config.json` arrives last: an
    interrupted save leaves the old model, the new one, or a directory that loads as none. The model may be one that was
    loaded from `directory`. Raises CodemillError if the directory cannot be written.
    """
    config = replace(model.config, dtype=dtype_name(dtype or model.dtype))
    tensors = dict(_disk_tensors(model, mtp))
    shapes = [(name, torch.empty_like(each, dtype=dtype, device="meta")) for name, each in tensors.items()]
    with staged(Path(directory)) as staging:
        write_weights(staging, config, shapes, max_shard_bytes, lambda name, meta: tensors[name].to(meta.dtype))
        if tokenizer_files_from is not None:
            copy_companions(Path(tokenizer_files_from), staging)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A directory whose files move to `target` when the block ends, as `save_pretrained` says."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for abandoned in target.glob(f"{_STAGING_PREFIX}*"):
            shutil.rmtree(abandoned)
        with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=target) as staging:
            yield Path(staging)
            _publish(Path(staging), target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CodemillError(f"{target}: the model cannot be saved ({reason}): check permissions and space") from error


def write_weights(
    directory: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    read: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> None:
    """Write `config.json` and the weights; `read` gives the values of tensors on the meta device."""
    write_json(directory / "config.json", config.to_dict())
    shards = _split(tensors, max_shard_bytes)
    total = sum(shard.num_bytes for shard in shards)
    weight_map: dict[str, str] = {}
    with progress("saving weights", total) as advance:
        for number, shard in enumerate(shards, start=1):
            file = shard_file(number, len(shards))
            write_file(directory / file, shard.tensors, _counted(read, advance))
            weight_map |= dict.fromkeys(shard.tensors, file)
    if len(shards) > 1:
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def shard_file(number: int, num_shards: int) -> str:
    """The name of a file of weights; they count from 1."""
    return SINGLE_FILE if num_shards == 1 else f"model-{number:05}-of-{num_shards:05}.safetensors"


def _counted(read: Callable[[str, Tensor], Tensor], advance: Callable[[int], None]) -> Callable[[str, Tensor], Tensor]:
    """The same function, which tells the progress bar of each tensor."""

    def counting(name: str, tensor: Tensor) -> Tensor:
        advance(tensor.nbytes)
        return read(name, tensor)

    return counting


def _split(tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> list[_Shard]:
    """Fill shards in the order of the tensors; one larger than the limit gets a shard of its own."""
    shards = [_Shard()]
    for name, tensor in tensors:
        if shards[-1].tensors and shards[-1].num_bytes + tensor.nbytes > max_shard_bytes:
            shards.append(_Shard())
        shards[-1].tensors[name] = tensor
        shards[-1].num_bytes += tensor.nbytes
    return shards


def _disk_tensors(model: CausalLM, mtp: MtpHead | None) -> Iterator[tuple[str, Tensor]]:
    """What goes to disk, in the order of the network, by its names there."""
    heads = () if mtp is None else mtp.named_parameters(prefix="mtp")
    for name, parameter in chain(model.named_parameters(), heads):
        yield from disk_views(name, parameter.detach())


def copy_companions(source: Path, staging: Path) -> None:
    """Take along the tokenizer, chat template and generation defaults of a model directory."""
    if not source.is_dir():
        raise CodemillError(f"{source}: no such directory to take the tokenizer from")
    for name in COMPANION_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, staging / name)


def _publish(staging: Path, target: Path) -> None:
    """Move the files into place. Without its config.json a directory loads as nothing, old weights or new."""
    (target / "config.json").unlink(missing_ok=True)
    for stale in (*target.glob("model*.safetensors"), target / INDEX_FILE):
        stale.unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(target / path.name)


def write_json(path: Path, value: object) -> None:
    """Indented, for people to read."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
