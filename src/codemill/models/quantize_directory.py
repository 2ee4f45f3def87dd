"""Writes a quantised copy of a model without ever holding the model: tensor by tensor, from its files to new ones."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from codemill.chat.tokenizer_files import TOKENIZER_FILES, tokenizer_path
from codemill.config import QuantizationConfig
from codemill.errors import CodemillError, UsageError
from codemill.kernels.packed_matrix import check_format
from codemill.models.calibration import CalibratedWeights
from codemill.models.checkpoint import INDEX_FILE
from codemill.models.loader import load_model
from codemill.models.progress import progress
from codemill.models.quantize_plan import PlannedWeight, WeightPlan, plan_weights
from codemill.models.safetensors_file import SafetensorsWriter
from codemill.models.save import COMPANION_FILES, MAX_SHARD_BYTES, copy_companions, shard_file, write_json
from codemill.spec import ModelSource, resolve


@dataclass(frozen=True)
class Quantized:
    """What was written: the directory, and the bytes of its weights before (0 if they were random) and after."""

    directory: Path
    quantization: QuantizationConfig
    source_bytes: int
    num_bytes: int


def quantize_model(
    spec: str | Path | None,
    directory: str | Path,
    quantization: str | QuantizationConfig = "int4",
    *,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    calibration: Sequence[Tensor] = (),
) -> Quantized:
    """Write the model `spec` with packed weights to `directory`, which must not exist yet or be empty.

    In memory are one matrix of the source and one packed weight at a time (of experts, all of a layer packed). The new
    directory appears under its name when it is complete; what an interrupted run left behind is removed by the next.
    Tokenizer, chat template and generation defaults come along, and so does an MTP head, unquantised. A random: spec
    draws packed weights from `seed`, those that `load_model` would.

    calibration: token ids [B, T] of a text, if the weights are to be calibrated (see `calibration.py`). That takes
    longer, and more memory: the model is mapped, and one layer's weights, its statistics and the text's hidden states
    are there beside it.

    Raises UsageError for wrong arguments, CodemillError for what is wrong with the checkpoint, or if there is no room.
    """
    packed = QuantizationConfig.parse(quantization) if isinstance(quantization, str) else quantization
    for bits in (packed.bits, packed.head_bits or packed.bits):
        check_format(bits, packed.group_size)
    target = Path(directory).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists already: remove it, or give another directory")
    source = resolve(spec)
    if calibration and source.kind == "random":
        raise UsageError(
            f"{source.name}: random weights know nothing that a text could show: leave out the calibration"
        )

    def calibrate() -> CalibratedWeights:
        return CalibratedWeights(load_model(spec), calibration, packed.format_of)

    plan = plan_weights(source, packed, seed, calibrate if calibration else None)
    try:
        with _staging(target) as staging:
            _check_space(target, plan.num_bytes)
            _write(plan, staging, max_shard_bytes)
            _copy_companions(plan.source, staging)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CodemillError(f"{target}: the model cannot be written ({reason}): check permissions and space") from error
    return Quantized(target, packed, plan.source_bytes, plan.num_bytes)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A directory beside `target` that takes its place at the end."""
    prefix = f".{target.name}.quantizing-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in target.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(abandoned)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_companions(source: ModelSource, staging: Path) -> None:
    """A random: spec has the embedded tokenizer, so its copy gets that."""
    if source.kind == "random":
        folder = tokenizer_path(source.name).parent
        for file in TOKENIZER_FILES:
            if (folder / file).exists():
                shutil.copyfile(folder / file, staging / file)
    else:
        copy_companions(source.fetch(COMPANION_FILES), staging)


def _umask() -> int:
    """What new files are not allowed; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_space(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise CodemillError(
            f"{target}: not enough space: the quantised weights take {num_bytes / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free"
        )


def _write(plan: WeightPlan, staging: Path, max_shard_bytes: int) -> None:
    shards = _split(plan.weights, max_shard_bytes)
    weight_map: dict[str, str] = {}
    with progress("quantising", plan.num_bytes) as advance:
        for number, shard in enumerate(shards, start=1):
            file = shard_file(number, len(shards))
            metas = {name: meta for weight in shard for name, meta in weight.metas.items()}
            with SafetensorsWriter(staging / file, metas) as writer:
                for weight in shard:
                    for name, tensor in weight.read().items():
                        writer.write(name, tensor)
                    advance(weight.nbytes)
            weight_map |= dict.fromkeys(metas, file)
    if len(shards) > 1:
        write_json(staging / INDEX_FILE, {"metadata": {"total_size": plan.num_bytes}, "weight_map": weight_map})
    write_json(staging / "config.json", plan.config.to_dict())


def _split(weights: Sequence[PlannedWeight], max_shard_bytes: int) -> list[list[PlannedWeight]]:
    """Fill shards in the order of the network; the tensors of one weight stay together."""
    shards: list[list[PlannedWeight]] = [[]]
    size = 0
    for weight in weights:
        if shards[-1] and size + weight.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.nbytes
    return shards
